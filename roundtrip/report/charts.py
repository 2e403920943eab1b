"""The charts of a report: SVG with text as text, whose colours are variables of the page and follow its theme."""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lxml import etree
from markupsafe import Markup

from roundtrip.report.visible_text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Points of a curve, each the mean of its part of the steps.
MAX_POINTS = 300
# How many times the lowest value the highest one is, from which on an axis may be logarithmic.
LOG_FROM = 20
# Series and bars that have a colour of their own.
NUM_COLOURS = 6
# Larger numbers have no place on an axis, as NaN has none.
MAX_VALUE = 1e30
# Characters of a label, and the share of the width that one of them takes.
MAX_LABEL, LABEL_WIDTH = 22, 0.0205
MAX_TICKS = 5
WIDTH, HEIGHT = 3.8, 2.2  # inches of 72 units
# Colours that stand for variables of the page until the drawing is finished.
_INK, _QUIET, _RULE = "#010101", "#020202", "#030303"
_SERIES = [f"#0404{number:02d}" for number in range(1, NUM_COLOURS + 1)]
_VARIABLES = {_INK: "--ink", _QUIET: "--quiet", _RULE: "--rule"}
_VARIABLES |= {colour: f"--series-{number}" for number, colour in enumerate(_SERIES, start=1)}
_MARKERS = "osD^vP"
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 9.0,
    "path.simplify_threshold": 0.5,
}


@dataclass(frozen=True)
class Curve:
    """A series of a chart, drawn thin and as its running mean where it is `noisy`."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    noisy: bool = False
    dashed: bool = False
    colour: int = 0  # number of its colour


@dataclass(frozen=True)
class Axis:
    """What the axes of a chart show; `marks` are positions on x with their labels.

    With `log`, y is logarithmic where its values are that far apart.
    """

    x: str
    ticks: Sequence[str] = ()  # labels of x = 0, 1, ...
    marks: Mapping[str, float] = field(default_factory=dict)
    log: bool = False


def downsample(x: Sequence[float], y: Sequence[float], num_points: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """Return a curve with at most so many points, each the mean of its neighbours, that an axis can show."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if abs(a) < MAX_VALUE and abs(b) < MAX_VALUE]
    size = max(1, math.ceil(len(pairs) / num_points))
    parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    means = [tuple(math.fsum(values) / len(part) for values in zip(*part, strict=True)) for part in parts]
    return [mean[0] for mean in means], [mean[1] for mean in means]


