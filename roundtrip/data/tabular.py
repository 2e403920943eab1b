"""Text in columns: tsv, csv, jsonl and datasets on the hub; parquet files are in `parquet_files`.

`columns` are those that the recipe names, one for each of `languages`; errors name the file and the line or row.
"""

import csv
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from roundtrip.data.text_files import MAX_LINE_BYTES, markup_kind, read_text_lines
from roundtrip.recipe.language_codes import code_of_name, match_codes, match_rank, parse_code
from roundtrip.runtime.downloads import parse_dataset
from roundtrip.runtime.errors import TextError, quantity
from roundtrip.runtime.hub import hub_requests

MAX_COLUMNS = 2000
# Words of a header that name no language: of columns of text, and others.
_TEXT_WORDS = (
    *("source", "target", "src", "tgt", "trg", "original", "translation", "translated", "reference", "input", "output"),
    *("text", "sentence", "segment", "string", "phrase", "word"),
)
_HEADER_WORDS = (*_TEXT_WORDS, "id", "lang", "language", "col", "column", "line")
# Names of columns of numbers, though Indonesian and Norwegian have them as codes.
_NUMBERS = ("id", "no")
# A quote that is never closed takes all that follows into one text.
csv.field_size_limit(1 << 20)
_ONE_OBJECT = (
    "Every line of a jsonl file is one object; blank lines are not allowed between them. jq makes such lines: "
    "jq -c . FILE > NEW.jsonl, and of one array: jq -c '.[]' FILE > NEW.jsonl."
)
Columns = Sequence[str | int] | None


def read_tsv(path: Path, languages: tuple[str, ...], columns: Columns) -> Iterator[tuple[str, ...]]:
    """Yield the columns of a tab-separated file. Quotes have no special meaning."""
    rows = (line.rstrip("\r\n").split("\t") for line in row_lines(path, read_text_lines(path)))
    return _fields(path, languages, columns, enumerate(rows, start=1))


def read_csv(path: Path, languages: tuple[str, ...], columns: Columns) -> Iterator[tuple[str, ...]]:
    """Yield the columns of a comma-separated file, quoted as in RFC 4180: a quoted text may contain line breaks."""
    lines = row_lines(path, read_text_lines(path))
    sample = list(islice(lines, 20))
    if cure := other_separator(sample, len(languages)):
        raise TextError("the commas of this file are no separators", place=f"{path}:1", cure=cure)
    reader = csv.reader(chain(sample, lines), strict=True, skipinitialspace=True)
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
    for number, line in enumerate(without_blank_end(read_text_lines(path)), start=1):
        place = f"{path}:{number}"
        try:
            record = json.loads(line.strip())
        except (ValueError, RecursionError) as error:
            problem = f"unreadable JSON ({str(error).replace('line 1 ', '')})"
            raise TextError(problem, place=place, cure=_ONE_OBJECT) from error
        if number == 1 and not isinstance(record, dict):
            raise TextError(f"{type(record).__name__} where an object is expected", place=place, cure=_ONE_OBJECT)
        names = names or column_names(columns, languages, place, list(record))
        yield tuple(column_text(record, name, place) for name in names)


def row_lines(path: Path, lines: Iterator[str]) -> Iterator[str]:
    """Yield the lines of a table without blank ones at the end; the first must be one of a table."""
    for number, line in enumerate(without_blank_end(lines), start=1):
        # A line with a tab is a row, though one of its texts may be a bracket.
        if number == 1 and "\t" not in line and (kind := markup_kind(line)):
            cure = "Set `format` in the recipe to what this file is, or name another."
            raise TextError(f"this file begins as {kind}, not with a row of a table", place=str(path), cure=cure)
        if number == 1 and line.lower().startswith("sep="):
            cure = "Delete the line, and save the file with commas or tabs between the fields."
            raise TextError(f"a line that only Excel reads: {line.strip()}", place=f"{path}:1", cure=cure)
        yield line


