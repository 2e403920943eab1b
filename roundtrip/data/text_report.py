"""What the text of a run looks like, from a sample of its lines: lengths, tokens, language, and what is suspicious."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from roundtrip.data import corpora as data_corpora
from roundtrip.data.corpora import Corpora
from roundtrip.data.language_id import MIN_LINES, LanguageIdentifier, identify
from roundtrip.data.row_store import RowStore
from roundtrip.recipe.language_codes import is_spaceless, language_name, match_rank
from roundtrip.runtime.errors import RecipeError, quantity
from roundtrip.runtime.seeding import permuted_index

# Lines of a part that are looked at, spread evenly by chance.
SAMPLE_LINES = 1000
# The largest length of each bar but the last, in words, or in characters of a language without spaces.
BINS = (2, 5, 10, 20, 40)
_BAR_WIDTH = 22
# UTF-8 that was read as Windows-1252 or Latin-1 and saved as UTF-8 again: a letter in front of a continuation byte.
_READ_AS_LATIN = re.compile("[ÂÃÄÅÐÑ][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â€|ï¿½")
# Shares of lines, or tokens of a word, above which something is pointed out.
_MANY_EQUAL, _MANY_EMPTY, _MANY_RATIO, _MANY_DUPLICATES, _MANY_BROKEN = 0.05, 0.2, 0.1, 0.3, 0.05
_MANY_DAMAGED, _MANY_WRONG, _MANY_UNKNOWN = 0.005, 0.2, 0.3
_MANY_TOKENS, _MANY_TOKENS_OF_CHAR = 4.0, 2.0

CountTokens = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Side:
    """Lines of one language: how many there are of each length, and what they take of the tokenizer."""

    language: str
    sampled: int
    unit: str  # "word", or "character" of a language without spaces
    lengths: tuple[int, ...]  # lines by `BINS`, and longer ones
    mean_length: float
    tokens_per_unit: float
    wrong_language: float | None  # share of lines; None where language identification cannot tell


@dataclass(frozen=True)
class Finding:
    """Something suspicious, and what to do about it."""

    part: str
    problem: str
    cure: str


@dataclass(frozen=True)
class TextReport:
    """The counts of every part, its sides by `Side`, and what is suspicious."""

    counts: Mapping[str, Mapping[str, int]]
    sides: Mapping[str, Sequence[Side]]
    findings: Sequence[Finding]

    def to_dict(self) -> dict[str, Any]:
        parts = {
            part: {"counts": dict(counts), "sides": [asdict(side) for side in self.sides.get(part, ())]}
            for part, counts in self.counts.items()
        }
        return {"parts": parts, "findings": [asdict(finding) for finding in self.findings]}

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of at most 80 characters, except for findings."""
        yield f"text, by a sample of at most {SAMPLE_LINES:,} lines of each part:"
        for part, sides in self.sides.items():
            yield from _histogram(part, sides)
        for finding in self.findings:
            yield f"  warning: {finding.part}: {finding.problem}"
            yield f"    {finding.cure}"
        if not self.findings:
            yield "  nothing suspicious in it"


def text_report(corpora: Corpora, languages: tuple[str, str], count_tokens: Mapping[str, CountTokens]) -> TextReport:
    """Look at a sample of every part; `count_tokens` has by language how many tokens lines are."""
    identifier = _identifier(languages)
    stores = {"train": corpora.train, "dev": corpora.dev, "test": corpora.test}
    columns: dict[str, dict[str, list[str]]] = {}
    for part, store in stores.items():
        rows = _sample(store)
        if rows:
            columns[part] = {code: [row[side] for row in rows] for side, code in enumerate(languages)}
    for code, store in corpora.mono.items():
        columns[f"mono.{code}"] = {code: [row[0] for row in _sample(store)]}
    sides = {
        part: [_side(code, lines, count_tokens[code], identifier) for code, lines in by_code.items() if lines]
        for part, by_code in columns.items()
    }
    findings = [finding for part, counts in corpora.counts.items() for finding in _of_counts(part, counts)]
    for part, by_code in columns.items():
        findings += [*_of_languages(part, sides[part], by_code), *_of_encoding(part, by_code)]
    findings += [*_of_tokens(sides), *_of_domain(columns, languages)]
    return TextReport(corpora.counts, sides, findings)


