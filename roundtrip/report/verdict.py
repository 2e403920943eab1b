"""The verdict of a report, in words: what each direction gained, whether chance explains it, and what to try next."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from roundtrip.backtranslation.labels import advice, stage_label
from roundtrip.backtranslation.results import ScoresOfStage
from roundtrip.evaluation.tables import SIGNIFICANT, significance
from roundtrip.recipe.plan import BASE, Direction, is_control
from roundtrip.report.figures import figures_of, signed
from roundtrip.report.run_data import RunData

MAX_NEXT_STEPS = 4
GAINED, LOST, UNCLEAR, KEPT, UNTESTED = "gained", "lost", "unclear", "kept", "untested"


@dataclass(frozen=True)
class DirectionVerdict:
    """What became of one direction.

    Attributes:
        effect: GAINED or LOST: by more than chance explains; UNCLEAR; KEPT: no stage is better on dev than the one that
            the rounds began from; UNTESTED: there is no comparison on test.
        change: of chrF++, from the stage that the rounds began from to the best one, or from the control to the rounds;
            None where there is no score.
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
    changes = _list([_changed(each) for each in verdicts])
    if not data.results:
        return f"The run is in progress, or was ended: {stage_label(trained[-1])} was scored last, on dev."
    if data.recipe.without_dev and not data.test:
        return "There are neither dev nor test pairs: round trips cannot tell what a direction gained."
    by_effect = {effect: [each.name for each in verdicts if each.effect == effect] for effect in _EFFECTS}
    if by_effect[UNTESTED]:
        if not data.test:
            return f"There are no test scores; on dev, {changes} against {_over(data)}."
        return f"On test, {changes} against {_over(data)}; whether chance explains it was not tested."
    if len(by_effect[GAINED]) == len(verdicts):
        return f"{what} helped both directions: {changes} over {_over(data)}."
    if not by_effect[GAINED] + by_effect[LOST]:
        return f"{what} brought no clear gain in either direction."
    unclear = by_effect[UNCLEAR] + by_effect[KEPT]
    phrases = ("helped {}", "made {} worse on test", "brought no clear gain for {}")
    if data.results.get("control"):
        than = f"than {_over(data)}"
        phrases = (f"brought {{}} more {than}", f"brought {{}} less {than}", "made no clear difference for {}")
    groups = zip(phrases, (by_effect[GAINED], by_effect[LOST], unclear), strict=True)
    return f"{what} {_list([phrase.format(_list(names)) for phrase, names in groups if names])}."


_EFFECTS = (GAINED, LOST, UNCLEAR, KEPT, UNTESTED)


def _direction_verdict(data: RunData, direction: Direction) -> DirectionVerdict:
    """Compare the best stage of a direction with what the rounds began from, or that of the rounds with the control."""
    name, control = direction.name, data.results.get("control", {}).get(direction.name)
    before, best = (control["baseline"], control["system"]) if control else (data.start, data.best.get(name, BASE))
    part, scores = ("test", data.test) if data.test else ("dev", data.dev)
    chrf, chrf_before = (scores.get(stage, {}).get(name, {}).get("chrf") for stage in (best, before))
    if chrf is None or chrf_before is None:
        return DirectionVerdict(name, UNTESTED, None, part, ["It has not been scored."])
    comparison = control or _comparison(data.results, name, before, best)
    tested = figures_of(comparison["metrics"], "chrF++")
    effect = KEPT if part == "test" and best == before else UNTESTED
    if tested and part == "test" and best != before:
        better = GAINED if tested["change"] > 0 else LOST
        effect = better if tested["p_value"] < SIGNIFICANT else UNCLEAR
    on = "in round trips of monolingual lines" if part == "dev" and data.recipe.without_dev else f"on {part}"
    label = stage_label(best)
    if best == before:
        others = "Neither the rounds nor as many steps on pairs alone are" if control else "No later stage is"
        sentences = [f"{others} better on dev than {label}: {chrf:.1f} chrF++ {on}."]
    else:
        against = f"{signed(chrf - chrf_before)} against {_over(data)} ({chrf_before:.1f}){_significance(tested, part)}"
        is_best = f"{label[:1].upper()}{label[1:]} is {'the best round' if control else 'its best stage'} on dev"
        is_best = f"No round is better on dev than {label}" if control and best == data.start else is_best
        sentences = [f"{is_best}: {chrf:.1f} chrF++ {on}, {against}."]
        if bleu := figures_of(comparison["metrics"], "BLEU"):
            figures = f"BLEU {bleu['baseline']:.1f} → {bleu['system']:.1f} ({signed(bleu['change'])})"
            sentences.append(f"{figures}{_significance(bleu, part)}.")
    sentences += _further(data, name, scores, {before, best})
    return DirectionVerdict(name, effect, chrf - chrf_before, part, sentences)


def _over(data: RunData) -> str:
    """Return what the gains of a verdict are measured from."""
    if data.results.get("control"):
        return "as many steps on pairs alone"
    return stage_label(data.start) if data.start != BASE else "the base model"


def _further(data: RunData, name: str, scores: Mapping[str, ScoresOfStage], shown: Container[str]) -> list[str]:
    """Return what else is known of a direction: the stages that it came from, which weights are kept, placeholders."""
    sentences, best = [], data.best.get(name, BASE)
    for stage in dict.fromkeys((data.start, BASE)):
        if stage not in shown and "chrf" in (of_stage := scores.get(stage, {}).get(name, {})):
            label = "The base model alone" if stage == BASE else f"After {stage_label(stage)} it"
            sentences.append(f"{label} has {of_stage['chrf']:.1f} chrF++.")
    if is_control(best):
        sentences.append(f"Its weights are those of {stage_label(best)}.")
    kept, kept_before = (scores.get(stage, {}).get(name, {}).get("intact") for stage in (best, data.start))
    if kept is not None and kept_before is not None:
        was = f" ({stage_label(data.start)}: {kept_before:.0%})" if best != data.start else ""
        sentences.append(f"Of lines with placeholders or tags, {kept:.0%} keep all{was}.")
    return sentences


def _next_steps(data: RunData, verdicts: list[DirectionVerdict]) -> list[str]:
    recipe, dev = data.recipe, data.dev
    if not data.is_finished:
        return ["Continue it with the command that began it and `--resume`, unless it is running."]
    steps = []
    for floor, words in (("copy", "copying the source"), (BASE, "the base model alone")):
        of_floor = {each.name: dev.get(floor, {}).get(each.name, {}).get("chrf", -1.0) for each in verdicts}
        of_best = {name: dev.get(data.best.get(name, ""), {}).get(name, {}).get("chrf", 0.0) for name in of_floor}
        weak = [name for name in of_floor if of_best[name] <= of_floor[name] and data.best.get(name) != BASE]
        if weak and not recipe.without_dev:
            cure = "more parallel pairs or epochs (`train.parallel_epochs`), or a base that knows both languages"
            steps.append(f"On dev, {words} is at least as good as {_list(weak)}: {cure}.")
            break
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
    return f", {significance(p_value)} (paired bootstrap, p = {p_value:.3f})"


def _changed(each: DirectionVerdict) -> str:
    return each.name if each.change is None else f"{each.name} {signed(each.change)} chrF++"


def _list(names: list[str]) -> str:
    return " and ".join(names)
