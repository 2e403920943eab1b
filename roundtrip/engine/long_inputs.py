"""Translating lines of any length."""

from collections.abc import Iterator, Sequence

from roundtrip.data.normalize import clean
from roundtrip.engine.translator import Translator
from roundtrip.recipe.language_codes import is_spaceless
from roundtrip.recipe.schema import Generate

# Twenty pages. Splitting into sentences takes time that may grow with the square of a line's length.
MAX_LINE_CHARS = 50_000


def translate_any_length(
    translator: Translator,
    texts: Sequence[str],
    settings: Generate,
    too_long: list[str],
    truncated: list[str],
    start: int = 0,
) -> Iterator[str]:
    """Translate clean lines; an empty one stays empty, one too long for the model goes sentence by sentence.

    Args:
        too_long: gets a message for each line with a sentence too long for the model, or of more than MAX_LINE_CHARS;
            its translation is empty.
        truncated: gets a message for each line whose translation reached its length limit.
        start: number of lines before these, for messages.
    """
    import sentencex

    parts_of_lines: list[list[str]] = []
    for number, text in enumerate(texts, start + 1):
        parts = [text] if text else []
        if len(text) > MAX_LINE_CHARS:
            too_long.append(f"line {number}: more than {MAX_LINE_CHARS:,} characters")
            parts = []
        elif text and not all(translator.can_translate(parts, settings)):
            pieces = sentencex.segment(translator.direction.source.partition("-")[0], text)
            parts = [piece.strip() for piece in pieces if piece.strip()]
            fits = translator.can_translate(parts, settings)
            if not all(fits):
                long = parts[fits.index(False)]
                too_long.append(f"line {number}: a sentence of {len(long.split())} words is too long")
                parts = []
        parts_of_lines.append(parts)
    flat = [part for parts in parts_of_lines for part in parts]
    translations = translator.translate(flat, settings, 0) if flat else None
    results = zip(translations.texts, translations.finished, strict=True) if translations else iter(())
    separator = "" if is_spaceless(translator.direction.target) else " "
    for number, parts in enumerate(parts_of_lines, start + 1):
        line = [next(results) for _ in parts]
        if not all(finished for _, finished in line):
            truncated.append(f"line {number}: the translation was cut at its length limit")
        # Clean, so that no control sequence reaches a terminal.
        yield separator.join(" ".join(clean(text).split()) for text, _ in line)