def _sample(store: RowStore) -> list[tuple[str, ...]]:
    size = min(len(store), SAMPLE_LINES)
    chosen = range(size) if size == len(store) else [permuted_index(i, len(store), 0, 0) for i in range(size)]
    return [store[i] for i in chosen]


def _identifier(languages: tuple[str, str]) -> LanguageIdentifier | None:
    """Return the identification of these languages, None where it is not installed or does not know them."""
    try:
        return LanguageIdentifier(languages)
    except RecipeError:
        return None


def _side(code: str, lines: Sequence[str], count: CountTokens, identifier: LanguageIdentifier | None) -> Side:
    by_chars = is_spaceless(code)
    lengths = [len(line) if by_chars else len(line.split()) for line in lines]
    bins = Counter(sum(length > limit for limit in BINS) for length in lengths)
    right, classified = identifier.share_right(lines, code) if identifier else (0.0, 0)
    return Side(
        language=code,
        sampled=len(lines),
        unit="character" if by_chars else "word",
        lengths=tuple(bins[i] for i in range(len(BINS) + 1)),
        mean_length=round(sum(lengths) / len(lengths), 1),
        tokens_per_unit=round(count(lines) / max(1, sum(lengths)), 2),
        wrong_language=round(1 - right, 3) if classified >= MIN_LINES else None,
    )


def _histogram(part: str, sides: Sequence[Side]) -> Iterator[str]:
    """Yield a bar for each length, the languages beside each other."""
    for side in sides:
        wrong = (
            "" if side.wrong_language is None else f", {side.wrong_language:.0%} of long lines in the other language"
        )
        mean = f"{side.mean_length} {side.unit}s a line, {side.tokens_per_unit} tokens a {side.unit}"
        yield f"  {part} {side.language}: {mean}{wrong}" if part[:4] != "mono" else f"  {part}: {mean}{wrong}"
    names = [f"1-{BINS[0]}", *(f"{low + 1}-{high}" for low, high in zip(BINS, BINS[1:], strict=False)), f">{BINS[-1]}"]
    most = max(max(side.lengths) for side in sides)
    for i, name in enumerate(names):
        cells = [
            f"{side.lengths[i]:>5} {'#' * -(-_BAR_WIDTH * side.lengths[i] // most):<{_BAR_WIDTH}}" for side in sides
        ]
        if any(side.lengths[i] for side in sides):
            yield f"    {name:>6} {' '.join(cells)}".rstrip()


def _of_counts(part: str, counts: Mapping[str, int]) -> Iterator[Finding]:
    """Yield what is suspicious about the lines that were dropped, or kept with a note."""
    notes = data_corpora.NOTES
    total = sum(number for reason, number in counts.items() if reason not in notes)
    if not total or part == "corpus" and "kept" not in counts:
        return
    limits = {
        "both sides equal": (_MANY_EQUAL, "they are not translated: name files that are, or leave out what is copied"),
        "empty": (_MANY_EMPTY, "check that the columns or files are the right ones and that line N translates line N"),
        "length ratio": (_MANY_RATIO, "check that line N of one side translates line N of the other, also at the end"),
        "duplicate": (_MANY_DUPLICATES, "each text is trained on once; text that repeats itself less teaches more"),
        data_corpora.BROKEN_PLACEHOLDERS: (
            _MANY_BROKEN,
            "correct or remove these pairs: a model learns to break placeholders from them (docs/placeholders.md)",
        ),
    }
    for reason, (limit, cure) in limits.items():
        if counts.get(reason, 0) > limit * total:
            yield Finding(
                part, f"{counts[reason]} of {quantity(total, 'line')} ({counts[reason] / total:.0%}): {reason}", cure
            )
    if shared := counts.get(data_corpora.IN_TEST):
        problem = f"{quantity(shared, 'pair')} also in test, which then chooses the stage that it scores"
        yield Finding(part, problem, "remove them from one of the two files")


