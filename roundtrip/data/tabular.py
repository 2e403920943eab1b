"""Text in columns: tsv, csv, jsonl, parquet and datasets on the hub.

`columns` are those that the recipe names, one for each of `languages`; errors name the file and the line or row.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from roundtrip.data.text_files import open_text, read_text_lines
from roundtrip.runtime.downloads import parse_dataset
from roundtrip.runtime.errors import RoundtripError, TextError, first_line

_BATCH_ROWS = 1024
Columns = Sequence[str | int] | None


def read_tsv(path: Path, languages: tuple[str, ...], columns: Columns) -> Iterator[tuple[str, ...]]:
    """Yield the columns of a tab-separated file. Quotes have no special meaning."""
    rows = (line.rstrip("\r\n").split("\t") for line in read_text_lines(path))
    return _fields(path, languages, columns, enumerate(rows, start=1))


def read_csv(path: Path, languages: tuple[str, ...], columns: Columns) -> Iterator[tuple[str, ...]]:
    """Yield the columns of a comma-separated file, quoted as in RFC 4180: a quoted text may contain line breaks."""
    reader = csv.reader(read_text_lines(path), strict=True)
    # An empty line is one empty column, as in tsv.
    rows = ((reader.line_num, row or [""]) for row in reader)
    try:
        yield from _fields(path, languages, columns, rows)
    except csv.Error as error:
        place = f"{path}:{max(reader.line_num, 1)}"
        cure = 'Quote a text that contains a comma, a quote or a line break, and double its quotes: "say ""hi""".'
        raise TextError(f"not a csv row ({error})", place=place, cure=cure) from error


def read_jsonl(path: Path, languages: tuple[str, ...], columns: Columns) -> Iterator[tuple[str, ...]]:
    """Yield the named values of one JSON object per line; null is an empty text."""
    names = _names(columns, languages, str(path))
    for number, line in enumerate(read_text_lines(path), start=1):
        place = f"{path}:{number}"
        try:
            record = json.loads(line.strip())
        except (ValueError, RecursionError) as error:
            problem = f"unreadable JSON ({str(error).replace('line 1 ', '')})"
            cure = "Every line of a jsonl file is one object; blank lines are not allowed."
            raise TextError(problem, place=place, cure=cure) from error
        yield tuple(_column_text(record, name, place) for name in names)


def read_parquet(path: Path, languages: tuple[str, ...], columns: Columns) -> Iterator[tuple[str, ...]]:
    """Yield the named columns of a parquet file; without `columns`, those named as the languages."""
    try:
        # Here and below: an optional dependency that takes seconds to import.
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise _not_installed("pyarrow", str(path)) from error
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
        raise _not_installed("datasets", place) from error
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
    columns = columns or range(len(languages))
    header: list[str] = []
    if any(isinstance(column, str) for column in columns):
        header = [name.strip() for name in next(rows, (0, []))[1]]
    if absent := [column for column in columns if isinstance(column, str) and column not in header]:
        raise _no_column(absent[0], f"{path}:1", header)
    positions = [header.index(column) if isinstance(column, str) else column for column in columns]
    for number, row in rows:
        if outside := [position for position in positions if not 0 <= position < len(row)]:
            problem = f"{len(row)} column(s), but the recipe names column {outside[0]}"
            cure = "Columns count from 0. Correct the line, or `columns` in the recipe."
            raise TextError(problem, place=f"{path}:{number}", cure=cure)
        yield tuple(row[position] for position in positions)


def _names(columns: Columns, languages: tuple[str, ...], place: str, available: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the columns of records: those of the recipe, else those named as the languages."""
    if columns is None and set(languages) <= set(available):
        return languages
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


def _not_installed(package: str, place: str) -> TextError:
    problem = f"the package `{package}`, which reads this, is not installed"
    return TextError(problem, place=place, cure="pip install 'roundtrip-mt[data]'")
