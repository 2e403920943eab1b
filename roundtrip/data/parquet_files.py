"""Texts of the columns of parquet files, also of nested ones, in bounded memory."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from roundtrip.data import text_files
from roundtrip.data.tabular import (
    Columns,
    column_names,
    no_column,
    not_installed,
    not_record,
    not_text,
    text_value,
)
from roundtrip.data.text_files import open_text
from roundtrip.runtime.errors import TextError, first_line

_BATCH_ROWS, _PART_BYTES = 1024, 64 << 20


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
            metadata = parquet.read_metadata(handle)
            _refuse_growth(metadata, path)
            schema = metadata.schema.to_arrow_schema()
            names = column_names(columns, languages, str(path), schema.names)
            fields = [_text_field(schema, name, str(path)) for name in names]
            leaves = [".".join(field) for field in fields]
            # A dictionary stays one: expanded, each row of a batch might have a text as long as the file allows.
            file = parquet.ParquetFile(handle, metadata=metadata, read_dictionary=leaves)
            batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=leaves)
            parts = (part for batch in batches for part in _parts([_leaf(batch, field) for field in fields]))
            for number, row in enumerate(chain.from_iterable(parts), start=1):
                place = f"{path}, row {number}"
                yield tuple(text_value(value, name, place) for value, name in zip(row, names, strict=True))
        except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
            problem = f"unreadable parquet file ({first_line(error)})"
            raise TextError(problem, place=str(path), cure="Download or write the file again.") from error


def _text_field(schema: Any, column: str, place: str) -> list[str]:
    """Return the names of the fields from the top to a column of texts; a dot reaches into a record."""
    import pyarrow
    from pyarrow import types

    kind: Any = pyarrow.struct(schema)
    path: list[str] = []
    for part in [column] if column in schema.names else column.split("."):
        if not types.is_struct(kind):
            raise not_record(str(kind), part, column, place)
        available = [kind.field(i).name for i in range(kind.num_fields)]
        if part not in available:
            raise no_column(part, place, available)
        kind = kind.field(available.index(part)).type
        path.append(part)
    value_kind = kind.value_type if types.is_dictionary(kind) else kind
    is_text = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    if not any(check(value_kind) for check in is_text):
        raise not_text(str(value_kind), column, place)
    return path


def _leaf(batch: Any, path: Sequence[str]) -> Any:
    """Return the array of a field of a batch, null where a record around it is."""
    from pyarrow import compute

    array = batch.column(batch.schema.names.index(path[0]))
    for part in path[1:]:
        array = compute.struct_field(array, part)
    return array


def _parts(arrays: Sequence[Any]) -> Iterator[Iterator[tuple[Any, ...]]]:
    """Yield the rows of arrays, in parts whose texts are small enough to be in memory together."""
    from pyarrow import compute

    dictionaries = [array.dictionary for array in arrays if hasattr(array, "dictionary")]
    longest = max((compute.max(compute.binary_length(texts)).as_py() or 0 for texts in dictionaries), default=0)
    num_rows = max(1, _PART_BYTES // max(1, longest))
    for start in range(0, len(arrays[0]), num_rows):
        slices = [array.slice(start, num_rows) for array in arrays]
        decoded = [part.dictionary_decode() if hasattr(part, "dictionary") else part for part in slices]
        yield zip(*(part.to_pylist() for part in decoded), strict=True)


def _refuse_growth(metadata: Any, path: Path) -> None:
    """Refuse a file whose columns declare more bytes than text of its size unpacks to."""
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    size = sum(max(group.total_byte_size, 0) for group in groups)
    if size > max(text_files.FREE_BYTES, text_files.MAX_GROWTH * path.stat().st_size):
        problem = f"it grows more than {text_files.MAX_GROWTH} times when it is unpacked"
        raise TextError(problem, place=str(path), cure="Write it again without compression if you trust it.")
