"""Finds out what text files hold: format, languages, which are parallel, and which part of a recipe they suit.

A name says it (`train.en`, `dev.fr.gz`), or the content: headers, markup, and language identification where it is
installed. Each source is then read as a run reads it, so that what is returned can be used.
"""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from roundtrip.data.language_id import identify
from roundtrip.data.readers import NO_PLAIN_LINES, format_of_name, read_rows
from roundtrip.data.tabular import columns_of, is_header
from roundtrip.data.text_files import markup_kind, open_text, read_sentences, read_text_lines
from roundtrip.recipe.language_codes import code_of_name, match_rank, parse_code, standard_code
from roundtrip.recipe.schema import TextFormat, TextSource
from roundtrip.runtime.errors import TextError, UsageError, quantity

# Rows after which a source is no longer counted, files of a folder, and lines that are looked at.
MAX_ROWS, MAX_FILES, NUM_LINES = 200_000, 2000, 400
# Correlation of the lengths of line N in two files below which they are no translations of each other.
MIN_CORRELATION, MIN_CORRELATED = 0.2, 20
_CATALOGUES: tuple[TextFormat, ...] = ("po", "tmx", "xliff")
_TABLES: tuple[TextFormat, ...] = ("tsv", "csv", "jsonl", "parquet")
_PARTS = {
    "dev": ("dev", "devel", "development", "val", "valid", "validation", "tune", "tuning"),
    "test": ("test", "tst", "eval", "evaluation", "heldout"),
    "mono": ("mono", "monolingual"),
}
# Files that are no text to translate, though their ending may be one of text.
_OTHER = ("readme", "license", "licence", "changelog", "requirements", "makefile", "copying", "authors")
_NO_TEXT = ("toml", "py", "md", "sh", "log", "cfg", "lock", "gguf", "safetensors", "mo", "png", "jpg")
# What names languages at the start of a catalogue.
_CODES = re.compile(
    r'"(?:Language|X-Source-Language|Language-Code): *([\w@-]+)|(?:xml:lang|source-language|target-language|srcLang|'
    r"""trgLang|srclang)=["']([\w-]+)"""
)


@dataclass(frozen=True)
class TextFile:
    """A file that holds text: how it is read, the languages that it seems to hold, and the part that its name says."""

    path: Path
    kind: TextFormat
    codes: tuple[str, ...]
    part: str  # "train", "dev", "test" or "mono"
    key: str  # its name without what names its language
    forced: bool  # the part is what the user named

    def source(self, columns: tuple[str | int, ...] | None = None) -> TextSource:
        """Return the file as a source of a recipe, whose format is named where the ending does not."""
        by_name = format_of_name(self.path)
        by_ending = by_name == self.kind or (self.kind == "lines" and by_name not in (*_TABLES, *_CATALOGUES))
        return TextSource(path=str(self.path), format="auto" if by_ending else self.kind, columns=columns)


@dataclass(frozen=True)
class InspectedSource:
    """A source of a recipe that can be read: its part (`train`, `dev`, `test`, `mono.CODE`) and its number of rows."""

    part: str
    source: TextSource
    num_rows: int


def inspect_files(files: Mapping[Path, str | None]) -> tuple[list[TextFile], list[str]]:
    """Look at the start of files; a value is the part that the user named, or None.

    Returns:
        The files of text, and a message for each other one.
    """
    texts, skipped = [], []
    for path, part in files.items():
        try:
            texts.append(_inspect(path, part))
        except TextError as error:
            if part is not None:
                raise
            skipped.append(_refusal(path, error))
    return texts, skipped


def _refusal(path: Path, error: TextError) -> str:
    return f"{path.name}: {error.problem}. {error.cure}"


