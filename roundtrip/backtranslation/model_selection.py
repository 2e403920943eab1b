"""Model selection: after each stage the weights are kept and scored on dev; each direction has its own best stage."""

from dataclasses import replace
from functools import partial
from typing import Any

from roundtrip.backtranslation import dev_scoring, reporting
from roundtrip.backtranslation.checkpoint import State
from roundtrip.backtranslation.context import RunContext
from roundtrip.backtranslation.dev_scoring import mean_chrf
from roundtrip.backtranslation.early_stopping import ScoresByStage, has_stopped_improving
from roundtrip.backtranslation.run_folder import BEST
from roundtrip.recipe import plan
from roundtrip.recipe.plan import BASE, INITIAL, PRETRAIN, Phase, directions, epochs_may_end_early
from roundtrip.runtime.atomic_io import atomic_path, write_json
from roundtrip.runtime.errors import quantity

# Stages that are no translators yet.
_UNTRAINED = {"copy", BASE, PRETRAIN}


def score_baseline(context: RunContext, state: State) -> State:
    """Score copying the source and the bare base on dev, the floor of every comparison."""
    if context.recipe.without_dev:
        measure = f"the round-trip chrF++ of {len(context.corpora.dev)} lines. Copying is perfect by it"
        cure = "watch the copies, and prefer a few dozen real pairs"
        context.events.say(f"  warning: there are no dev pairs; stages are chosen by {measure}: {cure}")
    return _score(context, replace(state, scores={"copy": dev_scoring.score_copies(context, "dev")}), BASE)


def score_initial(context: RunContext, state: State) -> State:
    """Keep and score on dev the adapters that both directions start from."""
    return _score(context, _keep(context, state, INITIAL), INITIAL)


def end_stage(context: RunContext, state: State, phases: list[Phase], phase: Phase) -> State:
    """Keep both directions as they are now, and score them on dev; rounds without improvement may end here."""
    state = _score(context, _keep(context, state, phase.stage), phase.stage)
    patience = context.recipe.train.patience
    if phase.round and patience:
        means = [mean_chrf(scores) for stage, scores in state.scores.items() if stage not in _UNTRAINED]
        after = plan.next_phase(phases, phase, stop_early=True, trained=state.phase_steps)
        if has_stopped_improving(means, patience) and after != state.phase:
            context.events.say(
                f"  dev chrF++ has not improved for {quantity(patience, 'round')}; no further round starts"
            )
            state = replace(state, phase=after)
    return state


def _keep(context: RunContext, state: State, stage: str) -> State:
    """Write the weights of both directions as those of a stage."""
    path = context.run.adapters / stage

    def export() -> None:
        with atomic_path(path) as temporary:
            for name, translator in context.translators.items():
                translator.direction_model.export(temporary / name)

    return replace(state, files=state.files | context.write(export, path))


def end_epochs(context: RunContext, state: State, phase: Phase) -> tuple[State, bool]:
    """Measure the dev loss after an epoch, where epochs have patience; return also whether both directions stop."""
    recipe, events, name = context.recipe, context.events, phase.direction.name
    if not (phase.parallel and epochs_may_end_early(recipe)) or phase.control_for is not None:
        return state, False
    losses = [*state.dev_losses.get(name, []), dev_scoring.dev_loss(context, phase.direction)]
    events.say(f"  {name}: dev loss {losses[-1]:.3f} nats per label after epoch {len(losses)}")
    state = replace(state, dev_losses=state.dev_losses | {name: losses})
    if phase.direction != directions(recipe)[-1]:
        return state, False
    patience = recipe.train.patience
    enough = all(has_stopped_improving(each, patience, lower_is_better=True) for each in state.dev_losses.values())
    if enough and not phase.ends_stage:
        events.say(f"  {phase.stage}: dev loss has not improved for {quantity(patience, 'epoch')}; stopping this stage")
    return state, enough


def score_test_set(context: RunContext, state: State) -> None:
    """Score every kept stage on test, then write `metrics.json` and show the table."""
    run, scores = context.run, state.scores
    worse = [name for name, stage in state.best.items() if scores[BASE][name]["chrf"] >= scores[stage][name]["chrf"]]
    # Copies survive a round trip, so that without dev pairs a base may look better than it is.
    if worse and not context.recipe.without_dev:
        names = " and ".join(worse)
        context.events.say(f"  warning: {names}: no stage is better than the bare base on dev; the best one is kept")
    stages = [stage for stage in scores if stage != "copy"] if len(context.corpora.test) else []
    test = {"copy": dev_scoring.score_copies(context, "test")} if stages else {}
    for stage in stages:
        for name, translator in context.translators.items():
            translator.direction_model.restore(None if stage == BASE else run.adapters / stage / name)
        test[stage] = dev_scoring.score_translations(context, "test", stage)
    results: dict[str, Any] = {}

    def write() -> None:
        results.update(reporting.collect_metrics(context, state, test, compared_stages(scores)))
        context.events.log("end", **{key: results[key] for key in ("seconds", "best", "peak_bytes")})
        write_json(run.metrics, results)

    context.write(write, run.metrics, run.events)
    context.report_evaluation()
    if context.processes.is_main:
        reporting.show_metrics(results, run, context.events.console)


def _score(context: RunContext, state: State, stage: str) -> State:
    """Score a stage on dev; of each direction the best stage is kept as `best`."""
    stage_scores = dev_scoring.score_translations(context, "dev", stage)
    scores = state.scores | {stage: stage_scores}
    best = best_stages(scores, together=context.recipe.without_dev)
    if stage in best.values() and stage != BASE:
        context.write(lambda: context.run.keep_best(best), context.run.adapters / BEST)
    seconds = {activity: round(value, 1) for activity, value in context.events.seconds.items()}
    context.events.log("dev", stage=stage, scores=stage_scores, best=best, seconds=seconds)
    context.report_evaluation()
    shown = [
        f"{name} chrF++ {values['chrf']:.1f} BLEU {values['bleu']:.1f}"
        + (f" placeholders kept {values['intact']:.0%}" if "intact" in values else "")
        + (f" copies {values['copied']:.0%}" if "copied" in values else "")
        for name, values in stage_scores.items()
    ]
    what = "round trip" if context.recipe.without_dev else "dev"
    context.events.say(f"  {what} after {stage}: {', '.join(shown)}")
    return replace(state, scores=scores, best=best)


def compared_stages(scores: ScoresByStage) -> dict[str, tuple[str, str]]:
    """Return by direction the best stages of the control and of the rounds; nothing where there is no control.

    What came before the rounds belongs to both.
    """
    rounds = {stage: of_stage for stage, of_stage in scores.items() if not plan.is_control(stage)}
    control = {stage: of_stage for stage, of_stage in scores.items() if plan.control_stage(stage) not in scores}
    if len(rounds) == len(scores):
        return {}
    first, second = best_stages(control, together=False), best_stages(rounds, together=False)
    return {name: (first[name], second[name]) for name in first}


def best_stages(scores: ScoresByStage, *, together: bool) -> dict[str, str]:
    """Return by direction the trained stage with the best dev chrF++, the first of equals; else the base.

    `together`, the mean of both directions decides for both: a round trip scores the pair, not a direction.
    """
    trained = [stage for stage in scores if stage not in _UNTRAINED]
    trained = trained or [stage for stage in scores if stage == PRETRAIN]

    def score(name: str, stage: str) -> float:
        return mean_chrf(scores[stage]) if together else scores[stage][name]["chrf"]

    return {name: max(trained, key=partial(score, name), default=BASE) for name in scores["copy"]}