def running_mean(y: Sequence[float]) -> list[float]:
    """Return each value's mean with its neighbours, a twentieth of the curve on both sides."""
    reach = max(1, len(y) // 20)
    windows = (y[max(0, i - reach) : i + reach + 1] for i in range(len(y)))
    return [math.fsum(window) / len(window) for window in windows]


def line_chart(name: str, title: str, curves: Sequence[Curve], axis: Axis, unit: str = "") -> Markup | None:
    """Draw curves with their labels at their ends; None where there is nothing to draw."""
    drawn = [(curve, *downsample(curve.x, curve.y)) for curve in curves]
    drawn = [(curve, x, y) for curve, x, y in drawn if y]
    if not drawn:
        return None
    with _figure(HEIGHT) as (figure, axes):
        ends = []
        for curve, x, y in drawn:
            number = curve.colour % NUM_COLOURS
            look: dict[str, Any] = {"color": _SERIES[number], "solid_capstyle": "round"}
            if curve.noisy and len(y) > 20:
                axes.plot(x, y, linewidth=0.6, alpha=0.45, **look)
                y = running_mean(y)
            marker = {"marker": _MARKERS[number], "markersize": 4.5} if axis.ticks else {}
            axes.plot(x, y, linewidth=1.6, linestyle="--" if curve.dashed else "-", **look, **marker)
            ends.append((x[-1], y[-1], curve.label, _SERIES[number]))
        lowest, highest = min(min(y) for _, _, y in drawn), max(max(y) for _, _, y in drawn)
        if axis.log and highest > LOG_FROM * lowest > 0:
            axes.set_yscale("log")
            for ticker in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                ticker(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else "")
        _set_axes(axes, axis)
        longest = max(len(_short(curve.label)) for curve, _, _ in drawn)
        axes.set_position((0.12, 0.17, 0.84 - LABEL_WIDTH * longest, 0.75))
        _label_ends(axes, ends)
        return _finish(figure, name, title, _describe(drawn, unit))


def bar_chart(name: str, title: str, bars: Mapping[str, Mapping[str, float]], unit: str = "") -> Markup | None:
    """Draw one horizontal bar for each row, its parts one after the other in the colours of their order."""
    parts = list(dict.fromkeys(part for row in bars.values() for part in row))
    totals = {row: sum(values.values()) for row, values in bars.items()}
    if not parts or not any(totals.values()):
        return None
    with _figure(0.5 + 0.25 * len(bars)) as (figure, axes):
        lefts = [0.0] * len(bars)
        for number, part in enumerate(parts):
            widths = [row.get(part, 0.0) for row in bars.values()]
            colour = _SERIES[number % NUM_COLOURS]
            axes.barh(range(len(bars)), widths, left=lefts, height=0.66, color=colour, linewidth=0)
            lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
        for i, total in enumerate(lefts):
            _text(axes, total + 0.015 * max(lefts), i, f"{_number(total)}{unit}", _INK, verticalalignment="center")
        _set_rows(axes, list(bars), bottom=0.06)
        axes.set_xlim(0, 1.18 * max(lefts))
        axes.set_xticks([])
        return _finish(figure, name, title, "; ".join(f"{row}: {_number(totals[row])}{unit}" for row in bars))


def range_chart(name: str, title: str, rows: Mapping[str, Mapping[str, Sequence[float]]], unit: str) -> Markup | None:
    """Draw for each row the ranges of its parts: (lowest, middle, highest), one under the other."""
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    if not parts:
        return None
    height = 0.6 + 0.36 * len(rows)
    with _figure(height) as (figure, axes):
        for i, row in enumerate(rows.values()):
            for part, (low, middle, high) in row.items():
                number = parts.index(part)
                y = i + (number - (len(parts) - 1) / 2) * 0.32
                axes.plot([low, high], [y, y], color=_SERIES[number], linewidth=1.6, solid_capstyle="round")
                axes.plot([middle], [y], color=_SERIES[number], marker=_MARKERS[number], markersize=5)
        _set_rows(axes, list(rows), bottom=0.3 / height)
        axes.set_xlim(left=0)
        medians = {row: [f"{part} {sizes[1]:g}{unit}" for part, sizes in sides.items()] for row, sides in rows.items()}
        shown = "; ".join(f"{row}: {', '.join(each)}" for row, each in medians.items())
        return _finish(figure, name, title, f"Medians. {shown}")


@contextmanager
def _figure(height: float) -> Iterator[tuple[Any, Axes]]:
    """Yield a figure with axes, drawn by settings of our own, and without warnings of glyphs that no font has."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of its cache of fonts
    try:
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            matplotlib.rcdefaults()  # in place of settings of the user
            matplotlib.rcParams.update(_STYLE)
            # Not through pyplot, which keeps figures, and chooses a window system.
            figure = Figure(figsize=(WIDTH, height))
            yield figure, figure.add_axes((0.12, 0.17, 0.7, 0.75))
    finally:
        logger.setLevel(level)


def _set_rows(axes: Axes, labels: Sequence[str], bottom: float) -> None:
    """Let axes have a row for each label, from top to bottom."""
    _set_axes(axes, Axis(""))
    shown = [_short(label) for label in labels]
    left = 0.03 + LABEL_WIDTH * max(len(label) for label in shown)
    axes.set_position((left, bottom, 0.97 - left, 0.94 - bottom))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.set_yticks(range(len(labels)))
    axes.set_yticklabels(shown, parse_math=False)


def _set_axes(axes: Axes, axis: Axis) -> None:
    axes.patch.set_visible(False)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, axis="y", color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_QUIET, length=0, labelsize=8.5, which="both")
    axes.margins(x=0.02, y=0.08)
    if axis.ticks:
        distance = math.ceil(len(axis.ticks) / MAX_TICKS)
        axes.set_xticks(range(0, len(axis.ticks), distance))
        axes.set_xticklabels([_short(tick, 12) for tick in axis.ticks[::distance]], parse_math=False)
    elif axis.x:
        axes.set_xlabel(axis.x, color=_QUIET, fontsize=8.5, labelpad=1)
    for label, x in axis.marks.items():
        axes.axvline(x, color=_QUIET, linewidth=0.7, linestyle=(0, (1, 2)))
        _text(axes, x, 1.0, f" {label}", _QUIET, transform=axes.get_xaxis_transform(), fontsize=8)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write the label of each curve to the right of its end, moved apart where they would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [(float(to_axes.transform((x, y))[1]), label, colour) for x, y, label, colour in ends]
    last, gap = -math.inf, 0.1
    for height, label, colour in sorted(heights):
        last = max(height, last + gap)
        _text(axes, 1.01, last, label, colour, transform=axes.transAxes, verticalalignment="center")


def _text(axes: Axes, x: float, y: float, text: str, colour: str, **settings: Any) -> None:
    axes.text(x, y, _short(text), color=colour, parse_math=False, **({"fontsize": 9} | settings))


def _short(text: str, length: int = MAX_LABEL) -> str:
    """Return a label for a chart, in one line."""
    text = visible(text).replace("\n", " ").replace("\t", " ")
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == round(value) else f"{value:.1f}"


def _describe(drawn: Sequence[tuple[Curve, Sequence[float], Sequence[float]]], unit: str) -> str:
    """Return in words what a screen reader says of curves."""
    each = (f"{curve.label} from {y[0]:.3g}{unit} to {y[-1]:.3g}{unit}, lowest {min(y):.3g}, highest {max(y):.3g}"
            for curve, _, y in drawn)  # fmt: skip
    return "; ".join(each)


def _finish(figure: Any, name: str, title: str, description: str) -> Markup:
    """Return the SVG of a figure for a page: no fixed size, names of its own, variables in place of colours."""
    figure.patch.set_visible(False)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    root = etree.fromstring(file.getvalue().encode(), etree.XMLParser(resolve_entities=False, no_network=True))
    for tag in ("metadata", "style"):
        for element in root.findall(f".//{_SVG}{tag}"):
            element.getparent().remove(element)
    used = {element.get(f"{_XLINK}href", "")[1:] for element in root.iter(f"{_SVG}use")}
    used |= set(re.findall(r"url\(#([^)]+)\)", file.getvalue()))
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in used:
            element.set("id", f"{name}-{own}")
        if href := element.get(f"{_XLINK}href"):
            element.set(f"{_XLINK}href", f"#{name}-{href[1:]}")
        if path := element.get("clip-path"):
            element.set("clip-path", path.replace("url(#", f"url(#{name}-"))
        if style := element.get("style"):
            element.set("style", _page_style(style))
        for key in ("d", "x", "y", "transform"):
            if value := element.get(key):
                element.set(key, re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", value))
        element.tail = None
        if element.tag not in {f"{_SVG}text", f"{_SVG}tspan"}:
            element.text = None
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = etree.Element(f"{_SVG}{tag}", {"id": f"{name}-{tag}"})
        element.text = visible(text)
        root.insert(position, element)
    return Markup(etree.tostring(root, encoding="unicode"))


def _page_style(style: str) -> str:
    """Return a style without its font, and with variables of the page in place of colours."""
    kept = [part for part in style.split("; ") if not part.startswith("font-family")]
    style = "; ".join(re.sub(r"^font: (\S+) .*", r"font-size: \1", part) for part in kept)
    return re.sub(r"#[0-9a-f]{6}", lambda colour: f"var({_VARIABLES.get(colour[0], '--ink')})", style)
