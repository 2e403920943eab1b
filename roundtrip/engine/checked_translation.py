"""Translations that keep the placeholders of their sources, chosen among several candidates where one breaks them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from roundtrip.data.placeholders import errors, first_intact
from roundtrip.engine.long_inputs import CUT, Candidates, translate_candidates
from roundtrip.engine.request import Callbacks
from roundtrip.engine.translator import Translator
from roundtrip.evaluation.metrics import sentence_chrf
from roundtrip.recipe.sampling_schedule import SAMPLING_TEMPERATURE
from roundtrip.recipe.schema import Generate

# How many candidates are sampled for a text whose greedy translation cannot be used.
NUM_RETRIES = 8
# Padded tokens of one batch in which candidates are scored.
_SCORING_TOKENS = 8192


@dataclass(frozen=True)
class CheckedTranslation:
    """A translation, and what is wrong with it; nothing is where `problem` is empty."""

    text: str
    problem: str = ""


def translate_checked(
    forward: Translator,
    texts: Sequence[str],
    settings: Generate,
    reverse: Translator | None = None,
    samples: int = 0,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 (frozen)
) -> list[CheckedTranslation]:
    """Translate clean texts; the first candidate is taken that is complete and keeps the placeholders of its source.

    Args:
        settings: of the first candidate, by greedy or beam search.
        reverse: the other direction, which ranks `samples` by the likelihood of the source.
        samples: candidates that are sampled for each text; where 0, only for texts without a usable translation.
        callbacks: are called for texts that are translated again too.
    """
    pools = translate_candidates(forward, texts, settings, callbacks=callbacks)
    again = [i for i, pool in enumerate(pools) if not pool.too_long and (samples or _usable(texts[i], pool) is None)]
    if again:
        sampling = settings.model_copy(
            update={"temperature": SAMPLING_TEMPERATURE, "num_candidates": samples or NUM_RETRIES}
        )
        sampled = translate_candidates(forward, [texts[i] for i in again], sampling, callbacks=callbacks)
        for i, more in zip(again, sampled, strict=True):
            pools[i] = Candidates(pools[i].texts + more.texts, pools[i].finished + more.finished, more.too_long)
        if samples and reverse is not None:
            _rank(reverse, texts, pools, again, settings)
    return [_choose(text, pool) for text, pool in zip(texts, pools, strict=True)]


def _usable(source: str, pool: Candidates) -> int | None:
    """Return the first candidate that is complete and intact."""
    complete = [i for i, text in enumerate(pool.texts) if text and pool.finished[i]]
    chosen = first_intact(source, [pool.texts[i] for i in complete])
    return None if chosen is None else complete[chosen]


def _rank(
    reverse: Translator, texts: Sequence[str], pools: list[Candidates], indices: Sequence[int], settings: Generate
) -> None:
    """Sort candidates by the likelihood of their source, as training selects them; copies of it come last."""
    keys, pairs = [], []
    for i in indices:
        for k, candidate in enumerate(pools[i].texts):
            if candidate not in ("", texts[i]) and all(reverse.can_translate([candidate, texts[i]], settings)):
                keys.append((i, k))
                pairs.append((candidate, texts[i]))
    scores = dict(zip(keys, reverse.likelihoods(pairs, _SCORING_TOKENS) if pairs else [], strict=True))
    for i in indices:
        pool = pools[i]
        likelihoods = [scores.get((i, k), -math.inf) for k in range(len(pool.texts))]
        order = sorted(range(len(pool.texts)), key=likelihoods.__getitem__, reverse=True)
        pools[i] = Candidates([pool.texts[k] for k in order], [pool.finished[k] for k in order], pool.too_long)


def _choose(source: str, pool: Candidates) -> CheckedTranslation:
    if pool.too_long:
        return CheckedTranslation("", pool.too_long)
    if not source:
        return CheckedTranslation("")
    if (chosen := _usable(source, pool)) is not None:
        return CheckedTranslation(pool.texts[chosen])
    text = next(filter(None, pool.texts), "")
    if not text:
        return CheckedTranslation("", "the translation is empty")
    broken = errors(source, text)
    return CheckedTranslation(text, str(broken[0]) if broken else CUT)


def back_translations(
    reverse: Translator, pairs: Sequence[tuple[str, str]], settings: Generate
) -> list[tuple[str, float]]:
    """Return for each (source, translation) its translation back, and the chrF (0 to 100) of that to the source."""
    results = translate_candidates(reverse, [translation for _, translation in pairs], settings)
    backs = [result.texts[0] for result in results]
    return [(back, sentence_chrf(back, source)) for back, (source, _) in zip(backs, pairs, strict=True)]
