"""From the sources of a recipe to clean, disjoint stores on disk, with a count of every line that was dropped."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from roundtrip.data import row_store
from roundtrip.data.readers import read_lines, read_pairs
from roundtrip.data.row_store import RowStore, TextRow
from roundtrip.recipe.schema import Data, LineFilter, Recipe, Sources, TextSource
from roundtrip.runtime.downloads import resolve
from roundtrip.runtime.errors import TextError
from roundtrip.runtime.seeding import derive_seed, permuted_index

# Of short texts one is soon twice as long as the other; so many characters are free before a ratio counts.
RATIO_SLACK = 10
# Pairs with sides whose lengths differ by more are dropped.
MAX_LENGTH_RATIO = 4.0
# Monolingual lines whose round-trip translations choose the best stage where there are no dev pairs.
ROUND_TRIP_LINES = 200


@dataclass(frozen=True)
class Corpora:
    """The text of a run.

    Attributes:
        train, dev, test: pairs, in the order of the recipe's languages.
        mono: rows of one text, by language.
        counts: for each part how many rows were kept and how many dropped for which reason.
    """

    train: RowStore
    dev: RowStore
    test: RowStore
    mono: dict[str, RowStore]
    counts: dict[str, dict[str, int]]

    def all_text(self) -> Iterator[str]:
        """Yield every line to train on, the languages in turn, so that what reads only the beginning sees both."""
        for pair in self.train:
            yield from pair
        texts = list(self.mono.values())
        for number in range(max(map(len, texts), default=0)):
            yield from (text[number][0] for text in texts if number < len(text))


def relative_length(a: float, b: float) -> float:
    """Return how much longer the longer of two texts is, by their characters, with slack for short ones; at least 1."""
    short, long = sorted((a + RATIO_SLACK, b + RATIO_SLACK))
    return long / short


def prepare(recipe: Recipe, folder: Path, target: Path, report: Callable[[str], None]) -> Corpora:
    """Read, clean, deduplicate and separate all text of a recipe into `target`.

    A train or monolingual line that also stands in dev or test (in the same language) is dropped; `data.filter` is
    for these too. Dev and test of one's own are taken as they are, but for pairs with an empty side.

    Args:
        folder: where relative paths start.
        target: an existing folder for the stores.
        tell: is called with what is being read.

    Raises:
        SourceError, TextError: a source cannot be fetched or read, or a part ends up empty.
    """
    counts: dict[str, Counter[str]] = {}
    parts = _cut if recipe.data.split is not None else _given
    stores = parts(recipe, folder, target, report, counts)
    first, second = recipe.languages
    for part in ("dev", "test"):
        if not len(stores[part]):
            raise TextError(f"no line left of {dict(counts[part])}", place=f"data.{part}", cure=_EMPTY_CURE)
    mono = {code: stores[f"mono.{code}"] for code in (first, second)} if recipe.needs_mono else {}
    for code, lines in mono.items():
        if not len(lines):
            raise TextError(
                f"no line left of {dict(counts[f'mono.{code}'])}", place=f"data.mono.{code}", cure=_EMPTY_CURE
            )
    if not len(stores["train"]) and recipe.data.train:
        raise TextError(f"no line left of {dict(counts['train'])}", place="data.train", cure=_EMPTY_CURE)
    return Corpora(
        stores["train"],
        stores["dev"],
        stores["test"],
        mono,
        {part: dict(count) for part, count in counts.items()},
    )


_EMPTY_CURE = "the file is empty, or data.filter drops everything; the counts say for which reason"


def _given(
    recipe: Recipe, folder: Path, target: Path, report: Callable[[str], None], counts: dict[str, Counter[str]]
) -> dict[str, RowStore]:
    """Read every part from its own sources: dev and test first, so that train can be kept apart from them."""
    data = recipe.data
    held_out: set[tuple[int, int]] = set()
    stores = _held_out(
        ("test",) if recipe.without_dev else ("test", "dev"), recipe, folder, target, report, counts, held_out
    )
    if recipe.without_dev:
        stores["dev"] = _lines_for_dev(recipe, folder, target, report, counts, held_out)
    count = counts["train"] = Counter()
    rows = _pairs(data.train, recipe.languages, folder, report)
    stores["train"] = _write_once(target / "train.tsv", _fitting(rows, (0, 1), data.filter, count, held_out), count)
    for side, language in enumerate(recipe.languages):
        count = counts[f"mono.{language}"] = Counter()
        lines = ((line,) for line in _lines(data.mono.get(language, ()), language, folder, report))
        fitting = _fitting(lines, (side,), data.filter, count, held_out)
        stores[f"mono.{language}"] = _write_once(target / f"mono.{language}.txt", fitting, count)
    return stores


def _lines_for_dev(
    recipe: Recipe,
    folder: Path,
    target: Path,
    report: Callable[[str], None],
    counts: dict[str, Counter[str]],
    held_out: set[tuple[int, int]],
) -> RowStore:
    """Hold out the first monolingual lines in place of dev pairs; those of a row are no translations of each other."""
    sides = []
    for side, language in enumerate(recipe.languages):
        lines = ((line,) for line in _lines(recipe.data.mono[language], language, folder, report))
        fitting = (row[0] for _, row in _fitting(lines, (side,), recipe.data.filter, Counter(), held_out))
        sides.append(list(islice(dict.fromkeys(fitting), ROUND_TRIP_LINES)))
    rows = list(zip(*sides, strict=False))
    held_out.update((side, _fingerprint(text)) for row in rows for side, text in enumerate(row))
    counts["dev"] = Counter(kept=len(rows))
    return row_store.write(target / "dev.tsv", rows)


def _held_out(
    parts: Sequence[str],
    recipe: Recipe,
    folder: Path,
    target: Path,
    report: Callable[[str], None],
    counts: dict[str, Counter[str]],
    held_out: set[tuple[int, int]],
) -> dict[str, RowStore]:
    """Read dev and test as they are given, and remember their texts in `held_out`."""
    stores = {}
    for part in parts:
        sources: Sources = getattr(recipe.data, part)
        count = counts[part] = Counter()
        rows = _pairs(sources, recipe.languages, folder, report)
        # A test set stays as its makers cut it, else its scores compare with nobody's.
        stores[part] = row_store.write(target / f"{part}.tsv", _as_given(rows, count, held_out))
    return stores


def _write_once(path: Path, rows: Iterable[tuple[int, TextRow]], count: Counter[str]) -> RowStore:
    """Write what is left of rows once equal ones are dropped, and count both."""
    found, num_dropped = row_store.write_once(path, rows)
    if num_dropped:
        count["duplicate"] += num_dropped
    count["kept"] += len(found)
    return found


def _cut(
    recipe: Recipe, folder: Path, target: Path, report: Callable[[str], None], counts: dict[str, Counter[str]]
) -> dict[str, RowStore]:
    """Cut one corpus into test, dev, train and two monolingual halves; no text of a language is in two parts."""
    cut = recipe.data.split
    assert cut is not None
    held_out: set[tuple[int, int]] = set()
    named = [part for part in ("test", "dev") if getattr(recipe.data, part)]
    given = _held_out(named, recipe, folder, target, report, counts, held_out)
    count = counts["corpus"] = Counter()
    # One side alone is enough to call two pairs the same here, else a half could hold the other's translation.
    rows = _new_sides(_pairs(cut.corpus, recipe.languages, folder, report), recipe.data.filter, count, held_out)
    corpus = row_store.write(target / "corpus.tsv", rows)
    needed = cut.train + cut.dev + cut.test + (2 if recipe.needs_mono else 0)
    if len(corpus) < needed:
        raise TextError(
            f"{len(corpus)} usable pairs, the cut needs {needed}; counts: {dict(count)}",
            place="data.split",
            cure="ask for fewer, or add to data.split.corpus",
        )
    seed = derive_seed(recipe.seed if cut.seed is None else cut.seed, "cut")
    order = iter(corpus[permuted_index(index, len(corpus), seed, 0)] for index in range(len(corpus)))
    sizes = {part: size for part, size in (("test", cut.test), ("dev", cut.dev)) if part not in given}
    sizes["train"] = cut.train
    stores = {part: row_store.write(target / f"{part}.tsv", islice(order, size)) for part, size in sizes.items()}
    half = (len(corpus) - sum(sizes.values())) // 2
    for side, language in enumerate(recipe.languages):
        lines = ((row[side],) for row in islice(order, half))
        stores[f"mono.{language}"] = row_store.write(target / f"mono.{language}.txt", lines)
    for part, rows_of_part in stores.items():
        counts[part] = Counter(kept=len(rows_of_part))
    return given | stores


def _pairs(
    sources: Sources, languages: tuple[str, str], folder: Path, report: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
    for source, paths in _resolved(sources, folder, report):
        yield from read_pairs(source, paths, languages)


def _lines(sources: Sources, language: str, folder: Path, report: Callable[[str], None]) -> Iterator[str]:
    for source, paths in _resolved(sources, folder, report):
        yield from read_lines(source, paths, language)


def _resolved(sources: Sources, folder: Path, report: Callable[[str], None]) -> Iterator[tuple[TextSource, list[Path]]]:
    for source in sources:
        specs = (source.path,) if isinstance(source.path, str) else source.path
        report(f"reading {' + '.join(spec.partition('#')[0] for spec in specs)}")
        remote = [spec for spec in specs if spec.startswith("hf:")]
        yield source, [] if remote else [path for spec in specs for path in resolve(spec, folder)]


def _as_given(rows: Iterable[TextRow], count: Counter[str], held_out: set[tuple[int, int]]) -> Iterator[TextRow]:
    """Yield every row with text on both sides, and remember its texts in `held_out`."""
    for row in rows:
        whole = all(row)
        count["kept" if whole else "empty"] += 1
        if whole:
            held_out.update((side, _fingerprint(text)) for side, text in enumerate(row))
            yield row


def _fitting(
    rows: Iterable[TextRow],
    sides: tuple[int, ...],
    limits: LineFilter,
    count: Counter[str],
    held_out: set[tuple[int, int]],
) -> Iterator[tuple[int, TextRow]]:
    """Yield the rows that pass, each with a number that equal ones have in common, and count the others.

    Args:
        sides: which language (0 or 1) each column is.
        held_out: fingerprints (language, 64 bits) of texts that must not be kept.
    """
    for row in rows:
        marks = [(side, _fingerprint(text)) for side, text in zip(sides, row, strict=True)]
        reason = _unfit(row, limits)
        if reason is None and any(mark in held_out for mark in marks):
            reason = "also in dev or test"
        if reason is None:
            yield hash(tuple(marks)) & 0xFFFFFFFFFFFFFFFF, row
        else:
            count[reason] += 1


def _new_sides(
    rows: Iterable[TextRow], limits: LineFilter, count: Counter[str], held_out: set[tuple[int, int]]
) -> Iterator[TextRow]:
    """Yield the pairs that pass and have no text in common with one that was kept, and count the others.

    The keys of all pairs are held in memory, some 200 bytes for each: this is for experiments.
    """
    seen: set[tuple[int, int]] = set()
    for row in rows:
        marks = [(side, _fingerprint(text)) for side, text in enumerate(row)]
        reason = _unfit(row, limits) or ("duplicate" if any(mark in seen for mark in marks) else None)
        if reason is None and any(mark in held_out for mark in marks):
            reason = "also in dev or test"
        count[reason or "kept"] += 1
        if reason is None:
            seen.update(marks)
            yield row


def _unfit(row: TextRow, limits: LineFilter) -> str | None:
    for text in row:
        num_words = len(text.split())
        if not num_words:
            return "empty"
        if num_words < limits.min_words:
            return "too few words"
        if limits.max_words is not None and num_words > limits.max_words:
            return "too many words"
        if len(text) > limits.max_chars:
            return "too many characters"
    if len(row) == 2 and relative_length(len(row[0]), len(row[1])) > MAX_LENGTH_RATIO:
        return "length ratio"
    if len(row) == 2 and row[0] == row[1]:
        return "both sides equal"
    return None


def _fingerprint(text: str) -> int:
    """Return 64 bits that stand for a text: letter case and spacing do not make a new line."""
    folded = " ".join(text.casefold().split())
    return int.from_bytes(hashlib.blake2b(folded.encode(), digest_size=8).digest(), "big")


def reopen(recipe: Recipe, target: Path, counts: dict[str, dict[str, int]]) -> Corpora:
    """Open the stores that `prepare` made.

    Raises:
        TextError: they are not there any more.
    """
    try:
        return _opened(recipe, target, counts)
    except (OSError, ValueError) as error:
        raise TextError(f"the text of this run is damaged: {error}", place=str(target), cure="start anew") from error


def _opened(recipe: Recipe, target: Path, counts: dict[str, dict[str, int]]) -> Corpora:
    mono = {code: RowStore(target / f"mono.{code}.txt") for code in recipe.languages} if recipe.needs_mono else {}
    train, dev, test = (RowStore(target / f"{part}.tsv") for part in ("train", "dev", "test"))
    parts = {"train": train, "dev": dev, "test": test} | {f"mono.{code}": rows for code, rows in mono.items()}
    for part, rows in parts.items():
        if len(rows) != counts[part].get("kept", 0):
            raise ValueError(f"{rows.path.name} has {len(rows)} rows of {counts[part].get('kept', 0)}")
    return Corpora(train, dev, test, mono, counts)


def describe(data: Data) -> list[str]:
    """Return the text sources of a recipe, one a line, as they will be read."""
    tables = {
        "train": data.train,
        "dev": data.dev,
        "test": data.test,
        **{f"mono.{c}": s for c, s in data.mono.items()},
    }
    if data.split is not None:
        tables = {"cut.corpus": data.split.corpus, "dev": data.dev, "test": data.test}
    return [f"{part}: {source.path}" for part, sources in tables.items() for source in sources]
