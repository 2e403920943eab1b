"""Reads clean lines or pairs from a text source in any format, one at a time.

Only gettext catalogues are read whole; all other formats stream. An empty side is returned as an empty text, for the
caller to count and drop.
"""

import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path

from roundtrip.data.gettext_po import read_po
from roundtrip.data.normalize import clean
from roundtrip.data.parquet_files import read_parquet
from roundtrip.data.tabular import not_installed, read_csv, read_dataset, read_jsonl, read_tsv
from roundtrip.data.text_files import read_sentences, without_markup
from roundtrip.data.tmx_xliff import read_tmx, read_xliff
from roundtrip.recipe.language_codes import match_codes
from roundtrip.recipe.schema import TextSource
from roundtrip.runtime.errors import TextError, quantity

# A file that ends in the name of a format is in it; these are other endings.
_ENDINGS = {
    "tab": "tsv",
    "ndjson": "jsonl",
    "pot": "po",
    **dict.fromkeys(("xlf", "sdlxliff", "mqxliff", "mxliff"), "xliff"),
}
# Endings of files that hold text between other things, which would be learned with it.
NO_PLAIN_LINES = (
    *("json", "xml", "html", "htm", "xhtml", "sgm", "sgml", "resx", "xlz", "txlf", "ttx", "yaml", "yml", "properties"),
    *("docx", "doc", "odt", "rtf", "pdf", "xlsx", "xls", "ods", "pptx", "epub", "srt", "vtt", "ass", "strings", "ini"),
    *("zip", "tar", "tgz", "7z", "rar", "feather", "arrow", "orc", "npy", "npz", "pkl", "bin"),
)
# Formats in which the recipe names columns.
_TABLES = {"tsv": read_tsv, "csv": read_csv, "jsonl": read_jsonl, "parquet": read_parquet}
# Formats that name the languages themselves.
_CATALOGUES = ("po", "tmx", "xliff")


def read_rows(
    source: TextSource, paths: Sequence[Path], languages: tuple[str, ...], count: Counter[str] | None = None
) -> Iterator[tuple[str, ...]]:
    """Yield the clean pairs of a parallel text, or for one language its texts; at most `source.limit`.

    `paths` are its files, resolved and local: two for a Moses pair, none for a dataset on the hub. Raises TextError
    where the text is broken or does not hold these languages. What a format counts of its rows is added to `count`.
    """
    for row in islice(_rows(source, paths, languages, Counter() if count is None else count), source.limit):
        yield tuple(map(clean, row))


def check_format(source: TextSource, paths: Sequence[Path], languages: tuple[str, ...]) -> None:
    """Refuse a source whose format does not hold these languages, or needs a package that is missing; reads nothing."""
    is_pair = source.format == "moses" or not isinstance(source.path, str)
    if is_pair:
        _check_pair(source, paths, languages)
    modules = ["datasets"] if str(source.path).startswith("hf:") else []
    for path in [] if is_pair else paths:
        _file_rows(source, path, languages, Counter())
        modules += ["pyarrow"] if _format(source, path) == "parquet" else []
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise not_installed(module, str(source.path))


def _rows(
    source: TextSource, paths: Sequence[Path], languages: tuple[str, ...], count: Counter[str]
) -> Iterator[tuple[str, ...]]:
    if str(source.path).startswith("hf:"):
        yield from read_dataset(str(source.path), languages, source.columns)
    elif source.format == "moses" or not isinstance(source.path, str):
        yield from _moses(source, paths, languages)
    else:
        for path in paths:
            yield from _file_rows(source, path, languages, count)


