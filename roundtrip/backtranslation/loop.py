"""The back-translation loop: each direction generates synthetic sources for the other, in turns."""

from roundtrip.backtranslation.examples import PhaseExamples
from roundtrip.backtranslation.model_selection import score_test_set
from roundtrip.backtranslation.trainer import Trainer
from roundtrip.recipe.plan import Phase


def back_translate(trainer: Trainer) -> None:
    """Train both directions from where `trainer.state` stands to the end of the recipe, then score the test set.

    A phase trains one direction, the forward one, once. In a round it

    1. takes the next real lines of its target language,
    2. translates them with the reverse direction: these are synthetic sources,
    3. filters out bad ones, counted by reason,
    4. selects one candidate of each line,
    5. mixes in replayed, parallel and denoising examples,
    6. builds token rows, by the splice where it is proved exact,
    7. takes the train steps;

    and after the last phase of a stage the run

    8. validates both directions on dev,
    9. keeps the best stage of each.

    With `evaluation.control` it then starts again from where the rounds began, for as many steps on pairs alone.

    Everything random is derived from the seed and the phase, so a resumed run equals an uninterrupted one.
    """
    trainer.score_baseline()
    while (phase := trainer.next_phase()) is not None:
        examples = trainer.read_back(phase) or trainer.keep_examples(phase, make_examples(trainer, phase))
        with trainer.prepare(phase, examples) as job:  # 6
            for rows in job.batches[trainer.state.step :]:
                trainer.train_step(job, rows)  # 7
                trainer.save_if_due()
        if trainer.end_phase(job):
            trainer.validate_and_keep_best(phase)  # 8, 9
        trainer.save()
        trainer.stop_if_requested()
    score_test_set(trainer.context, trainer.state)


def make_examples(trainer: Trainer, phase: Phase) -> PhaseExamples:
    """Return the examples of a phase: steps 1 to 5 in a round, real text elsewhere."""
    synthesizer, state = trainer.synthesizer, trainer.state
    if not phase.round:
        return synthesizer.real_examples(phase, state)
    lines = synthesizer.take_lines(phase, state)  # 1
    candidates = synthesizer.translate(phase, lines)  # 2
    filtered = synthesizer.filter(phase, candidates)  # 3
    selected = synthesizer.select(phase, lines, filtered)  # 4
    return synthesizer.mix(phase, lines, candidates, selected)  # 5
