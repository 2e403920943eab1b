"""Files of lines: plain text, of which each line is translated, and subtitles, of which each cue is."""

import html
import re
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from roundtrip.data.documents.document import Document, Edit, Request, Unit, line_starts, read_text, replace_span
from roundtrip.data.documents.markup import MarkedText, mark
from roundtrip.data.text_files import markup_kind
from roundtrip.runtime.errors import TextError

# Characters of a line of a subtitle, as most guidelines have them.
_CUE_WIDTH = 42
_TIMES = re.compile(r"\s*(?:\d+:)?\d+:\d\d[.,]\d{1,3}\s*-->\s*(?:\d+:)?\d+:\d\d[.,]\d{1,3}")
# Tags as <i> and <v Name>, and the positions of SubStation as {\an8}.
_TAG = re.compile(r"(</?[A-Za-z][^<>\n]*>|<\d+:[\d:.]+>|</>|\{\\[^{}\n]*\})")
_DIALOGUE = re.compile(r"\s*[-\u2013\u2014]")


def read_lines(path: Path, request: Request) -> Document:
    """Read a text of which each line is translated."""
    text = read_text(path)
    starts = line_starts(text)
    first = next((line for line in text.split("\n") if line.strip("\ufeff \t\r")), "")
    if kind := markup_kind(first.removeprefix("\ufeff")):
        cure = "name a file whose ending is that of its format, or one with its text alone"
        raise TextError(f"this is {kind}, which would be translated tag by tag", place=str(path), cure=cure)
    spans = [_core(text, start, end) for start, end in pairwise(starts)]
    units = [
        Unit([text[start:end]], number, "untranslated", replace_span(start, end))
        for number, (start, end) in enumerate(spans, start=1)
        if start < end
    ]
    return Document(path, text, units)


def read_subtitles(path: Path, request: Request) -> Document:
    """Read subtitles (srt, vtt): the lines below each pair of times are translated as one text."""
    text = read_text(path)
    starts = line_starts(text)
    lines = [text[start:end].rstrip("\r\n") for start, end in pairwise(starts)]
    document = Document(path, text, [])
    is_vtt = text.lstrip("\ufeff").startswith("WEBVTT")
    for number, line in enumerate(lines):
        if not _TIMES.match(line):
            continue
        end = next((i for i in range(number + 1, len(lines)) if not lines[i].strip()), len(lines))
        if number + 1 < end:
            last = starts[end - 1] + len(lines[end - 1])
            document.units.append(_cue(document.text, (starts[number + 1], last), number + 2, is_vtt=is_vtt))
    if not document.units and text.strip("\ufeff \t\r\n") and not is_vtt:
        cure = "a cue has a line such as 00:00:01,000 --> 00:00:02,500 above its text"
        raise TextError("no subtitles: there are no lines with times", place=str(path), cure=cure)
    return document


def _core(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the span without white space (and byte order mark) at its ends."""
    line = text[start:end]
    return start + len(line) - len(line.lstrip("\ufeff \t\r\n")), start + len(line.rstrip("\ufeff \t\r\n"))


def _cue(text: str, span: tuple[int, int], number: int, *, is_vtt: bool) -> Unit:
    """Return the unit of a cue: its lines as one text, or where each is that of a speaker, as several."""
    content = text[slice(*span)]
    newline = "\r\n" if "\r\n" in content else "\n"
    lines = content.split(newline)
    speakers = len(lines) > 1 and all(_DIALOGUE.match(line) for line in lines)
    parts = lines if speakers else [" ".join(line.strip() for line in lines)]
    marked = [_marked(part, is_vtt=is_vtt) for part in parts]
    width = _CUE_WIDTH if len(lines) > 1 else 2 * _CUE_WIDTH

    def edits(translations: Sequence[str]) -> list[Edit]:
        if speakers:
            written = [each.restore(new) for each, new in zip(marked, translations, strict=True)]
        else:
            # Wrapped before tags are put in, which have no width and may have spaces.
            num_lines = max(len(lines), -(-len(translations[0]) // _CUE_WIDTH))
            written = [marked[0].restore(newline.join(_wrap(translations[0], num_lines, width)))]
        return [(*span, newline.join(written))]

    return Unit([each.text for each in marked], number, "untranslated", edits)


def _marked(text: str, *, is_vtt: bool) -> MarkedText:
    pieces = [(bool(i % 2), "" if i % 2 else piece, piece) for i, piece in enumerate(_TAG.split(text))]
    dash = _DIALOGUE.match(text)
    if dash is not None:
        pieces[0] = (False, pieces[0][1][dash.end() :], pieces[0][2][dash.end() :])
        pieces.insert(0, (True, "", dash.group()))
    if is_vtt:
        pieces = [(is_tag, piece if is_tag else html.unescape(piece), raw) for is_tag, piece, raw in pieces]
    return mark(pieces, _escape_vtt if is_vtt else str)


def _escape_vtt(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _wrap(text: str, num_lines: int, width: int) -> list[str]:
    """Return a text in at most so many lines of about the same length, where words and width allow it."""
    for each in range(min(width, -(-len(text) // num_lines)), width):
        lines = textwrap.wrap(text, each, break_long_words=False, break_on_hyphens=False)
        if len(lines) <= num_lines:
            return lines
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
