"""What becomes of a text that goes there and back: synthetic sources are translated and held against their targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from roundtrip.engine.request import Callbacks
from roundtrip.engine.translator import Translator
from roundtrip.evaluation.metrics import sentence_chrf
from roundtrip.recipe.schema import Generate


def round_trip_chrf(
    learner: Translator,
    pairs: Sequence[tuple[str, str]],
    settings: Generate,
    on_progress: Callable[[int, int], None] = lambda rows, tokens: None,
) -> list[float]:
    """Return the chrF of each target against what the learner makes of its synthetic source, greedily; 0 to 100.

    Args:
        pairs: (synthetic source, real target).
        settings: engine and batch size; how the sources were written does not matter here.
        tell: called now and then; may raise to stop.

    Returns:
        One value a pair, 0 where a source is too long for the model: it cannot be learnt from either.
    """
    greedy = settings.model_copy(update={"temperature": 0.0, "num_candidates": 1})
    sources = [source for source, _ in pairs]
    fitting = [place for place, fits in enumerate(learner.can_translate(sources, greedy)) if fits]
    written = learner.translate(
        [sources[i] for i in fitting], greedy, 0, callbacks=Callbacks(lambda rows, tokens: on_progress(0, tokens))
    )
    found = [0.0] * len(pairs)
    for place, text in zip(fitting, written.texts, strict=True):
        found[place] = sentence_chrf(text, pairs[place][1])
    return found
