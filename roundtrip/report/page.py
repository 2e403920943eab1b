"""Writing the report of a run: `report.html`, one file that needs no network."""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roundtrip import __version__
from roundtrip.backtranslation.labels import control_title, stage_label
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.recipe.language_codes import language_name
from roundtrip.report.figures import NO_VALUE, figures_of, number, signed
from roundtrip.report.run_data import NUM_CHANGED, RunData, Samples, read_run
from roundtrip.report.visible_text import visible
from roundtrip.runtime.atomic_io import write_text
from roundtrip.runtime.errors import first_line, quantity
from roundtrip.runtime.event_log import EventLog

if TYPE_CHECKING:
    from jinja2 import Environment

METRICS = ("chrF++", "BLEU")
COMPARISON_HEADER = [f"{metric} {what}" for metric in METRICS for what in ("change", "p")]
# As in `tokens.row_builder`, which would import torch.
SPLICED = "splice"
_MODES = {
    "splice": "Generated token ids became training rows as they are: each sample line was spliced, and equals the row "
    "that its text gives.",
    "per_row": "Generated token ids became training rows where that is exact; some lines take the text path, that is, "
    "they are decoded and encoded again.",
    "text": "All rows take the text path: generated text is decoded and encoded again.",
}


@dataclass(frozen=True)
class Row:
    label: str
    cells: Sequence[str]
    best: bool = False  # the stage that is kept


@dataclass(frozen=True)
class NumberTable:
    """A table of figures, or of texts."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Row]
    is_text: bool = False


def write_report(run: RunFolder | Path | str, out: Path | None = None) -> Path:
    """Write the report of a run, finished or not.

    Args:
        run: the run, or its folder; only its files are read.
        out: the file to write; where None, `report.html` in the folder of the run.

    Returns:
        The path of the file that was written.

    Raises:
        RunError: it is not a run that can be read.

    Example:
        >>> write_report(run_dir, out_dir / "page.html").name  # `train(..., on_evaluation=write_report)` keeps one
        'page.html'
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    path = out or folder.report
    write_text(path, render(read_run(folder.path)))
    return path


def live_writer(events: EventLog) -> Callable[[RunFolder], None]:
    """Return what writes the report of a run in progress; a failure is reported once, and does not end the run."""
    has_failed = False

    def write(run: RunFolder) -> None:
        nonlocal has_failed
        try:
            write_report(run)
        except Exception as error:
            if not has_failed:
                has_failed = True
                reason = f"{type(error).__name__}: {first_line(error)}"
                events.say(f"  warning: {run.report} cannot be written, and the run continues without it: {reason}")

    return write


def render(data: RunData) -> str:
    """Return the page of one run."""
    # Drawing takes most of the time, and the libraries for it half a second to import.
    from roundtrip.report import run_charts
    from roundtrip.report.verdict import verdict

    samples = data.samples()
    page = environment().get_template("run.html")
    return page.render(
        data=data,
        verdict=verdict(data),
        languages=[language_name(code, data.recipe.template.names) for code in data.recipe.languages],
        scores=_score_tables(data),
        has_placeholders=any("intact" in scores for of_stage in data.dev.values() for scores in of_stage.values()),
        comparisons=_comparison_table(data),
        curves=[*run_charts.dev_charts(data), *run_charts.training_charts(data), *run_charts.time_chart(data)],
        curves_note=_curves_note(data),
        round_charts=run_charts.round_charts(data),
        rounds=_round_table(data),
        samples=samples,
        samples_note=_samples_note,
        token_rows=_token_row_table(data),
        setup=_setup(data),
        label=stage_label,
        mode_words=_mode_words,
        footer=f"Written by roundtrip {__version__} from the files of the run; nothing here is read from a network.",
    )


@cache
def environment() -> "Environment":
    """Return the templates, which escape what is put into them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    def finalize(value: object) -> object:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    def code(text: str) -> Markup:
        """Show what stands between backticks as code."""
        return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(visible(text)))))

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"code": code, "signed": signed}
    # The page allows this script and no other.
    script = (Path(__file__).parent / "samples.js").read_bytes()
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    made.globals |= {"script": Markup(script.decode()), "script_hash": f"sha256-{digest}"}
    return made


def _score_tables(data: RunData) -> list[NumberTable]:
    """Return for each direction a table of its scores by stage."""
    parts = [("test", data.test), ("round trip" if data.recipe.without_dev else "dev", data.dev)]
    metrics = [("chrF++", "chrf", False), ("BLEU", "bleu", False), ("kept", "intact", True), ("copies", "copied", True)]
    tables = []
    for name in (direction.name for direction in data.directions if data.dev):
        columns = [
            (f"{part} {title}", key, share, scores)
            for part, scores in parts
            for title, key, share in metrics
            if any(key in of_stage.get(name, {}) for of_stage in scores.values())
        ]
        rows = [
            Row(
                stage_label(stage),
                [
                    number(scores.get(stage, {}).get(name, {}).get(key), share=share)
                    for _, key, share, scores in columns
                ],
                best=stage == data.best.get(name),
            )
            for stage in data.dev
        ]
        tables.append(NumberTable(name, ["after", *(title for title, *_ in columns)], rows))
    return tables


def _comparison_table(data: RunData) -> NumberTable:
    """Return the comparisons by bootstrap that the run has recorded."""
    rows = {}
    for key in ("gain", "comparison", "control"):
        for name, comparison in data.results.get(key, {}).items():
            title = f"{comparison['system']} against {comparison['baseline']}, on test"
            title = f"{name}: {control_title(comparison) if key == 'control' else title}"
            rows[title] = Row(title, comparison_cells(comparison["metrics"]))
    caption = "Differences, and how likely chance alone would make one as large"
    return NumberTable(caption, ["paired bootstrap", *COMPARISON_HEADER], list(rows.values()))


def comparison_cells(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return change and p-value of the metrics of a comparison, as `metrics.Comparison.to_dict` has them."""
    cells = []
    for metric in METRICS:
        result = figures_of(results, metric)
        cells += [signed(result["change"]), f"{result['p_value']:.3f}"] if result else [NO_VALUE] * 2
    return cells


