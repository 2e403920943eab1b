"""TMX and XLIFF: a missing text of the target language is added beside that of the source language.

The readers of these formats say what is in a file (lxml); where it is in the text is what expat says of each element.
"""

import codecs
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from lxml import etree

from roundtrip.data.documents.document import Document, Edit, Request, Status, Unit, read_bytes
from roundtrip.data.documents.markup import mark
from roundtrip.data.tmx_xliff import CODE_ELEMENTS, XML_LANG, is_for_translation, is_translated, standalone_text
from roundtrip.recipe.language_codes import match_codes, match_rank
from roundtrip.runtime.errors import TextError

_TAG = re.compile(r"<[^\s>/]+(?:[^\"'>]|\"[^\"]*\"|'[^']*')*>")
_DECLARED = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"']")
_CURE = "export it again from the tool that wrote it; `xmllint --noout FILE` lists the errors"
_XLIFF_1 = "urn:oasis:names:tc:xliff:document:1."
_FUZZY_STATES = ("needs-review-translation", "needs-review-adaptation", "needs-review-l10n")


@dataclass(frozen=True)
class _Span:
    """Where an element is in the text: its start tag, its end tag (empty in `<a/>`), and the end of all."""

    start: int
    inner_start: int
    inner_end: int
    end: int


@dataclass(frozen=True)
class _Xml:
    """A parsed file, and where its elements are."""

    path: Path
    text: str
    root: Any
    spans: dict[Any, _Span]

    def open_tag(self, element: Any) -> str:
        span = self.spans[element]
        return self.text[span.start : span.inner_start]

    def space_before(self, element: Any) -> str:
        """Return the white space between an element and what stands before it."""
        end = start = self.spans[element].start
        while start and self.text[start - 1].isspace():
            start -= 1
        return self.text[start:end]

    def set_attributes(self, element: Any, **values: str) -> list[Edit]:
        """Return the edit that sets attributes of an element."""
        span = self.spans[element]
        tag = _with_attributes(self.open_tag(element), **values)
        return [(span.start, span.inner_start, tag)] if tag != self.open_tag(element) else []


def _with_attributes(tag: str, **values: str | None) -> str:
    """Return a start tag with attributes, and without those that are None; `_` in their names is `-`."""
    for key, value in values.items():
        name = key.replace("_", "-")
        if old := re.search(rf"\s{name}\s*=\s*(\"[^\"]*\"|'[^']*')", tag):
            new = "" if value is None else tag[old.start() : old.start(1)] + quoteattr(value)
            tag = tag[: old.start()] + new + tag[old.end() :]
        elif value is not None:
            end = re.search(r"\s*/?>$", tag)
            assert end is not None, "a start tag ends with >"
            tag = f"{tag[: end.start()]} {name}={quoteattr(value)}{end.group()}"
    return tag


def read_exchange(path: Path, request: Request) -> Document:
    """Read a translation memory (TMX) or a file of segments to be translated (XLIFF 1.2 and 2)."""
    data = read_bytes(path)
    encoding = _encoding(data)
    try:
        text = data.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise TextError(f"not in its encoding ({error})", place=str(path), cure=_CURE) from error
    xml = _parse(path, text)
    document = Document(path, text, [], encoding=encoding, errors="xmlcharrefreplace")
    root = etree.QName(xml.root)
    if root.localname == "tmx":
        _read_tmx(xml, document, request)
    elif root.localname == "xliff":
        _read_xliff(xml, document, request)
    else:
        cure = "give the file the ending of its format"
        raise TextError(f"neither TMX nor XLIFF: the root is <{root.localname}>", place=str(path), cure=cure)
    return document


def _encoding(data: bytes) -> str:
    """Return the encoding of an XML file, one that keeps a byte order mark as a character."""
    for mark_bytes, name in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(mark_bytes):
            return name
    declared = _DECLARED.match(data)
    return declared[1].decode("ascii") if declared else "utf-8"