def list_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that are named, or are in folders that are named, without hidden ones and those of no text."""
    files: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"no such file or folder: '{path}'", cure="check its spelling")
        if path.is_dir():
            inside = (file for file in path.rglob("*") if file.is_file() and _may_be_text(file.relative_to(path)))
            files |= dict.fromkeys(sorted(islice(inside, MAX_FILES + 1)))
        else:
            files[path] = None
    if len(files) > MAX_FILES:
        raise UsageError(f"more than {MAX_FILES} files", place=str(paths[0]), cure="name a smaller folder, or files")
    return list(files)


def _may_be_text(path: Path) -> bool:
    hidden = any(part.startswith((".", "__")) or part in ("node_modules", "adapters") for part in path.parts)
    return not hidden and path.stem.lower() not in _OTHER and format_of_name(path) not in _NO_TEXT


def _inspect(path: Path, part: str | None) -> TextFile:
    kind = _kind(path)
    name = (path.with_suffix("") if path.suffix == ".gz" else path).name.lower()
    words = [path.parent.name.lower(), *filter(None, re.split(r"[^\w]+|_", name))]
    by_name = next((name for name, known in _PARTS.items() if {*known} & {*words}), "train")
    codes: tuple[str, ...] = ()
    key = path.name
    if kind == "lines":
        lines = list(islice(read_sentences(path), NUM_LINES))
        if not any(line.strip() for line in lines):
            raise TextError("it is empty", place=str(path), cure="name a file with text")
        code, position = _named_language(words, identify(lines))
        codes = (code,) if code else ()
        key = f"{path.parent.parent if position == 0 else path.parent}/" + ".".join(
            word for i, word in enumerate(words[1:], start=1) if i != position
        )
    elif kind in _CATALOGUES:
        with open_text(path) as file:
            start = file.read(1 << 16).decode("utf-8", "replace")
        listed = [first or second for first, second in _CODES.findall(start)]
        codes = tuple(dict.fromkeys([*listed, *(["en"] if kind == "po" and "X-Source-Language" not in start else [])]))
    elif kind in _TABLES:
        names, columns = _columns(path, kind)
        by_header = [code_of_name(name) for name in names]
        held = [identify(texts) or code for texts, code in zip(columns, by_header, strict=True)]
        codes = tuple(dict.fromkeys(code for code in held if parse_code(code) is not None))
    normal = tuple(dict.fromkeys(standard_code(code) or code for code in codes if parse_code(code) is not None))
    return TextFile(path, kind, normal, part or by_name, key, part is not None)


def _kind(path: Path) -> TextFormat:
    """Return the format of a file, by its ending or its first lines."""
    by_name = format_of_name(path)
    for kind in (*_CATALOGUES, *_TABLES):
        if by_name == kind:
            return kind
    if by_name in NO_PLAIN_LINES and by_name not in ("json", "xml"):
        cure = "export its text, one sentence or paragraph per line"
        raise TextError(f"a .{by_name} file is not one of plain lines", place=str(path), cure=cure)
    lines = [line for line in islice(read_text_lines(path), 20) if line.strip()]
    first = lines[0].lstrip() if lines else ""
    if first.startswith("{") and markup_kind(first) == "JSON":
        return "jsonl"
    if any(line.startswith('msgid "') for line in lines):
        return "po"
    for kind in _CATALOGUES[1:]:
        if any(f"<{kind}" in line for line in lines):
            return kind
    if first and (markup := markup_kind(first)):
        raise TextError(f"it begins as {markup}", place=str(path), cure="name a file of text, or convert it")
    tabs = {line.count("\t") for line in lines}
    return "tsv" if len(tabs) == 1 and tabs != {0} else "lines"


def _named_language(words: Sequence[str], identified: str | None) -> tuple[str | None, int | None]:
    """Return the language that words of a name say, the last word first, and which word; else the identified one.

    Many short words are codes too, as `my`: the last word is believed, others only as far as identification agrees.
    """
    for position in reversed(range(len(words))):
        code = code_of_name(words[position])
        is_code = len(words[position]) in (2, 3) or code != words[position]
        if not is_code or parse_code(code) is None or words[position] in ("txt", "src", "tgt", "mono", "new", "old"):
            continue
        agrees = identified is not None and match_rank(code, identified) is not None
        if agrees or (position == len(words) - 1 and len(words[position]) == 2) or (identified is None and position):
            return code, position
    return identified, None


def _columns(path: Path, kind: str) -> tuple[list[str], list[list[str]]]:
    """Return the first row, or the names of the records, and the texts of each column of a table's first rows."""
    if kind == "parquet":
        return [], []
    lines = islice(read_text_lines(path), NUM_LINES)
    try:
        if kind == "jsonl":
            records = [json.loads(line) for line in lines if line.strip()]
            names = list(records[0]) if records else []
            rows = [[str(record.get(name) or "") for name in names] for record in records]
        else:
            rows = list(csv.reader(lines)) if kind == "csv" else [line.rstrip("\r\n").split("\t") for line in lines]
            names = rows[0] if rows else []
    except (ValueError, AttributeError, csv.Error, RecursionError) as error:
        raise TextError(
            f"unreadable as {kind}: {error}", place=str(path), cure="correct it, or name another"
        ) from error
    return names, [[row[i] for row in rows if i < len(row)] for i in range(len(names))]


