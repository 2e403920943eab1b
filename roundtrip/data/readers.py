"""Reads clean lines or pairs from a text source in any format, one at a time.

Only gettext catalogues are read whole; all other formats stream. An empty side is returned as an empty text, for the
caller to count and drop.
"""

from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path

from roundtrip.data.gettext_po import read_po
from roundtrip.data.normalize import clean
from roundtrip.data.tabular import read_csv, read_dataset, read_jsonl, read_parquet, read_tsv
from roundtrip.data.text_files import read_text_lines
from roundtrip.data.tmx_xliff import read_tmx, read_xliff
from roundtrip.recipe.schema import TextSource
from roundtrip.runtime.errors import TextError

# A file that ends in the name of a format is in it; these are other endings.
_ENDINGS = {"tab": "tsv", "ndjson": "jsonl", "pot": "po", "xlf": "xliff"}
# Formats in which the recipe names columns.
_TABLES = {"tsv": read_tsv, "csv": read_csv, "jsonl": read_jsonl, "parquet": read_parquet}
# Formats that name the languages themselves.
_CATALOGUES = {"po": read_po, "tmx": read_tmx, "xliff": read_xliff}


def read_rows(source: TextSource, paths: Sequence[Path], languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the clean pairs of a parallel text, or for one language its texts; at most `source.limit`.

    `paths` are its files, resolved and local: two for a Moses pair, none for a dataset on the hub. Raises TextError
    where the text is broken or does not hold these languages.
    """
    for row in islice(_rows(source, paths, languages), source.limit):
        yield tuple(map(clean, row))


def _rows(source: TextSource, paths: Sequence[Path], languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if str(source.path).startswith("hf:"):
        yield from read_dataset(str(source.path), languages, source.columns)
    elif source.format == "moses" or not isinstance(source.path, str):
        yield from _moses(source, paths, languages)
    else:
        for path in paths:
            yield from _file_rows(source, path, languages)


def _file_rows(source: TextSource, path: Path, languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    ending = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    ending = ending.lower().removeprefix(".")
    name = _ENDINGS.get(ending, ending) if source.format == "auto" else source.format
    if name in _TABLES:
        return _TABLES[name](path, languages, source.columns)
    if name in _CATALOGUES:
        return _CATALOGUES[name](path, languages)
    if len(languages) == 1:
        return ((line,) for line in read_text_lines(path))
    endings = ", ".join(f".{name}" for name in (*_TABLES, *_CATALOGUES, *_ENDINGS))
    problem = f"a file of plain lines holds one language, but pairs of {' and '.join(languages)} are needed"
    cure = f"Name two files, or set `format`, or name a file that ends in {endings}."
    raise TextError(problem, place=str(path), cure=cure)


def _moses(source: TextSource, paths: Sequence[Path], languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if len(languages) != 2 or len(paths) != 2 or source.format not in ("auto", "moses"):
        given = f'{len(paths)} file(s), {len(languages)} language(s), and `format = "{source.format}"`'
        problem = f"a Moses pair is two files of plain lines in two languages; there are {given}"
        cure = "Name one file for each language, in the order of `languages`; for one language, one file."
        raise TextError(problem, place=", ".join(map(str, paths)) or str(source.path), cure=cure)
    rows = zip_longest(*map(read_text_lines, paths))
    for number, (line, translation) in enumerate(rows, start=1):
        if line is None or translation is None:
            longer, shorter = paths[::-1] if line is None else paths
            num_lines = number + sum(1 for _ in rows)
            problem = f"the files of a Moses pair differ in length: {num_lines} lines here, {number - 1} in {shorter}"
            cure = "Line N of one file translates line N of the other; this is the first line without a translation."
            raise TextError(problem, place=f"{longer}:{number}", cure=cure)
        yield line, translation
