"""The verdict of a report, in words: what each direction gained, whether chance explains it, and what to try next."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roundtrip.backtranslation.labels import advice, stage_label
from roundtrip.recipe.plan import BASE, Direction, is_control
from roundtrip.report.figures import figures_of, signed
from roundtrip.report.run_data import RunData

# Below it, a difference counts as more than chance.
SIGNIFICANT = 0.05
MAX_NEXT_STEPS = 4
GAINED, LOST, UNCLEAR, KEPT, UNTESTED = "gained", "lost", "unclear", "kept", "untested"


@dataclass(frozen=True)
class DirectionVerdict:
    """What became of one direction.

    Attributes:
        effect: GAINED or LOST: by more than chance explains; UNCLEAR; KEPT: no stage is better on dev than the one that
            the rounds began from; UNTESTED: there is no comparison on test.
        change: of chrF++, from the stage that the rounds began from to the best one; None where there is no score.
        part: what the change was measured on, `test` or `dev`.
    """

    name: str
    effect: str
    change: float | None
    part: str
    sentences: list[str]


@dataclass(frozen=True)
class Verdict:
    headline: str
    directions: list[DirectionVerdict]
    next_steps: list[str]


def verdict(data: RunData) -> Verdict:
    """Return what to say first about a run."""
    each = [_direction_verdict(data, direction) for direction in data.directions]
    return Verdict(_headline(data, each), each, _next_steps(data, each)[:MAX_NEXT_STEPS])


def _headline(data: RunData, verdicts: list[DirectionVerdict]) -> str:
    trained = [stage for stage in data.dev if stage not in {"copy", BASE}]
    if not trained:
        return "No trained stage has been scored yet."
    what = "Back-translation" if data.recipe.rounds.count else "Training"
    over = stage_label(data.start) if data.start != BASE else "the base model"
    changes = f"{_list([_changed(each) for each in verdicts])} over {over}"
    if not data.results:
        return f"The run is in progress, or was ended: {stage_label(trained[-1])} was scored last, on dev."
    if data.recipe.without_dev and not data.test:
        return "There are neither dev nor test pairs: round trips cannot tell what a direction gained."
    by_effect = {effect: [each.name for each in verdicts if each.effect == effect] for effect in _EFFECTS}
    if by_effect[UNTESTED]:
        if not data.test:
            return f"There are no test scores; on dev, {changes}."
        return f"On test, {changes}; whether chance explains it was not tested."
    if len(by_effect[GAINED]) == len(verdicts):
        return f"{what} helped both directions: {changes}."
    if not by_effect[GAINED] + by_effect[LOST]:
        return f"{what} brought no clear gain in either direction."
    unclear = by_effect[UNCLEAR] + by_effect[KEPT]
    parts = [
        f"helped {_list(by_effect[GAINED])}" if by_effect[GAINED] else "",
        f"made {_list(by_effect[LOST])} worse on test" if by_effect[LOST] else "",
        f"brought no clear gain for {_list(unclear)}" if unclear else "",
    ]
    return f"{what} {_list([part for part in parts if part])}."


_EFFECTS = (GAINED, LOST, UNCLEAR, KEPT, UNTESTED)


def _direction_verdict(data: RunData, direction: Direction) -> DirectionVerdict:
    name, start = direction.name, data.start
    best = data.best.get(name, BASE)
    part = "test" if data.test else "dev"
    scores = (data.test or data.dev).get(best, {}).get(name, {})
    before = (data.test or data.dev).get(start, {}).get(name, {})
    if "chrf" not in scores or "chrf" not in before:
        return DirectionVerdict(name, UNTESTED, None, part, ["It has not been scored."])
    change = scores["chrf"] - before["chrf"]
    comparison = _comparison(data.results, name, start, best)
    chrf = figures_of(comparison["metrics"], "chrF++")
    effect = KEPT if part == "test" and best == start else UNTESTED
    if chrf:
        better = GAINED if chrf["system"] > chrf["baseline"] else LOST
        effect = better if chrf["p_value"] < SIGNIFICANT else UNCLEAR
    on = "in round trips of monolingual lines" if part == "dev" and data.recipe.without_dev else f"on {part}"
    if best == start:
        sentences = [f"No later stage is better on dev than {stage_label(best)}: {scores['chrf']:.1f} chrF++ {on}."]
    else:
        over = f"{signed(change)} over {stage_label(start)} ({before['chrf']:.1f}){_significance(chrf, part)}"
        label = stage_label(best)
        of_best = f"{label[:1].upper()}{label[1:]} is its best stage on dev: {scores['chrf']:.1f} chrF++ {on}"
        sentences = [f"{of_best}, {over}."]
    if bleu := figures_of(comparison["metrics"], "BLEU"):
        figures = f"BLEU {bleu['baseline']:.1f} → {bleu['system']:.1f} ({signed(bleu['change'])})"
        sentences.append(f"{figures}{_significance(bleu, part)}.")
    sentences += _further(data, name, best)
    return DirectionVerdict(name, effect, change, part, sentences)


def _further(data: RunData, name: str, best: str) -> list[str]:
    """Return what else is known of a direction: its base, the control, its placeholders."""
    scores, sentences = data.test or data.dev, []
    base = scores.get(BASE, {}).get(name, {})
    if BASE not in {data.start, best} and "chrf" in base:
        sentences.append(f"The base model alone has {base['chrf']:.1f} chrF++.")
    if control := data.results.get("control", {}).get(name):
        figures = figures_of(control["metrics"], "chrF++")
        of_stage = f"({control['baseline']}, on {control['part']})"
        if control["baseline"] == control["system"]:
            sentences.append("Neither the rounds nor as many steps on pairs alone improve it on dev.")
        elif figures:
            change = signed(figures["change"])
            against = f"Against as many steps on pairs alone {of_stage} the rounds bring {change} chrF++"
            sentences.append(f"{against}{_significance(figures, 'test')}.")
    kept = [scores.get(stage, {}).get(name, {}).get("intact") for stage in (data.start, best)]
    if kept[0] is not None and kept[1] is not None:
        was = f" ({stage_label(data.start)}: {kept[0]:.0%})" if best != data.start else ""
        sentences.append(f"Of lines with placeholders or tags, {kept[1]:.0%} keep all{was}.")
    return sentences


def _next_steps(data: RunData, verdicts: list[DirectionVerdict]) -> list[str]:
    recipe, dev = data.recipe, data.dev
    if not data.is_finished:
        return ["Continue it with the command that began it and `--resume`, unless it is running."]
    steps = []
    scores = [(each.name, dev[stage][each.name]) for each in verdicts if (stage := data.best.get(each.name)) in dev]
    copied = dev.get("copy", {})
    weak = [name for name, of_best in scores if of_best["chrf"] <= copied.get(name, of_best)["chrf"] - 1e-9]
    if weak and not recipe.without_dev:
        cure = "more parallel pairs or epochs (`train.parallel_epochs`), or a base that knows both languages"
        steps.append(f"Copying the source is as good on dev as {_list(weak)}: {cure}.")
    last = f"round-{recipe.rounds.count}"
    for each in data.history.rounds.values():
        if each.stage == last and 2 * each.num_rejected > each.candidates:
            share = f"{each.num_rejected / max(each.candidates, 1):.0%} of the sources for {each.direction}"
            steps.append(f"{share} were rejected in the last round: {advice(each.rejected)}.")
    improving = [each.name for each in verdicts if data.best.get(each.name) == last]
    if recipe.rounds.count and improving:
        count = recipe.rounds.count + 1
        steps.append(f"Dev chrF++ of {_list(improving)} still rose in the last round: try `rounds.count = {count}`.")
    kept = [each.name for each in verdicts if each.effect == KEPT]
    if recipe.rounds.count and kept:
        cure = "more text in `data.mono`, another seed, or a base that knows the target language better"
        steps.append(f"The rounds brought {_list(kept)} nothing on dev: {cure}.")
    if recipe.rounds.count and data.start != BASE and not recipe.evaluation.control:
        reason = "to tell what the rounds bring from what longer training would"
        steps.append(f"Train once more with `--set evaluation.control=true` {reason}.")
    if not data.test:
        steps.append(
            "Give `data.test` a few hundred pairs that nothing else has seen, to get scores that can be quoted."
        )
    if any(is_control(stage) for stage in data.best.values()):
        steps.append("More parallel pairs help more here than rounds: on dev the pairs alone did better.")
    if any(each.effect == UNCLEAR for each in verdicts):
        steps.append("Test with more lines, or train with other seeds: the difference is too small for this test set.")
    steps.append("One run has one seed: before a difference of a point is trusted, repeat it with two more.")
    return steps


def _comparison(results: Mapping[str, Any], name: str, start: str, best: str) -> Mapping[str, Any]:
    """Return the recorded comparison of the best stage with the one that the rounds began from; else an empty one."""
    for key in ("gain", "comparison"):
        found: Mapping[str, Any] | None = results.get(key, {}).get(name)
        if found and (found["baseline"], found["system"]) == (start, best):
            return found
    return {"metrics": []}


def _significance(figures: Mapping[str, Any] | None, part: str) -> str:
    if figures is None:
        return "" if part == "dev" else "; whether by chance was not tested"
    p_value = figures["p_value"]
    return f", {'significant' if p_value < SIGNIFICANT else 'not significant'} (paired bootstrap, p = {p_value:.3f})"


def _changed(each: DirectionVerdict) -> str:
    return each.name if each.change is None else f"{each.name} {signed(each.change)} chrF++"


def _list(names: list[str]) -> str:
    return " and ".join(names)