def _ending(path: Path) -> str:
    """Return the ending of a file's name without its dot, and without that of gzip behind it."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.removeprefix(".")


def format_of_name(path: Path) -> str:
    """Return the format that the ending of a file names, or the ending where that is the name of none."""
    ending = _ending(path).lower()
    return _ENDINGS.get(ending, ending)


def _format(source: TextSource, path: Path) -> str:
    return format_of_name(path) if source.format == "auto" else source.format


def _file_rows(
    source: TextSource, path: Path, languages: tuple[str, ...], count: Counter[str]
) -> Iterator[tuple[str, ...]]:
    if path.is_dir():
        cure = f"Name files in it, as '{path.name}/*.tsv', or one of them."
        raise TextError("a folder where a file is expected", place=str(path), cure=cure)
    name = _format(source, path)
    if name in _TABLES:
        return _TABLES[name](path, languages, source.columns)
    if name == "po":
        return read_po(path, languages, count)
    if name in _CATALOGUES:
        return (read_tmx if name == "tmx" else read_xliff)(path, languages, count)
    if source.format == "auto" and name in NO_PLAIN_LINES:
        raise _not_plain(path, f"a .{name} file is not one of plain lines", is_json=name == "json")
    if len(languages) == 1:
        return _plain_lines(path, check=source.format == "auto")
    problem = f"a file of plain lines holds one language, but pairs of {' and '.join(languages)} are needed"
    files = ", ".join(f'"{path.stem}.{language}"' for language in languages)
    endings = ", ".join(f".{name}" for name in (*_TABLES, *_CATALOGUES))
    cure = f"Name two files as one source: {{ path = [{files}] }}; or set `format`, or name a file in {endings}."
    raise TextError(problem, place=str(path), cure=cure)


def _plain_lines(path: Path, *, check: bool) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a file that is neither markup, JSON nor a table by its first ones."""

    def refusal(kind: str) -> TextError:
        return _not_plain(path, f"this file begins as {kind}, not with a line of text", is_json=kind == "JSON")

    lines, has_tab = read_sentences(path), False
    for number, line in enumerate(without_markup(lines, refusal) if check else lines, start=1):
        if check and number == 2 and has_tab and "\t" in line.strip():
            cure = 'Set `format = "tsv"`, and `columns = [1]` if the second holds the text; or `format = "lines"`.'
            raise TextError("there are tabs in its lines, as between columns", place=str(path), cure=cure)
        has_tab = "\t" in line.strip()
        yield (line,)


def _not_plain(path: Path, problem: str, *, is_json: bool) -> TextError:
    known = ", ".join(f".{name}" for name in (*_TABLES, *_CATALOGUES))
    cure = f"Convert it to one of {known}, or export its text alone, one sentence or paragraph per line, as .txt."
    if is_json:
        cure = (
            "If each line is an object, set `format = \"jsonl\"`; an array becomes such lines by jq -c '.[]' FILE > "
            "NEW.jsonl."
        )
    return TextError(problem, place=str(path), cure=cure)


def _check_pair(source: TextSource, paths: Sequence[Path], languages: tuple[str, ...]) -> None:
    if len(languages) != 2 or len(paths) != 2 or source.format not in ("auto", "moses"):
        given = f"{quantity(len(paths), 'file')}, {quantity(len(languages), 'language')}"
        given += f' and `format = "{source.format}"`'
        problem = f"a Moses pair is two files of plain lines in two languages; there are {given}"
        cure = "Name one file for each language, in the order of `languages`; for one language, one file."
        if source.format not in ("auto", "moses"):
            cure = f"Omit `format`, or name one file in the format {source.format}."
        raise TextError(problem, place=", ".join(map(str, paths)) or str(source.path), cure=cure)
    endings = [_ending(path) for path in paths]
    if source.format == "auto" and match_codes(languages, endings) == (1, 0):
        problem = f"files of {' and '.join(endings)}, where {' and '.join(languages)} are wanted in this order"
        cure = 'Name them in the order of `languages`, or set `format = "moses"` if their endings mislead.'
        raise TextError(problem, place=", ".join(map(str, paths)), cure=cure)


def _moses(source: TextSource, paths: Sequence[Path], languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    _check_pair(source, paths, languages)
    rows = zip_longest(*map(read_sentences, paths))
    for number, (line, translation) in enumerate(rows, start=1):
        if line is None or translation is None:
            longer, shorter = paths[::-1] if line is None else paths
            num_lines = number + sum(1 for _ in rows)
            problem = f"the files of a Moses pair differ in length: {num_lines} lines here, {number - 1} in {shorter}"
            cure = "Line N of one file translates line N of the other; this is the first line without a translation."
            raise TextError(problem, place=f"{longer}:{number}", cure=cure)
        yield line, translation
