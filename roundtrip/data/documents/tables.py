"""Tables (tsv, csv, jsonl), in which the column of the target language is filled or added."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from roundtrip.data.documents.document import (
    Document,
    Edit,
    Request,
    Unit,
    line_starts,
    read_text,
    replace_span,
    status_of,
)
from roundtrip.data.tabular import column_text, columns_of, is_header, other_separator, row_lines, without_blank_end
from roundtrip.runtime.errors import TextError, did_you_mean, quantity

_CSV_FIELD = re.compile(r' *("(?:[^"]|"")*"|[^,"\r\n][^,\r\n]*|)')
_CURE = "name the column of the source texts with --from-column, and that of the translations with --to-column"
# The line of a row, its fields, and where each is in the text.
Row = tuple[int, list[str], list[tuple[int, int]]]


def read_tsv_document(path: Path, request: Request) -> Document:
    """Read a tab-separated table. Quotes have no special meaning."""
    text = read_text(path)
    return _table(path, text, _tsv_rows(path, text), "\t", request)


def read_csv_document(path: Path, request: Request) -> Document:
    """Read a comma-separated table, quoted as in RFC 4180."""
    text = read_text(path)
    return _table(path, text, _csv_rows(path, text), ",", request)


def _lines(text: str) -> Iterator[str]:
    starts = line_starts(text)
    return (text[start:end] for start, end in zip(starts, starts[1:], strict=False))


def _tsv_rows(path: Path, text: str) -> Iterator[Row]:
    start = int(text.startswith("\ufeff"))
    for number, line in enumerate(row_lines(path, _lines(text[start:])), start=1):
        fields, spans, position = line.rstrip("\r\n").split("\t"), [], start
        for field in fields:
            spans.append((position, position + len(field)))
            position += len(field) + 1
        yield number, fields, spans
        start += len(line)


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    start = int(text.startswith("\ufeff"))
    lines = list(row_lines(path, _lines(text[start:])))
    if cure := other_separator(lines[:20], 2):
        raise TextError("the commas of this file are no separators", place=f"{path}:1", cure=cure)
    reader = csv.reader(lines, strict=True, skipinitialspace=True)
    number = 0
    try:
        for row in reader:
            record = "".join(lines[number : reader.line_num])
            spans = _csv_spans(f"{path}:{number + 1}", record.rstrip("\r\n"), row or [""])
            yield number + 1, row or [""], [(start + first, start + end) for first, end in spans]
            start, number = start + len(record), reader.line_num
    except csv.Error as error:
        cure = 'quote a text that contains a comma, a quote or a line break, and double its quotes: "say ""hi"""'
        raise TextError(f"not a csv row ({error})", place=f"{path}:{max(reader.line_num, 1)}", cure=cure) from error


def _csv_spans(place: str, text: str, row: Sequence[str]) -> list[tuple[int, int]]:
    """Return where the fields of a row are in its text."""
    spans, fields, start = [], [], 0
    while match := _CSV_FIELD.match(text, start):
        spans.append(match.span(1))
        field = match[1]
        fields.append(field[1:-1].replace('""', '"') if field.startswith('"') else field)
        start = match.end() + 1
        if text[match.end() : start] != ",":
            break
    if fields != row:
        problem = "quotes in the middle of a field, which cannot be written again as they are"
        raise TextError(problem, place=place, cure="save the table with each text quoted as a whole")
    return spans


def _table(path: Path, text: str, rows: Iterator[Row], separator: str, request: Request) -> Document:
    document = Document(path, text, [])
    first = next(rows, None)
    if first is None:
        return document
    names, place = [name.strip() for name in first[1]], f"{path}:{first[0]}"
    source, target, has_header = _columns(request, names, place)
    write = _csv_field if separator == "," else _tsv_field
    for is_first, (number, fields, spans) in chain([(True, first)], ((False, row) for row in rows)):
        if len(fields) != len(names):
            problem = f"{quantity(len(fields), 'column')} where line {first[0]} has {len(names)}"
            cure = "correct the line: in csv a text that contains a comma is quoted, in tsv no text contains a tab"
            raise TextError(problem, place=f"{path}:{number}", cure=cure)
        end = spans[-1][1]
        if target is None:
            name = request.to_column if isinstance(request.to_column, str) else request.target
            document.edits.append((end, end, separator + (name if is_first and has_header else "")))
        if (is_first and has_header) or not fields[source].strip():
            continue
        status = status_of("" if target is None else fields[target])
        raw = text[slice(*spans[source])]
        edits = write(spans[target] if target is not None else (end, end), raw)
        document.units.append(Unit([fields[source]], number, status, edits))
    return document


def _columns(request: Request, names: Sequence[str], place: str) -> tuple[int, int | None, bool]:
    """Return the positions of source and target (None: to be added), and whether the first row is a header."""
    by_language = columns_of((request.source, request.target), names)
    named = request.from_column
    has_header = by_language[0] is not None or (is_header(names[named:][:1]) if isinstance(named, int) else bool(named))
    positions: list[int | None] = []
    for column, default in zip((request.from_column, request.to_column), by_language, strict=True):
        is_source = not positions
        if isinstance(column, int) and column > len(names) - is_source:
            problem = f"{quantity(len(names), 'column')}, and --{'from' if is_source else 'to'}-column is {column}"
            raise TextError(problem, place=place, cure="columns count from 0; the one after the last is added")
        if isinstance(column, str) and is_source and column not in names:
            raise TextError(f"no column {column!r}", place=place, cure=did_you_mean(column, names, "there are"))
        if column is None:
            positions.append(default if has_header else None)
        elif isinstance(column, str):
            positions.append(names.index(column) if column in names else None)
        else:
            positions.append(column if column < len(names) else None)
    source, target = positions
    if source is None:
        problem = f"no column is named as {request.source!r}: {', '.join(names)}"
        raise TextError(problem, place=place, cure=_CURE)
    if source == target:
        raise TextError("source and translations would be the same column", place=place, cure=_CURE)
    return source, target, has_header


