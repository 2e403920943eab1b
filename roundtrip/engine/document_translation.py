"""Translating documents: which texts of them, in chunks that are kept, and what becomes of each unit."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roundtrip.data.documents.document import Document, Unit
from roundtrip.data.normalize import clean
from roundtrip.data.placeholders import errors
from roundtrip.engine.checked_translation import CheckedTranslation
from roundtrip.runtime.errors import TextError
from roundtrip.runtime.event_log import append_line

# Texts that are translated at a time, and then kept: a GPU is faster with many, a CPU is not.
CHUNK_TEXTS, CHUNK_TEXTS_GPU = 32, 512
_BREAK = re.compile("[\n\v\f\r\x85\u2028\u2029]")
# A unit is translated again if its status is in here.
RETRANSLATED = {
    "none": ("untranslated",),
    "fuzzy": ("untranslated", "fuzzy"),
    "all": ("untranslated", "fuzzy", "translated"),
}


@dataclass(frozen=True)
class TranslatedDocument:
    """What becomes of a document.

    Attributes:
        translations: of the units that are written, by index.
        left_alone: line and reason of units that stay as they are, in order.
        num_kept: units that have a translation already.
        pairs: source and translation of each paragraph that is written.
    """

    translations: dict[int, list[str]]
    left_alone: list[tuple[int, str]]
    num_kept: int
    pairs: list[tuple[str, str]]


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text at even positions, and the white space around and between them at odd ones."""
    pieces = re.split(r"(\s+)", text)
    parts = [pieces[0]]
    for i in range(1, len(pieces), 2):
        is_end = not pieces[i + 1] or (i == 1 and not pieces[0])
        if is_end or _BREAK.search(pieces[i]):
            parts += pieces[i : i + 2]
        else:
            parts[-1] += pieces[i] + pieces[i + 1]
    return parts


def needed_texts(sources: Iterable[str]) -> list[str]:
    """Return the clean paragraphs of texts that have anything to translate, each once."""
    return list(
        dict.fromkeys(clean(part) for source in sources for part in paragraphs(source)[::2] if _has_letters(part))
    )


def join_translations(source: str, known: Mapping[str, CheckedTranslation]) -> CheckedTranslation:
    """Return the translation of a text from those of its paragraphs, checked as a whole; what has no letters is copied.

    It is empty where a paragraph has none. Its problem is the first that makes it unusable, or any.
    """
    parts = paragraphs(source)
    cleaned = [clean(part) if _has_letters(part) else part for part in parts]
    results = [known[part] if _has_letters(part) else CheckedTranslation(part) for part in cleaned]
    missing = [each for part, each in zip(parts, results, strict=True) if part and not each.text]
    problem = next((each.problem for each in [*missing, *results] if each.problem), "")
    text = "" if missing else "".join(each.text for each in results)
    if not problem and (broken := errors("".join(cleaned), text)):
        problem = str(broken[0])
    return CheckedTranslation(text, problem)


def texts_of(document: Document, retranslate: str) -> list[str]:
    """Return the clean texts that the units of a document need, each once."""
    units = (unit for unit in document.units if unit.status in RETRANSLATED[retranslate])
    return needed_texts(source for unit in units for source in unit.sources)


def translate_document(
    document: Document, known: Mapping[str, CheckedTranslation], retranslate: str, *, keep_broken: bool
) -> TranslatedDocument:
    """Return the translations of a document's units, whose texts are all known.

    Args:
        keep_broken: also write translations that have a problem.
    """
    num_kept = sum(unit.status not in RETRANSLATED[retranslate] for unit in document.units)
    result = TranslatedDocument({}, list(document.left_alone), num_kept, [])
    for index, unit in enumerate(document.units):
        if unit.status not in RETRANSLATED[retranslate]:
            continue
        try:
            texts, pairs = _translate_unit(unit, known, keep_broken=keep_broken)
            document.unit_edits(unit, texts)
        except TextError as error:
            result.left_alone.append((unit.line, error.problem))
            continue
        result.translations[index] = texts
        result.pairs.extend(pairs)
    result.left_alone.sort(key=lambda each: each[0])
    return result


def _translate_unit(
    unit: Unit, known: Mapping[str, CheckedTranslation], *, keep_broken: bool
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the translations of a unit, and those of its paragraphs; raise TextError where one has a problem."""
    results = [join_translations(source, known) for source in unit.sources]
    for each in results:
        if each.problem and not (keep_broken and each.text):
            raise TextError(each.problem)
    pairs = [(text, known[text].text) for source in unit.sources for text in needed_texts([source])]
    return [each.text for each in results], pairs


def _has_letters(text: str) -> bool:
    """Return whether a text has anything to translate; others are copied."""
    return any(map(str.isalpha, text))


@dataclass
class TranslationCache:
    """Finished translations in a file, by which a command that was stopped continues; several may append to it.

    Attributes:
        key: of the model and the settings; what was made with others is not used.
        written: names of outputs that are complete, each with the texts of the paragraphs that were written.
    """

    path: Path
    key: str
    known: dict[str, CheckedTranslation] = field(default_factory=dict)
    written: dict[str, list[str]] = field(default_factory=dict)

    def read(self) -> None:
        """Read what commands with the same key have kept; lines of others, and damaged ones, are not used."""
        if self.path.is_symlink() or not self.path.is_file():
            return
        for line in self.path.read_bytes().split(b"\n"):
            try:
                key, kind, name, *rest = map(str, json.loads(line))
            except (ValueError, TypeError, RecursionError):
                continue
            if key == self.key and kind == "text" and len(rest) == 2:
                self.known[name] = CheckedTranslation(*rest)
            elif key == self.key and kind == "written" and self.known.keys() >= set(rest):
                self.written[name] = rest

    def add(self, rows: Iterable[Sequence[str]]) -> None:
        """Append rows: `text`, it, its translation and its problem, or `written`, a name and its texts."""
        for row in rows:
            line = json.dumps([self.key, *row], ensure_ascii=False).encode("utf-8", "backslashreplace")
            append_line(self.path, line + b"\n")


def translate_texts(
    texts: Sequence[str],
    translate: Callable[[list[str]], list[CheckedTranslation]],
    cache: TranslationCache,
    chunk_texts: int = CHUNK_TEXTS,
) -> None:
    """Translate the texts that are not in the cache, and keep them there chunk by chunk."""
    missing = [text for text in texts if text not in cache.known]
    for start in range(0, len(missing), chunk_texts):
        chunk = missing[start : start + chunk_texts]
        made = dict(zip(chunk, translate(chunk), strict=True))
        cache.known.update(made)
        cache.add(("text", text, each.text, each.problem) for text, each in made.items())