def _parse(path: Path, text: str) -> _Xml:
    """Parse a file; refuse one that declares entities."""
    data = text.removeprefix("\ufeff").encode("utf-8")
    places: list[list[int]] = []
    open_elements: list[list[int]] = []
    parser = expat.ParserCreate("utf-8")

    def start(name: str, attributes: object) -> None:
        open_elements.append([parser.CurrentByteIndex, -1])
        places.append(open_elements[-1])

    def end(name: str) -> None:
        open_elements.pop()[1] = parser.CurrentByteIndex

    def doctype(name: str, system: str | None, public: str | None, has_internal_subset: int) -> None:
        if has_internal_subset:
            raise TextError("a document type with declarations of its own", place=str(path), cure="remove <!DOCTYPE")

    def skipped(name: str, is_parameter: int) -> None:
        problem = f"the entity &{name}; is not expanded"
        raise TextError(problem, place=f"{path}:{parser.CurrentLineNumber}", cure="write out its text instead")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler, parser.SkippedEntityHandler = doctype, skipped
    try:
        parser.Parse(data, True)
        options: dict[str, Any] = {"resolve_entities": False, "load_dtd": False, "no_network": True}
        root = etree.fromstring(data, etree.XMLParser(encoding="utf-8", huge_tree=False, **options))
    except expat.ExpatError as error:
        raise TextError(f"broken XML ({error})", place=f"{path}:{error.lineno}", cure=_CURE) from error
    except etree.LxmlError as error:
        raise TextError(f"broken XML ({error})", place=str(path), cure=_CURE) from error
    characters = _character_positions(data, sorted({position for place in places for position in place}))
    first = int(text.startswith("\ufeff"))
    spans = {}
    for element, (opened, closed) in zip(root.iter(etree.Element), places, strict=True):
        position = characters[opened] + first
        tag = _TAG.match(text, position)
        assert tag is not None, "expat has parsed a tag there"
        inner_end = tag.end() if opened == closed else characters[closed] + first
        is_empty = tag.group().endswith("/>")
        spans[element] = _Span(
            position, tag.end(), inner_end, tag.end() if is_empty else text.index(">", inner_end) + 1
        )
    return _Xml(path, text, root, spans)


def _character_positions(data: bytes, positions: Sequence[int]) -> dict[int, int]:
    """Return the numbers of characters before positions in bytes, which are in order."""
    characters, number, last = {}, 0, 0
    for position in positions:
        number += len(data[last:position].decode("utf-8"))
        characters[position] = number
        last = position
    return characters


def _read_tmx(xml: _Xml, document: Document, request: Request) -> None:
    codes_seen: set[str] = set()
    for unit in xml.root.iter("{*}tu"):
        variants = unit.findall("{*}tuv")
        codes = [variant.get(XML_LANG) or variant.get("lang") or "" for variant in variants]
        codes_seen.update(codes)
        source, target = match_codes((request.source, request.target), codes)
        if source is None:
            continue
        segment = variants[source].find("{*}seg")
        existing = None if target is None else variants[target].find("{*}seg")
        if segment is None or (target is not None and existing is None):
            cure = "export the memory as TMX 1.4, in which the text of a <tuv> is in its <seg>"
            raise TextError("a <tuv> without <seg>", place=f"{xml.path}:{unit.sourceline}", cure=cure)

        translated = existing is not None and "".join(existing.itertext()).strip()
        if existing is not None:
            write = partial(_replace_content, xml, existing)
        else:
            write = partial(_added_variant, xml, request.target, variants[source], variants[-1])
        _add(xml, document, segment, "translated" if translated else "untranslated", write)
    if not any(match_rank(request.source, code) is not None for code in codes_seen):
        cure = f"languages found: {', '.join(sorted(filter(None, codes_seen))) or 'none'}"
        raise TextError(f"no text in {request.source!r}", place=str(xml.path), cure=cure)


def _added_variant(xml: _Xml, language: str, source: Any, last: Any, content: str) -> list[Edit]:
    """Return the edit that adds a variant in another language behind the last one, formatted as that of the source."""
    name = "xml:lang" if source.get(XML_LANG) else "lang"
    prefix = f"{source.prefix}:" if source.prefix else ""
    outer, inner = xml.space_before(source), xml.space_before(source.find("{*}seg"))
    segment = f"{inner}<{prefix}seg>{content}</{prefix}seg>{outer if inner else ''}"
    end = xml.spans[last].end
    return [(end, end, f"{outer}<{prefix}tuv {name}={quoteattr(language)}>{segment}</{prefix}tuv>")]


def _read_xliff(xml: _Xml, document: Document, request: Request) -> None:
    namespace = etree.QName(xml.root).namespace or ""
    if not namespace or namespace.startswith(_XLIFF_1):
        for file in xml.root.iter("{*}file"):
            _check_languages(xml, file, ("source-language", "target-language"), document, request)
            for unit in file.iter("{*}trans-unit"):
                _read_unit_1(xml, document, unit, request)
        return
    _check_languages(xml, xml.root, ("srcLang", "trgLang"), document, request)
    for unit in xml.root.iter("{*}unit"):
        for segment in unit.iterfind("{*}segment"):
            _read_segment_2(xml, document, unit, segment)


def _check_languages(xml: _Xml, element: Any, names: tuple[str, str], document: Document, request: Request) -> None:
    """Refuse other languages; add that of the target where there is none."""
    for name, wanted in zip(names, (request.source, request.target), strict=True):
        code = element.get(name)
        if code and match_rank(wanted, code) is None:
            cure = "name another file, or the other language with --to"
            problem = f"its {name} is {code!r}, not {wanted!r}"
            raise TextError(problem, place=f"{xml.path}:{element.sourceline}", cure=cure)
    if not element.get(names[1]):
        document.edits.extend(xml.set_attributes(element, **{names[1].replace("-", "_"): request.target}))