def languages_of(files: Sequence[TextFile]) -> Counter[str]:
    """Return how many files hold each language; a code with a region counts as one without where there is one."""
    counts: Counter[str] = Counter()
    for code in sorted({code for file in files for code in file.codes}, key=len):
        same = next((other for other in counts if match_rank(other, code) is not None), code)
        counts[same] += sum(code in file.codes for file in files)
    return counts


def find_sources(files: Sequence[TextFile], languages: tuple[str, str]) -> tuple[list[InspectedSource], list[str]]:
    """Return the sources of a recipe in two languages that files hold, and a message for each that holds none."""
    sources, skipped = [], []
    lines = [file for file in files if file.kind == "lines"]
    for file in (file for file in files if file.kind != "lines"):
        try:
            sources.append(_structured(file, languages))
        except TextError as error:
            if file.forced:
                raise
            skipped.append(_refusal(file.path, error))
    by_side: list[list[TextFile]] = [[], []]
    for file in lines:
        sides = [side for side, code in enumerate(languages) for own in file.codes if match_rank(code, own) is not None]
        if sides:
            by_side[sides[0]].append(file)
        else:
            held = f"in '{file.codes[0]}'" if file.codes else "of an unknown language (give its name an ending as .en)"
            skipped.append(f"{file.path.name}: {held}, not in {' or '.join(languages)}")
    paired = _paired(by_side, languages, sources)
    for side, code in enumerate(languages):
        for file in (file for file in by_side[side] if file.path not in paired):
            if file.forced and file.part != "mono":
                problem = f"'{file.path}' holds one language, and no file is its translation, line by line"
                raise UsageError(problem, place=f"--{file.part}", cure="name both files, or name it with --mono")
            try:
                sources.append(InspectedSource(f"mono.{code}", file.source(), _count(file.source(), [file], (code,))))
            except TextError as error:
                if file.forced:
                    raise
                skipped.append(_refusal(file.path, error))
    return sources, skipped


def _structured(file: TextFile, languages: tuple[str, str]) -> InspectedSource:
    """Return a table or catalogue as a source of pairs, or of one language."""
    columns = _columns_of_languages(file, languages) if file.kind in ("tsv", "csv", "jsonl") else (None, None)
    sides = [side for side, column in enumerate(columns) if column is not None]
    names: tuple[str | int, ...] | None = None
    if len(sides) == 1 or (file.forced and file.part == "mono" and file.kind in _CATALOGUES):
        side = sides[0] if sides else 0
        source = file.source(None if not sides else (columns[side],))  # type: ignore[arg-type]
        return InspectedSource(f"mono.{languages[side]}", source, _count(source, [file], (languages[side],)))
    if len(sides) == 2:
        names = columns  # type: ignore[assignment]
    source = file.source(names)
    if names is not None:
        try:  # what is read without columns is simpler
            if next(iter(_rows(file.source(), [file], languages))) == next(iter(_rows(source, [file], languages))):
                source = file.source()
        except (TextError, StopIteration):
            pass
    return InspectedSource("train" if file.part == "mono" else file.part, source, _count(source, [file], languages))