def _tsv_field(span: tuple[int, int], source: str) -> Callable[[Sequence[str]], list[Edit]]:
    return replace_span(*span)


def _csv_field(span: tuple[int, int], source: str) -> Callable[[Sequence[str]], list[Edit]]:
    """Return the edit of a field, which is quoted where it has to be, or where the source is."""

    def edits(translations: Sequence[str]) -> list[Edit]:
        (text,) = translations
        if source.startswith('"') or re.search(r'[,"\r\n]|^\s|\s$', text):
            text = '"' + text.replace('"', '""') + '"'
        return [(*span, text)]

    return edits


def read_jsonl_document(path: Path, request: Request) -> Document:
    """Read records, one JSON object a line; a dot in a column's name reaches into a nested record."""
    text = read_text(path)
    document, columns = Document(path, text, []), ("", "")
    start = int(text.startswith("\ufeff"))
    for number, line in enumerate(without_blank_end(_lines(text[start:])), start=1):
        place = f"{path}:{number}"
        try:
            record = json.loads(line.strip())
            if not isinstance(record, dict):
                raise ValueError(f"{type(record).__name__} where an object is expected")
        except (ValueError, RecursionError) as error:
            cure = "every line of a jsonl file is one object: jq -c . FILE > NEW.jsonl makes such lines"
            raise TextError(f"unreadable JSON ({error})", place=place, cure=cure) from error
        columns = columns if columns[0] else _keys(request, record, place)
        try:
            source = column_text(record, columns[0], place)
            target = _existing(record, columns[1], place)
        except TextError as error:
            raise TextError(error.problem, place=place, cure=_CURE) from error
        if source.strip():
            edits = _json_edits(text, start + line.index("{"), columns[1])
            document.units.append(Unit([source], number, status_of(target), edits))
        start += len(line)
    return document


def _keys(request: Request, record: dict[str, Any], place: str) -> tuple[str, str]:
    """Return the keys of source and target: those that are named, else those of the languages."""
    if isinstance(request.from_column, int) or isinstance(request.to_column, int):
        raise TextError("the columns of records have names, not numbers", place=place, cure=_CURE)
    for prefix, keys in (("", list(record)), *((f"{k}.", list(v)) for k, v in record.items() if isinstance(v, dict))):
        source, target = columns_of((request.source, request.target), keys)
        if source is not None:
            named = prefix + (request.target if target is None else keys[target])
            return request.from_column or prefix + keys[source], request.to_column or named
    if request.from_column is None:
        problem = f"no key is named as {request.source!r}: {', '.join(record)}"
        raise TextError(problem, place=place, cure=_CURE)
    prefix = request.from_column.rpartition(".")[0] if request.from_column not in record else ""
    return request.from_column, request.to_column or (f"{prefix}." if prefix else "") + request.target


def _existing(record: dict[str, Any], key: str, place: str) -> str:
    """Return the text of the target, which is empty where the last part of its key is missing."""
    while key not in record and "." in key:
        part, _, key = key.partition(".")
        if not isinstance(record.get(part), dict):
            raise TextError(f"there is no record {part!r} into which the translation could be written", place=place)
        record = record[part]
    return column_text(record, key, place) if key in record else ""


def _json_edits(text: str, start: int, key: str) -> Callable[[Sequence[str]], list[Edit]]:
    """Return how the translation is written into the object that starts at a position."""

    def edits(translations: Sequence[str]) -> list[Edit]:
        name, position = key, start
        members = _members(text, position)
        while name not in members and "." in name:
            part, _, name = name.partition(".")
            position = members[part][0]
            members = _members(text, position)
        end = text.find("\n", start)
        line = text[start : end if end >= 0 else len(text)]
        value = json.dumps(translations[0], ensure_ascii=line.isascii() and "\\u" in line)
        if name in members:
            return [(*members[name], value)]
        space = " " if re.search(r'":\s', line) else ""
        last = max((end for _, end in members.values()), default=position + 1)
        return [(last, last, f"{',' + space if members else ''}{json.dumps(name)}:{space}{value}")]

    return edits


def _members(text: str, start: int) -> dict[str, tuple[int, int]]:
    """Return where the values of a valid object are, which starts at a position."""
    decoder, members, position = json.JSONDecoder(), {}, start

    def after_space(position: int) -> int:
        while text[position] in " \t\r\n":
            position += 1
        return position

    while text[position] != "}":
        position = after_space(position + 1)
        if text[position] == "}":
            break
        key, position = decoder.raw_decode(text, position)
        position = after_space(after_space(position) + 1)
        _, end = decoder.raw_decode(text, position)
        members[key] = (position, end)
        position = after_space(end)
    return members