def _read_unit_1(xml: _Xml, document: Document, unit: Any, request: Request) -> None:
    source, segments, target = (unit.find(f"{{*}}{name}") for name in ("source", "seg-source", "target"))
    if source is None or not is_for_translation(unit):
        document.left_alone.append((unit.sourceline, 'marked translate="no"' if source is not None else "no source"))
        return
    states = {"state": "needs-review-translation" if request.mark else "translated", "state_qualifier": None}
    status = _status(source, target, is_finished=target is not None and is_translated(segments, target))
    if status == "translated" and target.get("state") in _FUZZY_STATES:
        status = "fuzzy"

    def write(content: str) -> list[Edit]:
        if target is not None:
            return _replace_content(xml, target, content, **states)
        last = source if segments is None else segments
        prefix, end = f"{source.prefix}:" if source.prefix else "", xml.spans[last].end
        tag = _with_attributes(f"<{prefix}target>", **states)
        return [(end, end, f"{xml.space_before(last)}{tag}{content}</{prefix}target>")]

    _add(xml, document, source if segments is None else segments, status, write)


def _read_segment_2(xml: _Xml, document: Document, unit: Any, segment: Any) -> None:
    source, target = segment.find("{*}source"), segment.find("{*}target")
    if source is None or not is_for_translation(unit):
        document.left_alone.append((segment.sourceline, 'marked translate="no"' if source is not None else "no source"))
        return
    status = _status(source, target, is_finished=segment.get("state") != "initial")

    def write(content: str) -> list[Edit]:
        state = xml.set_attributes(segment, state="translated")
        if target is not None:
            return [*state, *_replace_content(xml, target, content)]
        prefix, end = f"{source.prefix}:" if source.prefix else "", xml.spans[source].end
        return [*state, (end, end, f"{xml.space_before(source)}<{prefix}target>{content}</{prefix}target>")]

    _add(xml, document, source, status, write)


def _status(source: Any, target: Any, *, is_finished: bool) -> Status:
    """Return the status of a target: what is in an unfinished one stays too, unless it is a copy of the source."""
    texts = ["" if each is None else "".join(each.itertext()).strip() for each in (source, target)]
    if not texts[1] or (texts[0] == texts[1] and not is_finished):
        return "untranslated"
    return "translated" if is_finished else "fuzzy"


def _replace_content(xml: _Xml, element: Any, content: str, **attributes: str | None) -> list[Edit]:
    """Return the edit that gives an element another content, and attributes."""
    span = xml.spans[element]
    tag = _with_attributes(xml.open_tag(element), **attributes)
    name = re.match(r"<([^\s/>]+)", tag)
    assert name is not None, "a tag has a name"
    if tag.endswith("/>"):
        tag = tag[:-2].rstrip() + ">"
    return [(span.start, span.end, f"{tag}{content}</{name[1]}>")]


def _add(xml: _Xml, document: Document, element: Any, status: Status, write: Callable[[str], list[Edit]]) -> None:
    """Add the unit of a source element; what cannot be translated in place is left alone."""
    parts: list[list[tuple[bool, str, str]]] = [[]]
    separators: list[str] = []
    if problem := _collect(xml, element, parts, separators):
        document.left_alone.append((element.sourceline, problem))
        return
    marked = [mark(pieces, escape) for pieces in parts]
    texts = [each for each in marked if each.text.strip()]

    def edits(translations: Sequence[str]) -> list[Edit]:
        new = iter(translations)
        written = [each.restore(next(new)) if each.text.strip() else each.before + each.after for each in marked]
        return write("".join(map("".join, zip(written, [*separators, ""], strict=True))))

    if texts:
        document.units.append(Unit([each.text for each in texts], element.sourceline, status, edits))


def _collect(xml: _Xml, element: Any, parts: list[list[tuple[bool, str, str]]], separators: list[str]) -> str:
    """Collect the pieces of an element, separated where a segment of XLIFF 1 begins or ends.

    Returns:
        Why the element cannot be translated; empty where it can.
    """

    def text(value: str | None) -> None:
        if value:
            parts[-1].append((False, value, escape(value)))

    def markup(raw: str, name: str = "", *, is_segment: bool = False) -> None:
        if is_segment:
            separators.append(raw)
            parts.append([])
        else:
            parts[-1].append((True, name, raw))

    text(element.text)
    for child in element:
        if not isinstance(child.tag, str):
            return "a comment or an instruction inside of its text"
        span, name = xml.spans[child], etree.QName(child).localname
        if name in CODE_ELEMENTS:
            if next(child.iter("{*}sub"), None) is not None:
                return "text inside of an inline code (<sub>)"
            markup(xml.text[span.start : span.end], standalone_text(child).strip() if name in ("ph", "x") else "")
        else:
            is_segment = name == "mrk" and child.get("mtype") == "seg"
            markup(xml.text[span.start : span.inner_start], is_segment=is_segment)
            if problem := _collect(xml, child, parts, separators):
                return problem
            if span.inner_end < span.end:
                markup(xml.text[span.inner_end : span.end], is_segment=is_segment)
        text(child.tail)
    return ""
