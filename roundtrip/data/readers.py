"""Reads clean lines or pairs from a text source in any format, one at a time.

Only gettext catalogues are read whole; all other formats stream. An empty side is returned as an empty text, for the
caller to count and drop.
"""

from __future__ import annotations

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


def read_lines(source: TextSource, paths: Sequence[Path], language: str) -> Iterator[str]:
    """Yield the clean texts of one language, at most `source.limit`; see `read_pairs`."""
    yield from islice((clean(text) for (text,) in _rows(source, paths, (language,))), source.limit)


def read_pairs(source: TextSource, paths: Sequence[Path], languages: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the clean pairs of a parallel text in the order of `languages`, at most `source.limit`.

    Args:
        paths: its files, resolved and local; two for a Moses pair, none for a dataset on the hub.

    Raises:
        TextError: the text is broken or holds no pairs; see the reader of each format.
    """
    rows = _rows(source, paths, languages)
    yield from islice(((clean(first), clean(second)) for first, second in rows), source.limit)


def _rows(source: TextSource, paths: Sequence[Path], languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if source.format == "datasets" or (source.format == "auto" and str(source.path).startswith("hf:")):
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
    raise TextError(
        f"a file of plain lines holds one language, but pairs of {' and '.join(languages)} are needed",
        place=str(path),
        cure=f"Name two files, or set `format`, or name a file that ends in {endings}.",
    )


def _moses(source: TextSource, paths: Sequence[Path], languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if len(languages) != 2 or len(paths) != 2 or source.format not in ("auto", "moses"):
        raise TextError(
            f"a Moses pair is two files of plain lines in two languages; there are {len(paths)} file(s), "
            f'{len(languages)} language(s), and `format = "{source.format}"`',
            place=", ".join(map(str, paths)) or str(source.path),
            cure="Name one file for each language, in the order of `languages`; for one language, one file.",
        )
    first, second = paths
    rows = zip_longest(read_text_lines(first), read_text_lines(second))
    for number, (line, translation) in enumerate(rows, start=1):
        if line is None or translation is None:
            longer, shorter = (second, first) if line is None else (first, second)
            raise TextError(
                f"the files of a Moses pair differ in length: {number + sum(1 for _ in rows)} lines here, "
                f"{number - 1} in {shorter}",
                place=f"{longer}:{number}",
                cure="Line N of one file translates line N of the other; this is the first line without a translation.",
            )
        yield line, translation
