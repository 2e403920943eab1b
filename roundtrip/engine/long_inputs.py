"""Translating any line: an empty one stays empty, one too long for the model goes sentence by sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from roundtrip.data.language_codes import is_spaceless
from roundtrip.data.normalize import clean
from roundtrip.engine.translator import Translator
from roundtrip.recipe.schema import Generate


def translate_any_length(
    one: Translator,
    texts: Sequence[str],
    settings: Generate,
    refused: list[str],
    cut: list[str],
    start: int = 0,
) -> Iterator[str]:
    """Translate clean lines; an empty one stays empty, one too long for the model goes sentence by sentence.

    Args:
        refused: gets a message for each line with a sentence too long for the model; the line comes out empty.
        cut: gets a message for each line whose translation reached its length limit.
        start: number of lines before these, for messages.

    Returns:
        One translation per text, in order.
    """
    pieces: list[list[str]] = []
    for number, text in enumerate(texts):
        parts = [text] if text else []
        if text and not fits(one, text, settings):
            parts = sentences(text, one.direction.source)
            long = [part for part in parts if not fits(one, part, settings)]
            if long:
                refused.append(f"line {start + number + 1}: a sentence of {len(long[0].split())} words is too long")
                parts = []
        pieces.append(parts)
    flat = [part for parts in pieces for part in parts]
    whole = one.write(flat, settings, 0) if flat else None
    written = zip(whole.texts, whole.finished, strict=True) if whole else iter(())
    joint = "" if is_spaceless(one.direction.target) else " "
    for number, parts in enumerate(pieces):
        found = [next(written) for _ in parts]
        if not all(finished for _, finished in found):
            cut.append(f"line {start + number + 1}: the translation was cut at its length limit")
        # Clean, so that a terminal has nothing to obey.
        yield joint.join(" ".join(clean(text).split()) for text, _ in found)


def fits(one: Translator, text: str, settings: Generate) -> bool:
    """Return whether a text and its translation fit into the model."""
    return one.can_translate([text], settings)[0]


def sentences(text: str, language: str) -> list[str]:
    """Split a text into sentences."""
    import sentencex

    return [part for piece in sentencex.segment(language.partition("-")[0], text) if (part := piece.strip())]
