"""Reads the sources of a recipe into clean, disjoint stores on disk, and counts every line that is dropped."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import chain, islice, zip_longest
from pathlib import Path

from roundtrip.data import row_store
from roundtrip.data.gettext_po import UNNAMED_SOURCE
from roundtrip.data.placeholders import errors
from roundtrip.data.readers import check_format, read_rows
from roundtrip.data.row_store import RowStore, TextRow
from roundtrip.data.tmx_xliff import DIFFERENT_CODES, INLINE_CODES
from roundtrip.recipe.schema import LineFilter, Recipe, Sources, Split, TextSource
from roundtrip.recipe.validation import choice_problems
from roundtrip.runtime.downloads import resolve
from roundtrip.runtime.errors import TextError, quantity
from roundtrip.runtime.seeding import derive_seed, permuted_index

# Characters added to both lengths before a ratio is taken: of two short texts, one is easily twice as long.
RATIO_SLACK = 10
# Pairs with sides whose lengths differ by more are dropped.
MAX_LENGTH_RATIO = 4.0
# Monolingual lines whose round-trip translations choose the best stage where there are no dev pairs.
ROUND_TRIP_LINES = 200
# Where there are no dev pairs: the share of the pairs to train on that is held out as such, and the most of them.
DEV_SHARE, MAX_DEV_PAIRS = 0.2, 200
# Pairs below which round trips choose, or below which none can be held out where there are no lines for round trips:
# scores of fewer than 20 pairs are chance, of one or two they mean nothing.
MIN_PAIRS, MIN_PAIRS_ALONE = 100, 10

# Why a line to train on is dropped whose text is held out.
HELD_OUT = "also in dev or test"
IN_TEST = "also in test"
HELD_OUT_AS_DEV = "held out as dev"
BROKEN_PLACEHOLDERS = "with other placeholders or tags on the other side"
# What is counted of lines that are kept.
NOTES = (IN_TEST, INLINE_CODES, DIFFERENT_CODES, UNNAMED_SOURCE, BROKEN_PLACEHOLDERS)

# The language (0 or 1) of a text, and 64 bits of a hash of it.
Fingerprint = tuple[int, int]


@dataclass(frozen=True)
class Corpora:
    """The text of a run: pairs in the order of the recipe's languages, and monolingual rows of one text."""

    train: RowStore
    dev: RowStore
    test: RowStore
    mono: dict[str, RowStore]  # by language
    counts: dict[str, dict[str, int]]  # by part, the number of rows kept, and dropped by reason

    def with_dev(self, recipe: Recipe) -> Recipe:
        """Return a recipe as one that names its dev pairs, where they were held out of the pairs to train on."""
        if not self.counts["train"].get(HELD_OUT_AS_DEV):
            return recipe
        data = recipe.data.model_copy(update={"dev": (TextSource(path=str(self.dev.path)),)})
        return recipe.model_copy(update={"data": data})

    def all_text(self) -> Iterator[str]:
        """Yield every line to train on; the languages alternate, so that the first lines are of both."""
        yield from chain.from_iterable(self.train)
        for rows in zip_longest(*self.mono.values()):
            yield from (row[0] for row in rows if row is not None)


def relative_length(a: float, b: float) -> float:
    """Return the ratio of the longer to the shorter of two lengths in characters, each plus `RATIO_SLACK`."""
    short, long = sorted((a + RATIO_SLACK, b + RATIO_SLACK))
    return long / short


def check_sources(recipe: Recipe, folder: Path) -> None:
    """Refuse sources of an unusable format, and a file that is in two of train, dev and test; reads nothing."""
    for _, source, num_languages in recipe.sources():
        check_format(source, _files(source, folder), recipe.languages[:num_languages])
    parts: dict[str, str] = {}
    for part in ("test", "dev", "train"):
        for path in (path for source in getattr(recipe.data, part) for path in source.paths):
            is_remote = path.startswith(("hf:", "pypi:"))
            for file in [path] if is_remote else [str(file.resolve()) for file in resolve(path, folder)]:
                if (other := parts.setdefault(file, part)) != part:
                    problem = f"'{path}' is also in data.{other}, so scores would be those of text seen before"
                    cure = "name another file, or divide one by data.split"
                    raise TextError(problem, place=f"data.{part}", cure=cure)


