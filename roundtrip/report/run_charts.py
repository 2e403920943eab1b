"""The charts of one run or of several, from their values."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from roundtrip.recipe.plan import control_stage, is_control
from roundtrip.report.charts import NUM_COLOURS, Axis, Curve, bar_chart, line_chart, range_chart
from roundtrip.report.event_history import Step
from roundtrip.report.run_data import RunData

# Rows of a chart of rounds: of more, the last ones are drawn.
MAX_ROWS = 16
# Marks of stages on a curve over steps.
MAX_MARKS = 4


@dataclass(frozen=True)
class Chart:
    """A drawing with its title and legend; colours of the legend are numbers from 1."""

    title: str
    note: str
    svg: Markup
    legend: tuple[tuple[int, str], ...] = ()


def training_charts(data: RunData) -> list[Chart]:
    """Return the curves over the optimizer steps of a run."""
    starts = data.history.stage_starts.get(data.directions[0].name, {})
    marks = {stage: float(step) for stage, step in starts.items() if not is_control(stage)}
    marks = dict(list(marks.items())[:MAX_MARKS])
    axis, log = Axis("optimizer step", marks=marks), Axis("optimizer step", marks=marks, log=True)
    figures: list[tuple[str, str, str, Callable[[Step], float], bool, Axis]] = [
        ("loss", "Training loss", "nats per label", lambda step: step.loss, True, axis),
        ("lr", "Learning rate", "", lambda step: step.lr, False, axis),
        ("grad-norm", "Gradient norm", "before clipping", lambda step: step.grad_norm, True, log),
        ("rate", "Training speed", "tokens per second while training", lambda step: step.rate, True, axis),
    ]
    return _present(
        (title, note, line_chart(name, title, [*_step_curves(data, figure, noisy, with_control=name != "lr")], on), ())
        for name, title, note, figure, noisy, on in figures
    )


def _step_curves(data: RunData, figure: Callable[[Step], float], noisy: bool, *, with_control: bool) -> Iterable[Curve]:
    for (name, control), steps in sorted(data.history.steps.items()):
        if control and not with_control:  # which has the learning rates of what it stands for
            continue
        numbers = sorted(steps)
        values = [figure(steps[number]) for number in numbers]
        label = f"{name}, pairs" if control else name
        yield Curve(label, numbers, values, noisy, dashed=control, colour=_colour(data, name))


def _colour(data: RunData, name: str) -> int:
    return [direction.name for direction in data.directions].index(name)


def dev_charts(data: RunData) -> list[Chart]:
    """Return the dev scores by stage, those of the control beside the rounds that it stands for."""
    stages = [stage for stage in data.dev if stage != "copy" and not is_control(stage)]
    what = "of round trips of monolingual lines" if data.recipe.without_dev else "on dev, by stage"
    charts = []
    for metric, title in (("chrf", "chrF++"), ("bleu", "BLEU"), ("copied", "Copies of the source")):
        curves = []
        for direction in data.directions:
            curves += [_dev_curve(data, stages, metric, direction.name)]
            controls = [control_stage(stage) if control_stage(stage) in data.dev else "" for stage in stages]
            if any(controls):
                pairs = zip(stages, controls, strict=True)
                beside = [stage if stage == data.start else control for stage, control in pairs]
                curves += [_dev_curve(data, beside, metric, direction.name, control=True)]
        charts.append((title, what, line_chart(f"dev-{metric}", f"{title} {what}", curves, Axis("", stages)), ()))
    return _present(charts)


def _dev_curve(data: RunData, stages: Sequence[str], metric: str, name: str, *, control: bool = False) -> Curve:
    scores = [(i, data.dev.get(stage, {}).get(name, {}).get(metric)) for i, stage in enumerate(stages)]
    points = [(float(i), score) for i, score in scores if score is not None]
    label = f"{name}, pairs" if control else name
    return Curve(label, [x for x, _ in points], [y for _, y in points], dashed=control, colour=_colour(data, name))


def round_charts(data: RunData) -> list[Chart]:
    """Return what became of the candidates of each round, and how long synthetic sources and targets are."""
    rounds = [each for each in data.history.rounds.values() if each.candidates][-MAX_ROWS:]
    labels = [f"{each.stage} {each.direction}" for each in rounds]
    reasons = [reason for each in rounds for reason, _ in each.rejected.most_common()]
    reasons = sorted(dict.fromkeys(reasons), key=lambda reason: -sum(each.rejected[reason] for each in rounds))
    shown = reasons if len(reasons) <= NUM_COLOURS else reasons[: NUM_COLOURS - 1]
    bars: dict[str, dict[str, float]] = {}
    for label, each in zip(labels, rounds, strict=True):
        bars[label] = {reason: 100 * each.rejected[reason] / each.candidates for reason in shown}
        if shown != reasons:
            others = each.num_rejected - sum(each.rejected[reason] for reason in shown)
            bars[label]["other reasons"] = 100 * others / each.candidates
    parts = [*shown, *(["other reasons"] if shown != reasons else [])]
    legend = tuple(enumerate((part.replace("_", " ") for part in parts), start=1))
    rejected = bar_chart("rejected", "Rejected synthetic sources, by reason", bars, " %")
    lengths = {label: each.chars for label, each in zip(labels, rounds, strict=True) if each.chars}
    ranges = range_chart("lengths", "Characters of synthetic sources and their targets", lengths, "")
    sides = ((1, "source (synthetic)"), (2, "target (real)"))
    stages = list(dict.fromkeys(each.stage for each in data.history.rounds.values()))
    curves = [_copy_curve(data, stages, direction.name) for direction in data.directions]
    # Of a single round, the table has them.
    curves = curves if stages[1:] and any(any(curve.y) for curve in curves) else []
    copies = line_chart("copies", "Copies among the synthetic sources", curves, Axis("", stages), " %")
    return _present(
        [
            ("Rejected synthetic sources", "% of the candidates of a round, by reason", rejected, legend),
            ("Lengths", "characters: first decile, median, last decile", ranges, sides),
            ("Copies among the sources", "% of the candidates of a round, all of them rejected", copies, ()),
        ]
    )


def _copy_curve(data: RunData, stages: Sequence[str], name: str) -> Curve:
    points = [
        (float(i), 100 * each.rejected["copy"] / each.candidates)
        for i, stage in enumerate(stages)
        if (each := data.history.rounds.get((stage, name))) and each.candidates
    ]
    return Curve(name, [x for x, _ in points], [y for _, y in points], colour=_colour(data, name))


def time_chart(data: RunData) -> list[Chart]:
    seconds = dict(sorted(data.seconds.items(), key=lambda item: -item[1]))
    in_minutes = sum(seconds.values()) > 1200
    bars = {activity: {"time": value / 60 if in_minutes else value} for activity, value in seconds.items()}
    svg = bar_chart("time", "Time by activity", bars, " min" if in_minutes else " s")
    return _present([("Time by activity", "minutes" if in_minutes else "seconds", svg, ())])


def comparison_charts(runs: Sequence[RunData], labels: Sequence[str]) -> list[Chart]:
    """Return the dev chrF++ by stage of several runs in the same two languages, one chart for each direction."""
    stages = list(dict.fromkeys(stage for data in runs for stage in data.dev if stage != "copy"))
    charts = []
    for direction in runs[0].directions:
        curves = []
        for number, (data, label) in enumerate(zip(runs, labels, strict=True)):
            curves.append(replace(_dev_curve(data, stages, "chrf", direction.name), label=label, colour=number))
        title = f"chrF++ on dev, {direction.name}"
        svg = line_chart(f"dev-{direction.source}", title, curves, Axis("", stages))
        charts.append((title, "by stage", svg, ()))
    return _present(charts)


def _present(charts: Iterable[tuple[str, str, Markup | None, tuple[tuple[int, str], ...]]]) -> list[Chart]:
    """Return the charts that have something to show."""
    return [Chart(title, note, svg, legend) for title, note, svg, legend in charts if svg is not None]