def _curves_note(data: RunData) -> str:
    from roundtrip.report.charts import MAX_POINTS

    num_steps = max((len(steps) for steps in data.history.steps.values()), default=0)
    note = "Thin lines are single steps, thick ones running means; dotted lines are where stages begin."
    if num_steps > MAX_POINTS:
        note += f" Of {num_steps:,} steps of a direction, {MAX_POINTS} means of neighbours are drawn."
    if any(control for _, control in data.history.steps):
        note += " “Pairs” is the control, on parallel pairs alone."
    return note


def _round_table(data: RunData) -> NumberTable:
    rounds = data.history.rounds.values()
    reasons = list(dict.fromkeys(reason for each in rounds for reason in +each.rejected))
    rows = []
    for each in rounds:
        figures = [each.candidates, each.num_rejected, *(each.rejected[reason] for reason in reasons), each.kept]
        share = number(each.kept / each.candidates if each.candidates else None, share=True)
        rows.append(Row(f"{each.stage} {each.direction}", [*(f"{figure:,}" for figure in figures), share]))
    header = [
        "round",
        "candidates",
        "rejected",
        *(reason.replace("_", " ") for reason in reasons),
        "trained on",
        "share",
    ]
    return NumberTable("Candidates and rejections, by the first reason against each", header, rows)


def _samples_note(samples: Samples) -> str:
    """Return which lines of all are shown."""
    if len(samples.lines) == samples.num_lines:
        return f"All {samples.num_lines:,} lines."
    among = f" among {samples.num_scored:,} lines drawn at random" if samples.num_scored < samples.num_lines else ""
    most = f"the {NUM_CHANGED} largest gains and as many losses{among}"
    return (
        f"{len(samples.lines)} of {samples.num_lines:,} lines: {most}, where there are as many; the others at random."
    )


def _mode_words(report: Mapping[str, Any]) -> str:
    words, counts = _MODES.get(report["mode"], report["mode"]), report["counts"]
    if total := counts.total():
        words += f" {counts[SPLICED]:,} of {total:,} sample lines were spliced"
        words += f", each verified on the {report['checker']}." if report["checker"] else "."
    return str(words)


def _token_row_table(data: RunData) -> NumberTable:
    by_phase = data.history.token_rows
    ways = list(dict.fromkeys(way for counts in by_phase.values() for way in counts))
    rows = []
    for (stage, name), counts in by_phase.items():
        share = number(counts[SPLICED] / max(1, counts.total()), share=True)
        rows.append(Row(f"{stage} {name}", [*(f"{counts[way]:,}" for way in ways), share]))
    caption = "New synthetic rows: spliced, or made from text for a reason. Either way gives the same row."
    return NumberTable(caption, ["round", *ways, "spliced"], rows)


def _setup(data: RunData) -> list[tuple[str, str]]:
    """Return what the figures depend on besides the recipe."""
    history, manifest, results = data.history, data.manifest, data.results
    pairs = [("Run folder", str(data.run.path.resolve()))]
    for name, location in manifest.base_locations.items():
        digest, dtype = manifest.base_hashes.get(name, ""), manifest.dtypes.get(name, "")
        attention = history.models.get(name, {}).get("attention", "")
        how = ", ".join(
            filter(None, (dtype, attention and f"{attention} attention", digest and f"SHA-256 {digest[:16]}…"))
        )
        pairs.append((f"Base of {name}", f"{location} ({how})"))
    notes = [note for model in history.models.values() for note in model["notes"]]
    pairs += [("Notes on the models", "; ".join(dict.fromkeys(notes)))] if notes else []
    devices = [f"{device}: {name}" for device, name in history.hardware.get("devices", {}).items()]
    for noun, plural in (("thread", "threads"), ("process", "processes")):
        devices += [quantity(history.hardware[plural], noun, plural)] if plural in history.hardware else []
    pairs += [("Hardware", "; ".join(devices))] if devices else []
    if peak := results.get("peak_bytes"):
        pairs.append(("Peak memory", ", ".join(f"{device} {size / 2**30:.2f} GiB" for device, size in peak.items())))
    split = data.recipe.data.split
    seeds = [str(data.recipe.seed)] + ([f"{split.seed} for data.split"] if split and split.seed is not None else [])
    pairs.append(("Seed", ", ".join(seeds)))
    steps = [
        f"{name} {len(steps):,}" + (f" of {planned:,} planned" if (planned := history.planned_steps.get(name)) else "")
        for (name, control), steps in sorted(history.steps.items())
        if not control
    ]
    pairs += [("Optimizer steps", "; ".join(steps))] if steps else []
    for part, counts in manifest.lines.items():
        shown = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        pairs.append((f"Text: {part}", shown))
    for name, signature in results.get("signatures", {}).items():
        titles = {"bleu": "BLEU", "chrf": "chrF++"}
        pairs += [(f"{titles.get(metric, metric)} signature, {name}", value) for metric, value in signature.items()]
    pairs.append(("Versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())))
    return pairs
