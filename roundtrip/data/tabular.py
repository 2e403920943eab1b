"""Text in columns: tsv, csv, jsonl, parquet and datasets on the hub.

`columns` are those that the recipe names, one for each of `languages`; errors name the file and the line or row.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import langcodes

from roundtrip.data.text_files import open_text, read_text_lines
from roundtrip.recipe.language_codes import match_codes, parse_code
from roundtrip.runtime.downloads import parse_dataset
from roundtrip.runtime.errors import RoundtripError, TextError, first_line, quantity

_BATCH_ROWS = 1024
# Words of a header that name no language.
_HEADER_WORDS = ("source", "target", "src", "tgt", "original", "translation", "text", "sentence", "id")
# A quote that is never closed takes all that follows into one text.
csv.field_size_limit(1 << 20)
Columns = Sequence[str | int] | None


def read_tsv(path: Path, languages: tuple[str, ...], columns: Columns) -> Iterator[tuple[str, ...]]:
    """Yield the columns of a tab-separated file. Quotes have no special meaning."""
    rows = (line.rstrip("\r\n").split("\t") for line in _without_blank_end(read_text_lines(path)))
    return _fields(path, languages, columns, enumerate(rows, start=1))


def read_csv(path: Path, languages: tuple[str, ...], columns: Columns) -> Iterator[tuple[str, ...]]:
    """Yield the columns of a comma-separated file, quoted as in RFC 4180: a quoted text may contain line breaks."""
    reader = csv.reader(_without_blank_end(read_text_lines(path)), strict=True)
    # An empty line is one empty column, as in tsv.
    rows = ((reader.line_num, row or [""]) for row in reader)
    try:
        yield from _fields(path, languages, columns, rows)
    except csv.Error as error:
        place = f"{path}:{max(reader.line_num, 1)}"
        cure = 'Quote a text that contains a comma, a quote or a line break, and double its quotes: "say ""hi""".'
        if "field limit" in str(error):
            problem = f"a text of more than {csv.field_size_limit():,} characters, up to this line"
            cure = "Look for a quote before this line that is never closed; a text of that length is no sentence."
            raise TextError(problem, place=place, cure=cure) from error
        raise TextError(f"not a csv row ({error})", place=place, cure=cure) from error


def read_jsonl(path: Path, languages: tuple[str, ...], columns: Columns) -> Iterator[tuple[str, ...]]:
    """Yield the values of one JSON object per line, columns as for parquet; null is an empty text."""
    names: tuple[str, ...] = ()
    for number, line in enumerate(_without_blank_end(read_text_lines(path)), start=1):
        place = f"{path}:{number}"
        try:
            record = json.loads(line.strip())
        except (ValueError, RecursionError) as error:
            problem = f"unreadable JSON ({str(error).replace('line 1 ', '')})"
            cure = "Every line of a jsonl file is one object; blank lines are not allowed between them."
            if number == 1 and line.lstrip().startswith(("[", "{")):
                cure += " For a file that is one array: jq -c '.[]' FILE > NEW.jsonl."
            raise TextError(problem, place=place, cure=cure) from error
        names = names or _names(columns, languages, place, list(record) if isinstance(record, dict) else ())
        yield tuple(_column_text(record, name, place) for name in names)