def _columns_of_languages(file: TextFile, languages: tuple[str, str]) -> tuple[str | int | None, ...]:
    """Return by language the column that holds it, by its name or its text; None where none does."""
    names, columns = _columns(file.path, file.kind)
    positions = columns_of(languages, names)
    has_names = file.kind == "jsonl" or is_header(names) or None not in positions
    if None in positions:
        identified = [identify(texts[1:]) for texts in columns]
        fits = [
            [i for i, own in enumerate(identified) if own and match_rank(code, own) is not None] for code in languages
        ]
        positions = tuple(each[0] if len(each) == 1 else None for each in fits)
    return tuple(None if i is None else names[i] if has_names else i for i in positions)


def _paired(
    by_side: Sequence[Sequence[TextFile]], languages: tuple[str, str], sources: list[InspectedSource]
) -> set[Path]:
    """Add pairs of files to the sources, and return their paths: files of one name first, then of one length."""
    paired: set[Path] = set()
    counts: dict[Path, int] = {}
    for by_key in (True, False):
        for first in by_side[0]:
            others = [file for file in by_side[1] if file.path not in paired and _may_pair(first, file, by_key)]
            if first.path in paired or (len(others) != 1 and not by_key):
                continue
            for second in others[:1]:
                for file in (first, second):
                    if file.path not in counts:
                        counts[file.path] = sum(1 for _ in islice(read_sentences(file.path), MAX_ROWS))
                forced = first.forced and second.forced
                if not forced and (counts[first.path] != counts[second.path] or not _correlated(first, second)):
                    continue
                pair = TextSource(path=(str(first.path), str(second.path)))
                num_rows = _count(pair, [first, second], languages)
                part = first.part if first.part == second.part and first.part != "mono" else "train"
                sources.append(InspectedSource(part, pair, num_rows))
                paired |= {first.path, second.path}
    return paired


def _may_pair(first: TextFile, second: TextFile, by_key: bool) -> bool:
    if "mono" in (first.part, second.part) or first.part != second.part:
        return False
    return first.key == second.key if by_key else first.path.parent == second.path.parent


def _correlated(first: TextFile, second: TextFile) -> bool:
    """Return whether long lines of a file have long ones beside them in the other, as translations do."""
    lengths = [[len(line) for line in islice(read_sentences(file.path), NUM_LINES)] for file in (first, second)]
    if len(lengths[0]) < MIN_CORRELATED:
        return True
    means = [sum(each) / len(each) for each in lengths]
    deviations = [[length - mean for length in each] for each, mean in zip(lengths, means, strict=True)]
    product = sum(a * b for a, b in zip(*deviations, strict=True))
    norms = [sum(a * a for a in each) ** 0.5 for each in deviations]
    return not all(norms) or product / (norms[0] * norms[1]) > MIN_CORRELATION


def _rows(source: TextSource, files: Sequence[TextFile], languages: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (row for row in read_rows(source, [file.path for file in files], languages) if all(row))


def _count(source: TextSource, files: Sequence[TextFile], languages: tuple[str, ...]) -> int:
    """Return how many rows a source has, at most `MAX_ROWS`; a source of none is an error."""
    if not (number := sum(1 for _ in islice(_rows(source, files, languages), MAX_ROWS))):
        raise TextError(f"no text in {' and '.join(languages)}", place=str(files[0].path), cure="name another file")
    return number


def num_rows(sources: Sequence[InspectedSource]) -> dict[str, int]:
    """Return the rows of each part."""
    numbers: defaultdict[str, int] = defaultdict(int)
    for each in sources:
        numbers[each.part] += each.num_rows
    return dict(numbers)


def rows_in_words(number: int, noun: str) -> str:
    """Return a number of rows, which is the least one where counting has ended."""
    return quantity(number, noun) if number < MAX_ROWS else f"{number} or more {noun}s"
