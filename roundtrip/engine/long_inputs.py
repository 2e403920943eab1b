"""Translating texts of any length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from roundtrip.data.normalize import clean
from roundtrip.engine.request import Callbacks
from roundtrip.engine.translator import Translator
from roundtrip.recipe.language_codes import is_spaceless
from roundtrip.recipe.schema import Generate

# Twenty pages. Splitting into sentences takes time that may grow with the square of a line's length.
MAX_LINE_CHARS = 50_000
CUT = "the translation was cut at its length limit"


@dataclass(frozen=True)
class Candidates:
    """The translations of a clean text, `num_candidates` of them, and whether each ended within its length limit.

    Attributes:
        too_long: why there is none, where the text is too long; else empty.
    """

    texts: list[str]
    finished: list[bool]
    too_long: str = ""


def translate_candidates(
    translator: Translator,
    texts: Sequence[str],
    settings: Generate,
    seed: int = 0,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 (frozen)
) -> list[Candidates]:
    """Translate clean texts; an empty one stays empty, one too long for the model goes sentence by sentence."""
    split = [_parts(translator, text, settings) for text in texts]
    flat = [part for parts, _ in split for part in parts]
    translations = translator.translate(flat, settings, seed, callbacks=callbacks) if flat else None
    separator = "" if is_spaceless(translator.direction.target) else " "
    results, start = [], 0
    for parts, too_long in split:
        # Candidate k of a text consists of candidate k of each of its parts.
        indices = [
            range(start + k, start + len(parts) * settings.num_candidates, settings.num_candidates)
            for k in range(settings.num_candidates)
        ]
        start += len(parts) * settings.num_candidates
        if translations is None or not parts:
            results.append(Candidates([""], [True], too_long))
            continue
        # Clean, so that no control sequence reaches a terminal.
        joined = [separator.join(" ".join(clean(translations.texts[i]).split()) for i in each) for each in indices]
        results.append(Candidates(joined, [all(translations.finished[i] for i in each) for each in indices]))
    return results


def _parts(translator: Translator, text: str, settings: Generate) -> tuple[list[str], str]:
    """Return the parts of a text that are translated by themselves, or why it is too long."""
    import sentencex

    if not text:
        return [], ""
    if len(text) > MAX_LINE_CHARS:
        return [], f"more than {MAX_LINE_CHARS:,} characters"
    if all(translator.can_translate([text], settings)):
        return [text], ""
    pieces = sentencex.segment(translator.direction.source.partition("-")[0], text)
    parts = [piece.strip() for piece in pieces if piece.strip()]
    fits = translator.can_translate(parts, settings)
    if all(fits):
        return parts, ""
    return [], f"a sentence of {len(parts[fits.index(False)].split())} words is too long"


def translate_any_length(
    translator: Translator,
    texts: Sequence[str],
    settings: Generate,
    too_long: list[str],
    truncated: list[str],
) -> Iterator[str]:
    """Translate clean lines greedily, see `translate_candidates`.

    Args:
        too_long: gets a message for each line that is too long; its translation is empty.
        truncated: gets a message for each line whose translation reached its length limit.
    """
    for number, candidates in enumerate(translate_candidates(translator, texts, settings), 1):
        if candidates.too_long:
            too_long.append(f"line {number}: {candidates.too_long}")
        if not candidates.finished[0]:
            truncated.append(f"line {number}: {CUT}")
        yield candidates.texts[0]
