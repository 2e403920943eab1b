"""Text in columns: tsv, csv, jsonl, parquet and datasets on the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from roundtrip.data.text_files import open_text, read_text_lines
from roundtrip.recipe.schema import TextSource
from roundtrip.runtime.downloads import DatasetSpec, parse_dataset
from roundtrip.runtime.errors import RoundtripError, TextError, first_line

_BATCH_ROWS = 1024


def read_tsv(source: TextSource, path: Path, languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the columns of a tab-separated file. Quotes have no special meaning.

    Raises:
        TextError: a line or header without a column that the recipe names.
    """
    rows = (line.rstrip("\r\n").split("\t") for line in read_text_lines(path))
    return _fields(source, path, languages, enumerate(rows, start=1))


def read_csv(source: TextSource, path: Path, languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the columns of a comma-separated file, quoted as in RFC 4180: a quoted text may contain line breaks.

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
                cure="Every line of a jsonl file is one object; blank lines are not allowed.",
            ) from error
        except (ValueError, RecursionError) as error:
            raise TextError(f"unreadable JSON ({error})", place=place) from error
        yield tuple(_column_text(record, column, place) for column in columns)


def read_parquet(source: TextSource, path: Path, languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the named columns of a parquet file; without `columns`, those named as the languages.

    Raises:
        TextError: a broken file, no such column, or a column that is not text; the place names the row.
    """
    try:
        # Here and below: an optional dependency that takes seconds to import.
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise _not_installed("pyarrow", str(path)) from error
    with open_text(path) as handle:
        try:
            file = parquet.ParquetFile(handle)
            names = file.schema_arrow.names
            columns = _names(source, languages, place=str(path), available=names)
            top_level = {column if column in names else column.partition(".")[0] for column in columns}
            if absent := sorted(top_level.difference(names)):
                raise _no_column(absent[0], str(path), names)
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=sorted(top_level)):
                for record in batch.to_pylist():
                    number += 1
                    place = f"{path}, row {number}"
                    yield tuple(_column_text(record, column, place) for column in columns)
        except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
            raise TextError(
                f"unreadable parquet file ({first_line(error)})",
                place=str(path),
                cure="Download or write the file again.",
            ) from error


def read_dataset(source: TextSource, languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the named columns of a dataset on the hub, streamed; columns as for parquet.

    Raises:
        TextError: `datasets` is not installed, the dataset cannot be read, or lacks the columns.
    """
    spec = parse_dataset(str(source.path))
    columns: tuple[str, ...] | None = None
    for number, record in enumerate(_dataset_records(spec), start=1):
        if columns is None:
            columns = _names(source, languages, place=f"hf:{spec.name}", available=list(record))
        place = f"hf:{spec.name} ({spec.split}), row {number}"
        yield tuple(_column_text(record, column, place) for column in columns)


def _dataset_records(spec: DatasetSpec) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise _not_installed("datasets", f"hf:{spec.name}") from error
    try:
        yield from load_dataset(spec.name, spec.subset, split=spec.split, streaming=True)
    except RoundtripError:
        raise
    except Exception as error:  # the libraries below share no base class of errors
        raise TextError(
            f"the dataset cannot be read ({type(error).__name__}: {first_line(error)})",
            place=f"hf:{spec.name}",
            cure="Check its name, its split and the network, or name a local file.",
        ) from error


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(read_text_lines(path), strict=True)
    try:
        for row in reader:
            # An empty line is one empty column, as in tsv.
            yield reader.line_num, row or [""]
    except csv.Error as error:
        raise TextError(
            f"not a csv row ({error})",
            place=f"{path}:{max(reader.line_num, 1)}",
            cure='Quote a text that contains a comma, a quote or a line break, and double its quotes: "say ""hi""".',
        ) from error


def _fields(
    source: TextSource, path: Path, languages: tuple[str, ...], rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[str, ...]]:
    columns: Sequence[str | int] = source.columns or range(len(languages))
    _check_count(columns, languages, str(path))
    header: list[str] = []
    if any(isinstance(column, str) for column in columns):
        header = [name.strip() for name in next(rows, (0, []))[1]]
    if absent := [column for column in columns if isinstance(column, str) and column not in header]:
        raise _no_column(absent[0], f"{path}:1", header)
    positions = [header.index(column) if isinstance(column, str) else column for column in columns]
    for number, row in rows:
        if outside := [position for position in positions if not 0 <= position < len(row)]:
            raise TextError(
                f"{len(row)} column(s), but the recipe names column {outside[0]}",
                place=f"{path}:{number}",
                cure="Columns count from 0. Correct the line, or `columns` in the recipe.",
            )
        yield tuple(row[position] for position in positions)


def _names(
    source: TextSource, languages: tuple[str, ...], *, place: str, available: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the columns of records: those of the recipe, else those named as the languages."""
    columns: Sequence[str | int] | None = source.columns
    if columns is None and set(languages) <= set(available):
        columns = languages
    names = tuple(column for column in columns or () if isinstance(column, str))
    if columns is None or len(names) < len(columns):
        example = ", ".join(f'"translation.{language}"' for language in languages)
        raise TextError(
            "the recipe does not name the columns of these records",
            place=place,
            cure=f"Add `columns = [{example}]`, with their names in this file"
            + (f": {', '.join(available)}." if available else "."),
        )
    _check_count(columns, languages, place)
    return names


def _check_count(columns: Sequence[str | int], languages: tuple[str, ...], place: str) -> None:
    if len(columns) != len(languages):
        raise TextError(
            f"the recipe names {len(columns)} column(s) for {len(languages)} language(s)",
            place=place,
            cure=f"`columns` needs one name for each of: {', '.join(languages)}.",
        )


def _column_text(record: Any, column: str, place: str) -> str:
    """Return the text of a column; a dot reaches into a nested record, unless a column has exactly that name."""
    value = record
    for part in [column] if isinstance(record, dict) and column in record else column.split("."):
        if not isinstance(value, dict):
            raise TextError(
                f"{type(value).__name__} where a record with {part!r} is expected",
                place=place,
                cure=f"The recipe names column {column!r}: correct the record, or `columns` in the recipe.",
            )
        if part not in value:
            raise _no_column(column, place, list(value))
        value = value[part]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TextError(
            f"column {column!r} contains {type(value).__name__}, not text",
            place=place,
            cure="Name a column of texts in `columns`; a dot reaches into a record, as in `translation.en`.",
        )
    return value


def _no_column(column: str, place: str, available: Sequence[str]) -> TextError:
    return TextError(
        f"no column {column!r}",
        place=place,
        cure=f"Choose `columns` from: {', '.join(available) or 'nothing, the file is empty'}.",
    )


def _not_installed(package: str, place: str) -> TextError:
    return TextError(
        f"the package `{package}`, which reads this, is not installed",
        place=place,
        cure="pip install 'roundtrip-mt[data]'",
    )