def _files(source: TextSource, folder: Path) -> list[Path]:
    """Return the local files of a source; a data set on the hub has none."""
    return [file for path in source.paths if not path.startswith("hf:") for file in resolve(path, folder)]


def prepare(recipe: Recipe, folder: Path, target: Path, report: Callable[[str], None]) -> Corpora:
    """Read, clean, deduplicate and separate all text of a recipe into stores in the folder `target`.

    Training pairs and monolingual lines are filtered by `data.filter`, and dropped where the same text (in the same
    language) is in dev or test. Dev and test files are taken as they are, except for pairs with an empty side.
    Relative paths start at `folder`; `report` is called with a message for each source that is read.
    """
    check_sources(recipe, folder)
    preparation = _Preparation(recipe, folder, target, report)
    stores = preparation.read_parts() if recipe.data.split is None else preparation.split_corpus(recipe.data.split)
    counts = {part: dict(count) for part, count in preparation.counts.items()}
    given = [part for part in ("test", "train") if getattr(recipe.data, part)]
    for part in ["dev", *given, *_mono_parts(recipe)]:
        if not len(stores[part]):
            raise _nothing_left(part, counts[part])
    return _corpora(recipe, stores, counts)


def num_round_trip_lines(num_lines: int) -> int:
    """Return how many monolingual lines of a language choose the best stage where there are no dev pairs."""
    return min(ROUND_TRIP_LINES, -(-num_lines // 2))


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return how many lines of a part are kept, why others are dropped, and what there is to know of those kept."""
    dropped = _listed(counts, _reasons(counts))
    notes = _listed(counts, [note for note in NOTES if note in counts])
    return (
        quantity(counts.get("kept", 0), "line")
        + (f", {notes}" if notes else "")
        + (f" (dropped: {dropped})" if dropped else "")
    )


def _listed(counts: Mapping[str, int], names: Iterable[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in names if counts[name])


def _reasons(counts: Mapping[str, int]) -> list[str]:
    """Return why lines are dropped, without what is counted of those that are kept."""
    return [reason for reason in counts if reason not in ("kept", *NOTES)]


def _nothing_left(part: str, counts: dict[str, int]) -> TextError:
    dropped = _listed(counts, _reasons(counts))
    if not dropped:
        problem, cure = "its files have no lines", "name files that have some"
    else:
        problem = f"no line is left; dropped: {dropped}"
        most = max(_reasons(counts), key=lambda reason: counts[reason])
        cure = {
            HELD_OUT: "its text is that of dev or test, which is never trained on: name other text",
            "duplicate": "name text that does not repeat itself",
            "empty": "name a file with text on both sides",
            "both sides equal": "name a file that is translated",
            "too few words": "lower data.filter.min_words, or name other text",
            "too many words": "raise data.filter.max_words, or name text of one sentence or paragraph per line",
            "too many characters": "raise data.filter.max_chars, or name text of one sentence or paragraph per line",
            "length ratio": "check that its columns or files are translations of each other, and name the right ones",
        }[most]
    return TextError(problem, place=f"data.{part}", cure=cure)


@dataclass(frozen=True)
class _Preparation:
    """Reads the sources of one recipe and writes the stores of its parts, see `prepare` and `Corpora`."""

    recipe: Recipe
    folder: Path
    target: Path
    report: Callable[[str], None]
    counts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    # Of all texts of dev and test, which no other part may contain.
    held_out: set[Fingerprint] = field(default_factory=set)

    def read_parts(self) -> dict[str, RowStore]:
        """Read every part from its own sources: dev and test first, so that their texts are known to the others."""
        stores = {"test": self._write_held_out("test")}
        if self.recipe.without_dev and self.recipe.data.train:
            stores |= self._split_train()
        else:
            stores["dev"] = self._write_monolingual_dev() if self.recipe.without_dev else self._write_held_out("dev")
            stores["train"] = self._write_filtered("train", self._pairs("train", self.recipe.data.train), (0, 1))
        for side, language in enumerate(self.recipe.languages):
            part = f"mono.{language}"
            stores[part] = self._write_filtered(part, self._lines(part, language), (side,))
        return stores

    def _split_train(self) -> dict[str, RowStore]:
        """Hold dev pairs out of the pairs to train on where these are enough; otherwise monolingual lines choose."""
        count, has_mono = self.counts["train"], bool(self.recipe.rounds.count)
        rows = self._filtered(self._pairs("train", self.recipe.data.train), (0, 1), count)
        store, num_duplicates = row_store.write_once(_store_path(self.target, "corpus"), rows)
        count.update({"duplicate": num_duplicates} if num_duplicates else {}, kept=len(store))
        least = MIN_PAIRS if has_mono else MIN_PAIRS_ALONE
        chosen = self._choose_dev(store, least)
        if not store:
            raise _nothing_left("train", count)
        if not chosen and not has_mono:
            problem = f"{quantity(len(store), 'pair')}: too few to hold out dev pairs, which choose the best stage"
            cure = f"add pairs ({least} or more, each with text of its own), or name other pairs as data.dev"
            raise TextError(problem, place="data.train", cure=cure)
        if chosen:
            self.held_out.update(fingerprint for row in chosen for fingerprint in _fingerprints(row, (0, 1)))
            dev = self._write("dev", chosen)
            self.counts["dev"] = Counter(kept=len(dev))
            self.report(
                f"there is no data.dev: {len(chosen)} of {len(store)} pairs of data.train are held out as dev, and "
                "choose the best stage; name a file of pairs as data.dev to choose by others"
            )
        elif problems := list(choice_problems(self.recipe, has_dev=False)):
            problem = f"{quantity(len(store), 'pair')}: too few to hold out dev pairs ({least} are needed)"
            cure = "name dev pairs as data.dev, or change these keys"
            raise TextError("\n  - ".join([problem, *problems]), place="data.train", cure=cure)
        else:
            dev = self._write_monolingual_dev()
        kept = (row for row in store if self.held_out.isdisjoint(_fingerprints(row, (0, 1))))
        train = self._write("train", kept)
        dropped = {HELD_OUT_AS_DEV: len(chosen), HELD_OUT: len(store) - len(train) - len(chosen)}
        count.update({reason: number for reason, number in dropped.items() if number})
        count["kept"] = len(train)
        return {"dev": dev, "train": train}

    def _choose_dev(self, pairs: RowStore, least: int) -> list[TextRow]:
        """Return the dev pairs of a store, none if there are fewer than `least` pairs with texts of their own.

        They are those with the smallest hashes: the same ones for every seed and order, and most of them the same when
        pairs are added. Pairs are left out that share a text with another, which would be lost to training.
        """
        size = min(MAX_DEV_PAIRS, int(DEV_SHARE * len(pairs)))
        candidates = nsmallest(10 * size, pairs, key=lambda row: _fingerprints(row, (0, 1)))
        texts = {text for row in candidates for text in _fingerprints(row, (0, 1))}
        occurrences = Counter(text for row in pairs for text in _fingerprints(row, (0, 1)) if text in texts)
        alone = (row for row in candidates if all(occurrences[each] == 1 for each in _fingerprints(row, (0, 1))))
        chosen = list(islice(alone, size))
        return chosen if len(chosen) >= int(DEV_SHARE * least) else []

    def split_corpus(self, split: Split) -> dict[str, RowStore]:
        """Split one corpus into test, dev, train and two monolingual halves; no text of a language is in two parts.

        Pairs with one equal side count as duplicates: otherwise a monolingual half could hold a translation of a line
        of the other. The fingerprints of all pairs are held in memory, about 200 bytes each: this is for experiments.
        """
        given = {part: self._write_held_out(part) for part in ("test", "dev") if getattr(self.recipe.data, part)}
        count = self.counts["corpus"]
        usable = self._filtered(self._pairs("corpus", split.corpus), (0, 1), count, seen=set())
        corpus = self._write("corpus", (row for _, row in usable))
        count["kept"] = len(corpus)
        needed = split.train + split.dev + split.test + (2 if self.recipe.needs_mono else 0)
        if len(corpus) < needed:
            problem = f"{quantity(len(corpus), 'usable pair')}, but the split needs {needed}: {describe_counts(count)}"
            cure = "lower data.split.train, dev or test, or add files to data.split.corpus"
            raise TextError(problem, place="data.split", cure=cure)
        seed = derive_seed(self.recipe.seed if split.seed is None else split.seed, "cut")
        shuffled = iter(corpus[permuted_index(index, len(corpus), seed, 0)] for index in range(len(corpus)))
        sizes = {part: size for part, size in (("test", split.test), ("dev", split.dev)) if part not in given}
        sizes["train"] = split.train
        stores = {part: self._write(part, islice(shuffled, size)) for part, size in sizes.items()}
        half = (len(corpus) - sum(sizes.values())) // 2
        for side, language in enumerate(self.recipe.languages):
            part = f"mono.{language}"
            stores[part] = self._write(part, ((row[side],) for row in islice(shuffled, half)))
        self.counts.update({part: Counter(kept=len(store)) for part, store in stores.items()})
        return given | stores

    def _pairs(self, part: str, sources: Sources) -> Iterator[TextRow]:
        return self._rows(part, sources, self.recipe.languages)

    def _lines(self, part: str, language: str) -> Iterator[TextRow]:
        return self._rows(part, self.recipe.data.mono.get(language, ()), (language,))

    def _rows(self, part: str, sources: Sources, languages: tuple[str, ...]) -> Iterator[TextRow]:
        for source in sources:
            self.report(f"reading {' + '.join(path.partition('#')[0] for path in source.paths)}")
            yield from read_rows(source, _files(source, self.folder), languages, self.counts[part])

    def _write(self, part: str, rows: Iterable[TextRow]) -> RowStore:
        return row_store.write(_store_path(self.target, part), rows)

    def _write_held_out(self, part: str) -> RowStore:
        """Write dev or test as given, since its scores are compared with those of others, and hold its texts out."""
        count, held_out = self.counts[part], set[Fingerprint]()

        def with_both_sides(rows: Iterable[TextRow]) -> Iterator[TextRow]:
            for row in rows:
                count["kept" if all(row) else "empty"] += 1
                if all(row):
                    fingerprints = _fingerprints(row, (0, 1))
                    if part == "dev" and self.held_out.issuperset(fingerprints):
                        count[IN_TEST] += 1
                    held_out.update(fingerprints)
                    yield row

        store = self._write(part, with_both_sides(self._pairs(part, getattr(self.recipe.data, part))))
        self.held_out.update(held_out)
        if count["kept"] and count[IN_TEST] == count["kept"]:
            problem = f"all {count['kept']} pairs are also in data.test, so the best stage would be chosen by it"
            raise TextError(problem, place="data.dev", cure="name other pairs, or divide one corpus by data.split")
        return store

    def _write_monolingual_dev(self) -> RowStore:
        """Hold out the first monolingual lines, at most half of them, instead of dev pairs.

        The two lines of a row are not translations of each other.
        """
        columns = []
        for side, language in enumerate(self.recipe.languages):
            usable = (row[0] for _, row in self._filtered(self._lines("dev", language), (side,), Counter()))
            first = list(dict.fromkeys(islice(usable, 4 * ROUND_TRIP_LINES)))
            columns.append(first[: num_round_trip_lines(len(first))])
        rows = list(zip(*columns, strict=False))
        for row in rows:
            self.held_out.update(_fingerprints(row, (0, 1)))
        self.counts["dev"] = Counter(kept=len(rows))
        return self._write("dev", rows)

    def _write_filtered(self, part: str, rows: Iterable[TextRow], sides: tuple[int, ...]) -> RowStore:
        """Write the rows that pass the filter, each once, and count the others by reason."""
        count = self.counts[part]
        store, num_duplicates = row_store.write_once(_store_path(self.target, part), self._filtered(rows, sides, count))
        count.update({"duplicate": num_duplicates} if num_duplicates else {}, kept=len(store))
        return store

    def _filtered(
        self, rows: Iterable[TextRow], sides: tuple[int, ...], count: Counter[str], seen: set[Fingerprint] | None = None
    ) -> Iterator[tuple[int, TextRow]]:
        """Yield the rows that pass, each with a key that equal rows share, and count the others.

        `sides` are the languages (0 or 1) of the columns. Rows with a text in `seen`, to which all others are added,
        are duplicates.
        """
        for row in rows:
            fingerprints = _fingerprints(row, sides)
            reason = _filter_reason(row, self.recipe.data.filter)
            if reason is None and seen is not None and not seen.isdisjoint(fingerprints):
                reason = "duplicate"
            if reason is None and not self.held_out.isdisjoint(fingerprints):
                reason = HELD_OUT
            if reason is not None:
                count[reason] += 1
                continue
            if seen is not None:
                seen.update(fingerprints)
            if len(row) == 2 and (differences := errors(*row)):
                count[BROKEN_PLACEHOLDERS] += 1
                if count[BROKEN_PLACEHOLDERS] == 1:
                    self.report(f"warning: first pair {BROKEN_PLACEHOLDERS}: {differences[0]}")
                    for text in row:
                        self.report(f"  {text!r}")
            yield hash(tuple(fingerprints)) & 0xFFFFFFFFFFFFFFFF, row


def _filter_reason(row: TextRow, limits: LineFilter) -> str | None:
    """Return why `data.filter` drops a row, None where it does not."""
    for text in row:
        num_words = len(text.split())
        if num_words < max(1, limits.min_words):
            return "too few words" if num_words else "empty"
        if limits.max_words is not None and num_words > limits.max_words:
            return "too many words"
        if len(text) > limits.max_chars:
            return "too many characters"
    if len(row) == 2 and relative_length(len(row[0]), len(row[1])) > MAX_LENGTH_RATIO:
        return "length ratio"
    if len(row) == 2 and row[0] == row[1]:
        return "both sides equal"
    return None


def _fingerprints(row: TextRow, sides: tuple[int, ...]) -> list[Fingerprint]:
    """Return what identifies each text of a row; letter case and spacing make no difference."""
    fingerprints = []
    for side, text in zip(sides, row, strict=True):
        folded = " ".join(text.casefold().split())
        digest = hashlib.blake2b(folded.encode(), digest_size=8).digest()
        fingerprints.append((side, int.from_bytes(digest, "big")))
    return fingerprints


def reopen(recipe: Recipe, target: Path, counts: dict[str, dict[str, int]]) -> Corpora:
    """Open the stores that `prepare` wrote into `target`; `counts` are those of that call."""
    try:
        stores = {part: RowStore(_store_path(target, part)) for part in ("train", "dev", "test", *_mono_parts(recipe))}
        for part, store in stores.items():
            if len(store) != counts[part].get("kept", 0):
                raise ValueError(f"{store.path.name} has {len(store)} rows of {counts[part].get('kept', 0)}")
    except (OSError, ValueError) as error:
        problem = f"the text of this run is damaged: {error}"
        raise TextError(problem, place=str(target), cure="start a new run") from error
    return _corpora(recipe, stores, counts)


def _corpora(recipe: Recipe, stores: dict[str, RowStore], counts: dict[str, dict[str, int]]) -> Corpora:
    mono = {part.removeprefix("mono."): stores[part] for part in _mono_parts(recipe)}
    return Corpora(stores["train"], stores["dev"], stores["test"], mono, counts)


def _mono_parts(recipe: Recipe) -> list[str]:
    return [f"mono.{code}" for code in recipe.languages] if recipe.needs_mono else []


def _store_path(folder: Path, part: str) -> Path:
    return folder / (f"{part}.txt" if part.startswith("mono.") else f"{part}.tsv")