def without_blank_end(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines except for blank ones at the end, which editors (and DOS, as ^Z) leave there."""
    blank: list[str] = []
    for line in lines:
        if line.strip(" \r\n\x1a"):
            yield from blank
            blank.clear()
            yield line
        else:
            blank.append(line)


def read_dataset(spec: str, languages: tuple[str, ...], columns: Columns) -> Iterator[tuple[str, ...]]:
    """Yield the named columns of a dataset on the hub, streamed; columns as for parquet."""
    dataset = parse_dataset(spec)
    place = f"hf:{dataset.name}"
    if Path(dataset.name).exists():  # which would be read without the limits of files
        raise TextError("this is a path, not the name of a data set", place=place, cure="Name its files without `hf:`.")
    try:
        from datasets import config, load_dataset
        from huggingface_hub import constants
    except ImportError as error:
        raise not_installed("datasets", place) from error
    # Of 20, each of which tries a request up to 6 times: half an hour, or longer, until it is known that a hub is down.
    config.STREAMING_READ_MAX_RETRIES = config.STREAMING_OPEN_MAX_RETRIES = 3
    names: tuple[str, ...] = ()
    # Offline it may be in the cache of `datasets`, which a stream does not use.
    settings = {"split": dataset.split, "streaming": not constants.HF_HUB_OFFLINE, "revision": dataset.revision}
    arguments = ", ".join(json.dumps(value) for value in (dataset.name, dataset.subset) if value)
    arguments += f", revision={json.dumps(dataset.revision)}" if dataset.revision else ""
    store = shlex.join(["python", "-c", f"from datasets import load_dataset; load_dataset({arguments})"])
    with hub_requests(f"data set '{dataset.name}'", place, TextError, f"run once with network access: {store}"):
        for number, record in enumerate(load_dataset(dataset.name, dataset.subset, **settings), start=1):
            names = names or column_names(columns, languages, place, list(record))
            yield tuple(column_text(record, name, f"{place} ({dataset.split}), row {number}") for name in names)


def _fields(
    path: Path, languages: tuple[str, ...], columns: Columns, rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[str, ...]]:
    """Yield the chosen fields of rows, all of which have as many as the first; a header is not a row.

    Without `columns` the header names the languages, or there are as many fields as languages. A separator inside a
    text would shift the others.
    """
    first = next(rows, None)
    if first is None:
        return
    width = len(first[1])
    _refuse_wide(width, f"{path}:{first[0]}")
    place, names = f"{path}:{first[0]}", [name.strip() for name in first[1]]
    if columns is None:
        positions, has_header = _positions_by_header(place, languages, names)
    else:
        positions, has_header = _positions(place, languages, columns, names)
    for number, row in rows if has_header else chain([first], rows):
        if len(row) != width:
            problem = f"{quantity(len(row), 'column')} where line {first[0]} has {width}"
            cure = "Correct the line: in csv a text that contains a comma is quoted, in tsv no text contains a tab."
            raise TextError(problem, place=f"{path}:{number}", cure=cure)
        yield tuple(row[position] for position in positions)


def _positions(
    place: str, languages: Sequence[str], columns: Sequence[str | int], names: list[str]
) -> tuple[list[int], bool]:
    """Return the positions of the columns of a recipe, and whether the first row is a header."""
    for column in columns:
        if isinstance(column, str) and column not in names:
            raise no_column(column, place, names, _separator_cure(names))
        if isinstance(column, int) and not 0 <= column < len(names):
            cure = _separator_cure(names) or "Columns count from 0. Correct `columns` in the recipe."
            problem = f"{quantity(len(names), 'column')}, but the recipe names column {column}"
            raise TextError(problem, place=place, cure=cure)
    positions = [names.index(column) if isinstance(column, str) else column for column in columns]
    if any(isinstance(column, str) for column in columns):
        return positions, True
    chosen = [names[position] for position in positions]
    of_languages = columns_of(languages, names)
    if None in of_languages:
        return positions, is_header(chosen)
    codes = ["" if name.lower() in _NUMBERS else _code_in(name) for name in chosen]
    if any(code and match_rank(wanted, code) is None for wanted, code in zip(languages, codes, strict=True)):
        problem = f"the header calls columns {positions} {' and '.join(chosen)}; wanted: {' and '.join(languages)}"
        raise TextError(
            problem, place=place, cure=f"Use `columns = {list(of_languages)}` in the recipe, or leave it out."
        )
    return positions, True


def _positions_by_header(place: str, languages: Sequence[str], names: list[str]) -> tuple[list[int], bool]:
    """Return the positions of the languages by the first row, and whether it is a header: else there are no others."""
    of_languages = [position for position in columns_of(languages, names) if position is not None]
    if len(of_languages) == len(languages):
        return of_languages, True
    positions = list(range(len(languages)))
    if len(names) != len(languages):
        of_text = [position for position, name in enumerate(names) if name.lower() in _TEXT_WORDS][: len(languages)]
        example = of_text if len(of_text) == len(languages) else positions
        listed = ", ".join(f"{position} {name[:20]!r}" for position, name in enumerate(names))
        cure = _separator_cure(names) or (
            f"Name those to read in the recipe, in the order of its languages, as `columns = {example}`; the first "
            f"line has {listed}. A comma inside a text needs quotes around it (csv), a tab cannot be in one (tsv)."
            if len(names) > len(languages)
            else "Put a tab between the texts of each line, in a .csv a comma, and no blank lines before them."
        )
        raise TextError(f"{quantity(len(names), 'column')}, expected {len(languages)}", place=place, cure=cure)
    labels = [_label(name) for name in names]
    if is_header(names) or (all(labels) and len(set(labels)) == len(labels)):
        listed = ", ".join(f'"{name}"' for name in names)
        problem = f"the first line is a header that does not name {' and '.join(languages)}: {', '.join(names)}"
        cure = f"Name the columns in the recipe, in the order of its languages: `columns = [{listed}]`."
        if not is_header(names):
            cure = f"Name a file in {' and '.join(languages)}. If the line is text: `columns = {positions}`."
        raise TextError(problem, place=place, cure=cure)
    return positions, False


def is_header(names: Sequence[str]) -> bool:
    """Return whether the names of columns say nothing but that they are columns, and of which languages."""
    labels = [_label(name) for name in names]
    return all(labels) and "word" in labels and len(set(names)) == len(names)


def _label(name: str) -> str:
    """Return "word" for a name that says only that this is a column, the code of one that names a language, else ""."""
    words = _words(name)
    if words and not _other_words(words):
        return "word"
    code = _code_in(name)
    # Many words of three letters are codes too, as "the".
    return code if len(code) == 2 or code != name else ""


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=\d)", " ", name.casefold()))


def _other_words(words: Sequence[str]) -> list[str]:
    return [word for word in words if not {word, word.removesuffix("s")} & {*_HEADER_WORDS} and not word.isdecimal()]


def _code_in(name: str) -> str:
    """Return the language code in the name of a column, as `fr` of `fr`, `French`, `source_fr` and `text (French)`."""
    name = name.strip("\"'#[]*: ")
    others = _other_words(_words(name))
    with_words = [] if len(others) == len(_words(name)) else ["-".join(others), " ".join(others)]
    codes = [code for text in (name, *with_words) if parse_code(code := code_of_name(text)) is not None]
    # As in `French (fr)`, where each word names the same language.
    by_word = [code_of_name(word) for word in others if len(others) > 1]
    codes += [code for code in by_word[:1] if all(match_rank(code, other) is not None for other in by_word)]
    return next(iter(codes), "")


def _refuse_wide(width: int, place: str) -> None:
    if width > MAX_COLUMNS:
        raise TextError(f"{width:,} columns, more than {MAX_COLUMNS:,}", place=place, cure="Keep those of text alone.")


def columns_of(languages: Sequence[str], names: Sequence[str]) -> tuple[int | None, ...]:
    """Return the positions of the columns that are named as the languages, None for those without one.

    A column `id` is no Indonesian beside one of text, or another one of Indonesian.
    """
    codes = [_code_in(name) for name in names]
    for position, name in enumerate(names):
        if name.lower() in _NUMBERS and any(
            i != position and (other.lower() in _TEXT_WORDS or match_rank(name, code) is not None)
            for i, (other, code) in enumerate(zip(names, codes, strict=True))
        ):
            codes[position] = ""
    return match_codes(languages, codes)


def other_separator(lines: Sequence[str], num_fields: int) -> str | None:
    """Return the cure of a csv whose lines have commas in their texts, and each another character between these."""
    if num_fields > 1 and not any('"' in line for line in lines) and any(", " in line for line in lines):
        for separator in ";\t|":
            if all(line.count(separator) == num_fields - 1 for line in lines):
                return _separator_cure([lines[0].replace(",", "")])
    return None


def _separator_cure(fields: Sequence[str]) -> str | None:
    """Return the cure of a row that another character than that of its format seems to separate."""
    text, start = ",".join(fields), "The fields seem to be separated by"
    if "\t" in text:
        return f'{start} tabs: rename the file as .tsv, or set `format = "tsv"` in the recipe.'
    if len(fields) == 1:
        for separator, name in ((";", "semicolons"), ("|||", "|||"), ("|", "|")):
            if separator in text:
                return f"{start} {name}: save the file with tabs between them, as .tsv."
        if "," in text:
            return f'{start} commas: rename the file as .csv, or set `format = "csv"` in the recipe.'
    return None


def column_names(
    columns: Columns, languages: tuple[str, ...], place: str, available: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the columns of records: those of the recipe, else those named as the languages."""
    _refuse_wide(len(available), place)
    of_languages = [available[position] for position in columns_of(languages, available) if position is not None]
    if columns is None and len(of_languages) == len(languages):
        return tuple(of_languages)
    names = tuple(column for column in columns or () if isinstance(column, str))
    if columns is None or len(names) < len(columns):
        example = (
            of_languages
            if len(of_languages) == len(languages)
            else [n for n in available if n.lower() not in (*_NUMBERS, "lang", "language")]
        )
        if "translation" in available or len(example) < len(languages):
            example = [f"translation.{language}" for language in languages]
        listed = ", ".join(f'"{name}"' for name in example[: len(languages)])
        shown = f"; this file has: {', '.join(available)}." if available else "."
        cure = f"Add `columns = [{listed}]`, the names of the columns to read in the order of the languages{shown}"
        raise TextError("the recipe does not name the columns of these records", place=place, cure=cure)
    return names


def column_text(record: Any, column: str, place: str) -> str:
    """Return the text of a column; a dot reaches into a nested record, unless a column has exactly that name."""
    value = record
    for part in [column] if isinstance(record, dict) and column in record else column.split("."):
        if value is None:
            return ""
        if not isinstance(value, dict):
            raise not_record(type(value).__name__, part, column, place)
        if part not in value:
            cure = f"Choose `columns` from: {', '.join(value)}; a record without this text has null there."
            raise no_column(column, place, list(value), cure if value else None)
        value = value[part]
    return text_value(value, column, place)


def text_value(value: Any, column: str, place: str) -> str:
    """Return the value of a column as text; null is an empty one."""
    if value is not None and not isinstance(value, str):
        raise not_text(type(value).__name__, column, place)
    if value and len(value) > MAX_LINE_BYTES:
        cure = "Text has one sentence or paragraph per record; check the column."
        raise TextError(f"a text of more than {MAX_LINE_BYTES >> 20} MiB", place=place, cure=cure)
    return value or ""


def not_text(kind: str, column: str, place: str) -> TextError:
    problem = f"column {column!r} contains {kind}, not text"
    cure = "Name a column of texts in `columns`; a dot reaches into a record, as in `translation.en`."
    return TextError(problem, place=place, cure=cure)


def not_record(kind: str, part: str, column: str, place: str) -> TextError:
    problem = f"{kind} where a record with {part!r} is expected"
    cure = f"The recipe names column {column!r}: correct the record, or `columns` in the recipe."
    return TextError(problem, place=place, cure=cure)


def no_column(column: str, place: str, available: Sequence[str], cure: str | None = None) -> TextError:
    cure = cure or f"Choose `columns` from: {', '.join(available) or 'nothing, the file is empty'}."
    return TextError(f"no column {column!r}", place=place, cure=cure)


def not_installed(package: str, place: str) -> TextError:
    problem = f"the package `{package}`, which reads this, is not installed"
    return TextError(problem, place=place, cure="pip install 'roundtrip-mt[data]'")