def _of_languages(part: str, sides: Sequence[Side], columns: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Yield sides that are in another language than they should be."""
    wrong = [side for side in sides if (side.wrong_language or 0.0) > _MANY_WRONG]
    if len(wrong) == 2 and all((side.wrong_language or 0.0) > 0.5 for side in wrong):
        cure = "name columns or files in the order of `languages`"
        yield Finding(part, f"{sides[0].language} and {sides[1].language} seem to be swapped", cure)
        return
    for side in sides:
        other = identify(columns[side.language])
        if other is not None and match_rank(side.language, other) is None and side.wrong_language is not None:
            name = language_name(other, {})
            yield Finding(part, f"the lines of {side.language} look like {name}", "name a file in the right language")
        elif side in wrong:
            problem = f"{side.wrong_language:.0%} of the long lines of {side.language} are in the other language"
            yield Finding(part, problem, "remove lines that are not translated; filter.language rejects such sources")


def _of_encoding(part: str, columns: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Yield damage to characters."""
    for code, lines in columns.items():
        latin = [line for line in lines if _READ_AS_LATIN.search(line)]
        if len(latin) > _MANY_DAMAGED * len(lines):
            problem = f"{len(latin)} of {len(lines)} lines of {code} are UTF-8 that was read as Windows-1252"
            cure = "read them the other way round: iconv -f UTF-8 -t WINDOWS-1252 FILE > NEW"
            yield Finding(part, f"{problem}, as {latin[0][:60]!r}", cure)
        lost = [line for line in lines if "\ufffd" in line]
        if len(lost) > _MANY_DAMAGED * len(lines):
            problem = f"{len(lost)} of {len(lines)} lines of {code} have lost characters (U+FFFD), as {lost[0][:60]!r}"
            yield Finding(part, problem, "convert the original file again, from the encoding that it is in")


def _of_tokens(sides: Mapping[str, Sequence[Side]]) -> Iterator[Finding]:
    """Yield languages that the tokenizer cuts into many pieces."""
    known = {side.language: side for each in sides.values() for side in each}
    for code, side in known.items():
        limit = _MANY_TOKENS if side.unit == "word" else _MANY_TOKENS_OF_CHAR
        if side.tokens_per_unit > limit:
            others = ", ".join(
                f"{other}: {known[other].tokens_per_unit} a {known[other].unit}" for other in known if other != code
            )
            problem = f"{code} takes {side.tokens_per_unit} tokens a {side.unit} ({others})"
            cure = (
                "training and generating take time and memory for each token, and train.max_length leaves long lines "
                "out: a base whose tokenizer knows this language is faster and better"
            )
            yield Finding("tokenizer", problem, cure)


def _of_domain(columns: Mapping[str, Mapping[str, Sequence[str]]], languages: Sequence[str]) -> Iterator[Finding]:
    """Yield dev or test text whose words are far more often unknown to the training text than its own words are."""
    for code in languages:
        lines = [*columns.get("train", {}).get(code, ()), *columns.get(f"mono.{code}", {}).get(code, ())]
        if is_spaceless(code) or len(lines) < 200:
            continue
        known = set(_words(lines[::2]))
        own = _unknown_share(lines[1::2], known)
        for part in ("dev", "test"):
            text = columns.get(part, {}).get(code, ())
            share = _unknown_share(text, known)
            if len(text) >= MIN_LINES and share > max(_MANY_UNKNOWN, 2 * own):
                problem = f"{share:.0%} of the words of {code} are not in a sample of the training text, of its own "
                cure = "it seems to be of another domain: scores and the choice of stages are then of that domain"
                yield Finding(part, f"{problem}{own:.0%}", cure)


def _words(lines: Sequence[str]) -> list[str]:
    return [word for line in lines for word in re.findall(r"\w+", line.casefold())]


def _unknown_share(lines: Sequence[str], known: set[str]) -> float:
    words = _words(lines)
    return sum(word not in known for word in words) / max(1, len(words))
