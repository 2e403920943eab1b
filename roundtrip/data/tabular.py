"""Text in columns: tsv, csv, jsonl, parquet and data sets of the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from roundtrip.data.text_files import open_text, read_text_lines
from roundtrip.recipe.schema import TextSource
from roundtrip.runtime.downloads import DatasetSpec, parse_dataset
from roundtrip.runtime.errors import RoundtripError, TextError

_ROWS_AT_ONCE = 1024


def read_tsv(source: TextSource, path: Path, languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the columns of a tab-separated file. A quote is a character like any other.

    Raises:
        TextError: a line without a column that is asked for, or a header without its name.
    """
    rows = (line.rstrip("\r\n").split("\t") for line in read_text_lines(path))
    return _fields(source, path, languages, enumerate(rows, start=1))


def read_csv(source: TextSource, path: Path, languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the columns of a comma-separated file, quoted as in RFC 4180: a quoted text may hold line breaks.

    Raises:
        TextError: as for a tsv, or bad quoting.
    """
    return _fields(source, path, languages, _csv_rows(path))


def read_jsonl(source: TextSource, path: Path, languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the named values of one JSON object per line; null is an empty text.

    Raises:
        TextError: `columns` are missing in the recipe, a line is not an object, or lacks the text.
    """
    columns = _names(source, languages, place=str(path))
    for number, line in enumerate(read_text_lines(path), start=1):
        place = f"{path}:{number}"
        try:
            record = json.loads(line.strip())
        except json.JSONDecodeError as error:
            raise TextError(
                f"not JSON at column {error.colno} ({error.msg})",
                place=place,
                cure="Every line of a jsonl file is one object, with no blank lines between them.",
            ) from error
        except (ValueError, RecursionError) as error:
            raise TextError(f"not JSON that can be read ({error})", place=place) from error
        yield tuple(_reach(record, column, place) for column in columns)


def read_parquet(source: TextSource, path: Path, languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the named columns of a parquet file; without `columns`, those named as the languages.

    Raises:
        TextError: a broken file, no such column, or a column that is not text; the place names the row.
    """
    try:
        import pyarrow  # here and below: seconds to import, and most recipes need neither
        from pyarrow import parquet
    except ImportError as error:
        raise _missing("pyarrow", str(path)) from error
    with open_text(path) as handle:
        try:
            file = parquet.ParquetFile(handle)
            names = file.schema_arrow.names
            columns = _names(source, languages, place=str(path), found=names)
            needed = {column if column in names else column.partition(".")[0] for column in columns}
            if absent := sorted(needed.difference(names)):
                raise _no_column(absent[0], str(path), names)
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=sorted(needed)):
                for record in batch.to_pylist():
                    number += 1
                    place = f"{path}, row {number}"
                    yield tuple(_reach(record, column, place) for column in columns)
        except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
            raise TextError(
                f"not a parquet file that can be read ({_first_line(error)})",
                place=str(path),
                cure="Fetch or write the file again.",
            ) from error


def read_dataset(source: TextSource, languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the named columns of a data set of the hub, streamed; columns as for parquet.

    Raises:
        TextError: `datasets` is not installed, the data set cannot be reached, or lacks the columns.
    """
    spec = parse_dataset(str(source.path))
    columns: tuple[str, ...] | None = None
    for number, record in enumerate(_dataset_records(spec), start=1):
        if columns is None:
            columns = _names(source, languages, place=f"hf:{spec.name}", found=list(record))
        place = f"hf:{spec.name} ({spec.split}), row {number}"
        yield tuple(_reach(record, column, place) for column in columns)


def _dataset_records(spec: DatasetSpec) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise _missing("datasets", f"hf:{spec.name}") from error
    try:
        yield from load_dataset(spec.name, spec.subset, split=spec.split, streaming=True)
    except RoundtripError:
        raise
    except Exception as error:  # a hub fails in as many ways as the libraries below it; they share no base
        raise TextError(
            f"the data set cannot be read ({type(error).__name__}: {_first_line(error)})",
            place=f"hf:{spec.name}",
            cure="Check its name, `subset`, `split` and the network, or name a local file.",
        ) from error


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(read_text_lines(path), strict=True)
    try:
        for row in reader:
            # An empty line is one empty column, as in a tsv.
            yield reader.line_num, row or [""]
    except csv.Error as error:
        raise TextError(
            f"not a csv row ({error})",
            place=f"{path}:{max(reader.line_num, 1)}",
            cure='Quote a text that holds a comma, a quote or a line break; double its quotes: "say ""hi""".',
        ) from error


def _fields(
    source: TextSource, path: Path, languages: tuple[str, ...], rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[str, ...]]:
    columns: Sequence[str | int] = source.columns or range(len(languages))
    _check_number(columns, languages, str(path))
    header: list[str] = []
    if any(isinstance(column, str) for column in columns):
        header = [name.strip() for name in next(rows, (0, []))[1]]
    if absent := [column for column in columns if isinstance(column, str) and column not in header]:
        raise _no_column(absent[0], f"{path}:1", header)
    positions = [header.index(column) if isinstance(column, str) else column for column in columns]
    for number, row in rows:
        if short := [position for position in positions if not 0 <= position < len(row)]:
            raise TextError(
                f"{len(row)} column(s), the recipe asks for column {short[0]}",
                place=f"{path}:{number}",
                cure="Columns count from 0. Correct the line, or `columns` in the recipe.",
            )
        yield tuple(row[position] for position in positions)


def _names(source: TextSource, languages: tuple[str, ...], *, place: str, found: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the columns of records: those of the recipe, else those named as the languages."""
    columns: Sequence[str | int] | None = source.columns
    if columns is None and set(languages) <= set(found):
        columns = languages
    names = tuple(column for column in columns or () if isinstance(column, str))
    if columns is None or len(names) < len(columns):
        example = ", ".join(f'"translation.{language}"' for language in languages)
        raise TextError(
            "records have named columns, and the recipe does not name them",
            place=place,
            cure=f"Add `columns = [{example}]`, with the names that they have here"
            + (f": {', '.join(found)}." if found else "."),
        )
    _check_number(columns, languages, place)
    return names


def _check_number(columns: Sequence[str | int], languages: tuple[str, ...], place: str) -> None:
    if len(columns) != len(languages):
        raise TextError(
            f"the recipe names {len(columns)} column(s) for {len(languages)} language(s)",
            place=place,
            cure=f"`columns` wants one for each of: {', '.join(languages)}.",
        )


def _reach(record: Any, column: str, place: str) -> str:
    """Return the text of a column; a dot leads into a nested record, unless a column is named just so."""
    value = record
    for part in [column] if isinstance(record, dict) and column in record else column.split("."):
        if not isinstance(value, dict):
            raise TextError(
                f"{type(value).__name__} where a record with {part!r} is expected",
                place=place,
                cure=f"The recipe asks for column {column!r}: correct the record, or `columns` there.",
            )
        if part not in value:
            raise _no_column(column, place, list(value))
        value = value[part]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TextError(
            f"column {column!r} holds {type(value).__name__}, not text",
            place=place,
            cure="Name a column of texts in `columns`; a dot leads into a record, as in `translation.en`.",
        )
    return value


def _no_column(column: str, place: str, found: Sequence[str]) -> TextError:
    return TextError(
        f"no column {column!r}",
        place=place,
        cure=f"Name in `columns` what is there: {', '.join(found) or 'nothing, the file is empty'}.",
    )


def _missing(package: str, place: str) -> TextError:
    return TextError(
        f"the package `{package}` that reads this is not installed",
        place=place,
        cure=f"pip install {package}",
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no message")