def _without_blank_end(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines except for blank ones at the end, which editors leave there."""
    blank: list[str] = []
    for line in lines:
        if line.strip("\r\n"):
            yield from blank
            blank.clear()
            yield line
        else:
            blank.append(line)


def read_parquet(path: Path, languages: tuple[str, ...], columns: Columns) -> Iterator[tuple[str, ...]]:
    """Yield the named columns of a parquet file; without `columns`, those named as the languages."""
    try:
        # Here and below: an optional dependency that takes seconds to import.
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise not_installed("pyarrow", str(path)) from error
    with open_text(path) as handle:
        try:
            file = parquet.ParquetFile(handle)
            available = file.schema_arrow.names
            names = _names(columns, languages, str(path), available)
            top_level = {name if name in available else name.partition(".")[0] for name in names}
            if absent := sorted(top_level.difference(available)):
                raise _no_column(absent[0], str(path), available)
            batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=sorted(top_level))
            records = (record for batch in batches for record in batch.to_pylist())
            for number, record in enumerate(records, start=1):
                yield tuple(_column_text(record, name, f"{path}, row {number}") for name in names)
        except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
            problem = f"unreadable parquet file ({first_line(error)})"
            raise TextError(problem, place=str(path), cure="Download or write the file again.") from error


def read_dataset(spec: str, languages: tuple[str, ...], columns: Columns) -> Iterator[tuple[str, ...]]:
    """Yield the named columns of a dataset on the hub, streamed; columns as for parquet."""
    dataset = parse_dataset(spec)
    place = f"hf:{dataset.name}"
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise not_installed("datasets", place) from error
    names: tuple[str, ...] = ()
    try:
        records = load_dataset(dataset.name, dataset.subset, split=dataset.split, streaming=True)
        for number, record in enumerate(records, start=1):
            names = names or _names(columns, languages, place, list(record))
            yield tuple(_column_text(record, name, f"{place} ({dataset.split}), row {number}") for name in names)
    except RoundtripError:
        raise
    except Exception as error:  # the libraries below share no base class of errors
        problem = f"the dataset cannot be read ({type(error).__name__}: {first_line(error)})"
        cure = "Check its name, its split and the network, or name a local file."
        raise TextError(problem, place=place, cure=cure) from error


def _fields(
    path: Path, languages: tuple[str, ...], columns: Columns, rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[str, ...]]:
    """Yield the chosen fields of rows, all of which have as many as the first; a header is not a row.

    Without `columns` there are as many fields as languages. A separator inside a text would shift the others.
    """
    first = next(rows, None)
    if first is None:
        return
    width = len(first[1])
    if columns is None and width != len(languages):
        example = list(range(len(languages)))
        cure = _separator_cure(first[1]) or f"Name those to read in the recipe, as `columns = {example}`."
        problem = f"{quantity(width, 'column')}, expected {len(languages)}"
        raise TextError(problem, place=f"{path}:{first[0]}", cure=cure)
    positions, has_header = _positions(path, languages, columns, first[1])
    for number, row in rows if has_header else chain([first], rows):
        if len(row) != width:
            problem = f"{quantity(len(row), 'column')} where line {first[0]} has {width}"
            cure = "Correct the line: in csv a text that contains a comma is quoted, in tsv no text contains a tab."
            raise TextError(problem, place=f"{path}:{number}", cure=cure)
        yield tuple(row[position] for position in positions)


def _positions(path: Path, languages: Sequence[str], columns: Columns, first: list[str]) -> tuple[list[int], bool]:
    """Return the positions of the columns, and whether the first row is a header."""
    names = [name.strip() for name in first]
    if any(isinstance(column, str) for column in columns or ()):
        for column in columns or ():
            if isinstance(column, str) and column not in names:
                raise _no_column(column, f"{path}:1", names)
        return [names.index(column) if isinstance(column, str) else column for column in columns or ()], True
    positions = [int(column) for column in columns or range(len(languages))]
    if outside := [position for position in positions if not 0 <= position < len(first)]:
        cure = _separator_cure(first) or "Columns count from 0. Correct `columns` in the recipe."
        problem = f"{quantity(len(first), 'column')}, but the recipe names column {outside[0]}"
        raise TextError(problem, place=f"{path}:1", cure=cure)
    found = match_codes(languages, [_as_code(name) for name in names])
    if None not in found and columns is None:
        return [position for position in found if position is not None], True
    chosen = [names[position] for position in positions]
    is_named = match_codes(languages, [_as_code(name) for name in chosen]) == tuple(range(len(languages)))
    is_header = is_named or all(name.casefold() in _HEADER_WORDS for name in chosen)
    if is_header and columns is None:
        example = ", ".join(f'"{name}"' for name in names)
        problem = f"the first line is a header that does not name {' and '.join(languages)}: {', '.join(names)}"
        cure = f"Name the columns in the recipe, in the order of its languages: `columns = [{example}]`."
        raise TextError(problem, place=f"{path}:1", cure=cure)
    return positions, is_header


def _as_code(name: str) -> str:
    """Return a name as a language code: a code as it is, the code of a language's name, else the name."""
    if parse_code(name) is None and 3 < len(name) < 30 and name.replace(" ", "").isalpha():
        try:
            return str(langcodes.find(name))
        except LookupError:
            pass
    return name


def _separator_cure(fields: Sequence[str]) -> str | None:
    """Return the cure of a row that another character than that of its format seems to separate."""
    if len(fields) == 1:
        for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|||", "|||"), (",", "commas")):
            if separator in fields[0]:
                return f"The fields seem to be separated by {name}: save the file with tabs between them, as .tsv."
    return None


def _names(columns: Columns, languages: tuple[str, ...], place: str, available: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the columns of records: those of the recipe, else those named as the languages."""
    if columns is None:
        found = match_codes(languages, available)
        if None not in found:
            return tuple(available[position] for position in found if position is not None)
    names = tuple(column for column in columns or () if isinstance(column, str))
    if columns is None or len(names) < len(columns):
        example = ", ".join(f'"translation.{language}"' for language in languages)
        shown = f": {', '.join(available)}." if available else "."
        cure = f"Add `columns = [{example}]`, with their names in this file{shown}"
        raise TextError("the recipe does not name the columns of these records", place=place, cure=cure)
    return names


def _column_text(record: Any, column: str, place: str) -> str:
    """Return the text of a column; a dot reaches into a nested record, unless a column has exactly that name."""
    value = record
    for part in [column] if isinstance(record, dict) and column in record else column.split("."):
        if value is None:
            return ""
        if not isinstance(value, dict):
            problem = f"{type(value).__name__} where a record with {part!r} is expected"
            cure = f"The recipe names column {column!r}: correct the record, or `columns` in the recipe."
            raise TextError(problem, place=place, cure=cure)
        if part not in value:
            raise _no_column(column, place, list(value))
        value = value[part]
    if value is not None and not isinstance(value, str):
        problem = f"column {column!r} contains {type(value).__name__}, not text"
        cure = "Name a column of texts in `columns`; a dot reaches into a record, as in `translation.en`."
        raise TextError(problem, place=place, cure=cure)
    return value or ""


def _no_column(column: str, place: str, available: Sequence[str]) -> TextError:
    cure = f"Choose `columns` from: {', '.join(available) or 'nothing, the file is empty'}."
    return TextError(f"no column {column!r}", place=place, cure=cure)


def not_installed(package: str, place: str) -> TextError:
    problem = f"the package `{package}`, which reads this, is not installed"
    return TextError(problem, place=place, cure="pip install 'roundtrip-mt[data]'")
