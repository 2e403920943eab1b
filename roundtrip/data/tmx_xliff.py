"""The exchange formats of translation tools, TMX 1.4 and XLIFF 1.2 and 2, with the languages in either order.

Files are not trusted: nothing that a document type declares is loaded, downloaded or expanded.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lxml import etree

from roundtrip.data.text_files import open_text
from roundtrip.recipe.language_codes import all_matching, match_codes, parse_code
from roundtrip.runtime.errors import TextError

MAX_UNIT_BYTES = 16 << 20
XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_TMX = ("", "{http://www.lisa.org/tmx14}")
_XLIFF_1 = ("", "{urn:oasis:names:tc:xliff:document:1.1}", "{urn:oasis:names:tc:xliff:document:1.2}")
_XLIFF_2 = ("{urn:oasis:names:tc:xliff:document:2.0}", "{urn:oasis:names:tc:xliff:document:2.2}")
_UNTRANSLATED_STATES = ("new", "needs-translation", "needs-adaptation", "needs-l10n")
_NEITHER = [None, None]
# Inline elements of TMX and XLIFF that hold native code: parts of a pair, and those that stand for themselves.
_PAIRED = ("bpt", "ept", "it", "ut", "bx", "ex", "sc", "ec", "sm", "em", "cp")
_STANDALONE = ("ph", "x")
CODE_ELEMENTS = (*_PAIRED, *_STANDALONE)
_VARIABLE = re.compile(
    r"%(\d+\$|\(\w+\))?[-+ #0-9.*]*[a-zA-Z@]|\{[^<>\\]*\}|[$#]\{[^<>]*\}|\$\w+|%\w+%|\[\[?[\w.]+\]?\]"
)
# White space, or markup that separates words.
_BREAK = re.compile(r"\s+$|\s*(<br\b|\\[nrt]\b)", re.IGNORECASE)
# What is counted of rows: with inline elements, and with other ones on the other side.
INLINE_CODES, DIFFERENT_CODES = "with inline codes", "with other inline codes on the other side"
# The language codes of a unit, and for each the element that holds its text; None where it is not to be read.
Variants = tuple[list[str], list[Any]]


def read_tmx(path: Path, languages: tuple[str, ...], count: Counter[str]) -> Iterator[tuple[str, ...]]:
    """Yield the pairs of a translation memory, or for one language each text in it.

    Units without all languages are skipped. What becomes of inline elements: `_inner_text`; rows with such are counted.
    """

    def variants() -> Iterator[Variants]:
        for unit in _units(path, "tmx", [f"{namespace}tu" for namespace in _TMX]):
            variants = unit.findall("{*}tuv")
            codes = [variant.get(XML_LANG) or variant.get("lang") or "" for variant in variants]
            segments = [variant.find("{*}seg") for variant in variants]
            for variant, segment in zip(variants, segments, strict=True):
                if segment is None:
                    cure = "Export the memory as TMX 1.4, in which the text of a <tuv> is in its <seg>."
                    raise TextError("a <tuv> without <seg>", place=f"{path}:{variant.sourceline}", cure=cure)
            yield codes, segments

    return _rows(path, languages, variants(), count)


def read_xliff(path: Path, languages: tuple[str, ...], count: Counter[str]) -> Iterator[tuple[str, ...]]:
    """Yield source and target of each unit (XLIFF 1) or segment (XLIFF 2), or for one language each text in it.

    Units marked `translate="no"` are skipped and, where the target is read, units without one or with a state that
    marks it as not translated yet. Approval is not required. Inline elements and `count` as in `read_tmx`.
    """
    tags = [f"{name}trans-unit" for name in _XLIFF_1] + [f"{name}unit" for name in _XLIFF_2]
    return _rows(path, languages, (sides for unit in _units(path, "xliff", tags) for sides in _sides(unit)), count)


def _rows(
    path: Path, languages: tuple[str, ...], units: Iterator[Variants], count: Counter[str]
) -> Iterator[tuple[str, ...]]:
    """Yield the texts of each unit that has all languages; refuse a file that lacks one of them in all units."""
    seen: dict[str, None] = {}
    missing = set(languages)
    for codes, elements in units:
        seen.update(dict.fromkeys(codes))
        positions = match_codes(languages, codes)
        missing -= {code for code, position in zip(languages, positions, strict=True) if position is not None}
        rows = [positions] if len(languages) > 1 else [(index,) for index in all_matching(languages[0], codes)]
        for row in rows:
            chosen = [elements[index] for index in row if index is not None and elements[index] is not None]
            if len(chosen) == len(languages):
                texts, codes_of = zip(*(_inner_text(element, path) for element in chosen), strict=True)
                if any(codes_of):
                    count[INLINE_CODES] += 1
                if any(sorted(codes) != sorted(codes_of[0]) for codes in codes_of):
                    count[DIFFERENT_CODES] += 1
                yield texts
    if missing:
        cure = f"Languages found: {', '.join(filter(None, seen)) or 'none'}. Name those, or another file."
        if unknown := [code for code in seen if code and parse_code(code) is None]:
            cure += f" No language codes, to be corrected in the file: {', '.join(unknown)}."
        if "" in seen:
            cure += " Some texts have no language: add its code, as xml:lang in TMX and target-language in XLIFF."
        raise TextError(f"no text in {', '.join(map(repr, sorted(missing)))}", place=str(path), cure=cure)


def _sides(unit: Any) -> Iterator[Variants]:
    """Yield the codes and the elements of source and target."""
    is_read = is_for_translation(unit)
    namespace = unit.tag[: unit.tag.find("}") + 1]
    if namespace in _XLIFF_1:
        file = next(unit.iterancestors(f"{namespace}file"), unit)
        source, target = unit.find(f"{namespace}source"), unit.find(f"{namespace}target")
        codes = [
            (element is not None and element.get(XML_LANG)) or file.get(name) or ""
            for element, name in ((source, "source-language"), (target, "target-language"))
        ]
        if target is not None and not is_translated(unit.find(f"{namespace}seg-source"), target):
            target = None
        yield codes, [source, target] if is_read else _NEITHER
        return
    root = unit.getroottree().getroot()
    codes = [root.get("srcLang", ""), root.get("trgLang", "")]
    for segment in unit.iterfind(f"{namespace}segment"):
        # By the standard a segment without a state is "initial", but most tools write no states at all.
        target = segment.find(f"{namespace}target") if segment.get("state") != "initial" else None
        yield codes, [segment.find(f"{namespace}source"), target] if is_read else _NEITHER


def is_for_translation(unit: Any) -> bool:
    """Return whether a unit is to be translated: by itself, else by the nearest element around it that says so."""
    marks = (node.get("translate") for node in (unit, *unit.iterancestors()))
    return next((mark for mark in marks if mark is not None), "yes") != "no"


def is_translated(segments: Any, target: Any) -> bool:
    """Return whether a target of XLIFF 1 is one by its state, and where it is in segments, in all of them."""
    is_rejected = target.get("state-qualifier", "").startswith("rejected-")
    if target.get("state") in _UNTRANSLATED_STATES or is_rejected:
        return False
    wanted, translated = _segment_texts(segments), _segment_texts(target)
    needed = [name for name, text in wanted.items() if text] or list(translated)
    return not translated or all(translated.get(name) for name in needed)


def _segment_texts(element: Any) -> dict[str, str]:
    """Return the texts of the segments of a unit of XLIFF 1 by their ids."""
    marks = [] if element is None else element.iter("{*}mrk")
    return {mark.get("mid"): "".join(mark.itertext()).strip() for mark in marks if mark.get("mtype") == "seg"}


def _units(path: Path, root: str, tags: Sequence[str]) -> Iterator[Any]:
    """Yield the elements with these tags, each complete, and free those before it."""
    with open_text(path) as handle:
        limited = _LimitedReader(handle, path)
        options = {"resolve_entities": False, "load_dtd": False, "no_network": True, "huge_tree": False}
        parser = etree.iterparse(limited, tag=tags, **options)
        try:
            for _, element in parser:
                limited.size = 0
                yield element
                for node in (element, *element.iterancestors()):
                    parent = node.getparent()
                    while parent is not None and (before := node.getprevious()) is not None:
                        parent.remove(before)
        except etree.LxmlError as error:
            # The first entry is the cause; the exception often has only a consequence of it.
            first = next(iter(parser.error_log), None)
            line = getattr(first, "line", 0) or getattr(error, "lineno", 0)
            problem = re.sub(r", line \d+, column \d+.*", "", first.message if first is not None else str(error))
            cure = "Export it again from the tool that wrote it; `xmllint --noout FILE` lists the errors."
            place = f"{path}:{line}" if line else str(path)
            raise TextError(f"broken XML ({problem})", place=place, cure=cure) from error
    if parser.root.tag not in {tag[: tag.find("}") + 1] + root for tag in tags}:
        cure = "Set `format` in the recipe if the extension of the file is misleading."
        raise TextError(f"not {root.upper()}: the root is <{parser.root.tag}>", place=str(path), cure=cure)


class _LimitedReader:
    """A file of which at most `MAX_UNIT_BYTES` are read between two units, since the parser holds all of these."""

    def __init__(self, handle: BinaryIO, path: Path) -> None:
        self._handle, self._path, self.size = handle, path, 0

    def read(self, size: int = -1) -> bytes:
        chunk = self._handle.read(size)
        self.size += len(chunk)
        if self.size > MAX_UNIT_BYTES:
            problem = f"more than {MAX_UNIT_BYTES >> 20} MiB without the end of a translation unit"
            cure = "Check that this file is a translation memory; a unit is a sentence or a paragraph."
            raise TextError(problem, place=str(self._path), cure=cure)
        return chunk


def _inner_text(element: Any, path: Path) -> tuple[str, list[str]]:
    """Return the text of a segment without native code, and the inline codes in it.

    Text inside of `hi`, `g`, `mrk`, `pc` and `sub` stays. The code of paired elements goes. A standalone element
    becomes the variable that it stands for, as `{{name}}` or `%s`, where it says so, and goes where it is markup; one
    that says nothing becomes `{ID}`, so that a sentence keeps the place.
    """
    if (entity := next(element.iter(etree.Entity), None)) is not None:
        problem = f"the entity &{entity.name}; is not expanded"
        cure = "Write out its text instead; a translation file should declare no entities."
        raise TextError(problem, place=f"{path}:{element.sourceline}", cure=cure)
    codes: list[str] = []
    text = _text_of(element, codes)
    return (re.sub(" {2,}", " ", text) if codes else text), codes


def _text_of(element: Any, codes: list[str]) -> str:
    parts = [element.text or ""]
    for child in element:
        if isinstance(child.tag, str):  # neither a comment nor a processing instruction
            name = etree.QName(child).localname
            if name in CODE_ELEMENTS:
                shown = standalone_text(child) if name in _STANDALONE else ""
                codes.append(shown or name)
                parts += [shown, *(_text_of(inner, codes) for inner in child.iter("{*}sub"))]
            else:
                parts.append(_text_of(child, codes))
        parts.append(child.tail or "")
    return "".join(parts)


def standalone_text(element: Any) -> str:
    """Return the text in place of an element that stands for itself: a variable, nothing for markup, or its id."""
    attributes = (element.get(name) for name in ("equiv-text", "disp", "equiv"))
    native = next(filter(None, attributes), None) or (element.text or "")
    if _VARIABLE.fullmatch(native.strip()):
        return str(native.strip())
    name = element.get("id") or element.get("x")
    if _BREAK.match(native):
        return " "
    return "" if native.strip() or not name else f"{{{name}}}"
