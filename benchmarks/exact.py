"""python -m benchmarks.exact: is every spliced row equal to the row of the text path? Counted over many rows.

For each tokenizer and template: lines of ten languages and hand-made difficult ones, as the reverse model would
generate them and as adversarial rows (see `roundtrip.tokens.audit`), finished, unfinished and padded in several
ways. Each row is made by both paths. Counted are:

- wrong: spliced rows that differ from the text path in any id or label. Must be 0.
- refused: canonical rows with text in them that took the text path all the same, with the reasons. This costs time,
  nothing else.

Writes benchmarks/results/exact-NAME.json; `--rows` is the number for each combination. Exits with 1 if a row is wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from benchmarks import common, zoo
from roundtrip import PromptTemplate, build_row_builder
from roundtrip.runtime.errors import TemplateError
from roundtrip.tokens.audit import AdversarialRows, canonical_hypotheses, compare_rows
from roundtrip.tokens.compatibility import BuildOptions
from roundtrip.tokens.prompt_segments import build_segments
from roundtrip.tokens.row_builder import SPLICED, RowBuilder
from roundtrip.tokens.splice.canonicality import EMPTY, REASONS

LANGUAGES = ("es", "de", "ru", "ar", "he", "hi", "th", "ja", "zh", "ko")
ROWS_AT_ONCE = 256


@dataclass
class Tally:
    """Counts of one combination."""

    rows: int = 0
    canonical: int = 0
    spliced: int = 0
    wrong: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


def samples(languages: Sequence[str], number: int) -> list[tuple[str, str]]:
    """Return (source, target) lines: software strings of each language, the difficult lines on either side."""
    english = zoo.lines("en", number)
    pairs = [(line, english[i % len(english)]) for code in languages for i, line in enumerate(zoo.lines(code, number))]
    nasty = [" ".join(line.split()) or "x" for line in zoo.NASTY]
    return pairs + [(line, english[i % len(english)]) for i, line in enumerate(nasty)] + [("x", line) for line in nasty]


def hypotheses(
    row_builder: RowBuilder, pairs: Sequence[tuple[str, str]], number: int, seed: int
) -> Iterator[list[int]]:
    """Yield generated ids: canonical rows, then adversarial ones; some with an end token, some cut short."""
    chance = random.Random(seed)
    canonical = [ids for ids in canonical_hypotheses(row_builder.reverse_template, pairs) if ids]
    some = canonical if len(canonical) <= number // 3 else chance.sample(canonical, number // 3)
    adversarial = _adversarial(row_builder, canonical, number - len(some), seed)
    stops = row_builder.reverse_template.segments.stop_ids
    for ids in (*some, *adversarial):
        kind = chance.random()
        if kind < 0.1:
            yield ids[: chance.randint(1, len(ids))]
        elif kind < 0.5:
            # What follows the end is not part of the hypothesis, whether text or special tokens.
            yield [*ids, chance.choice(stops), *chance.choices(ids, k=chance.randint(0, 3))]
        else:
            yield ids
    yield [stops[0]]
    yield []


def _adversarial(
    row_builder: RowBuilder, canonical: Sequence[list[int]], number: int, seed: int
) -> Iterator[list[int]]:
    """Yield rows with other tokens of the same text where the vocabulary can be read; else with random tokens."""
    if row_builder.checker is not None:
        yield from AdversarialRows(row_builder.checker.pairs.vocabulary, seed).rows(canonical, number)
        return
    chance = random.Random(seed)
    size = len(row_builder.forward_template.tokenizer)
    for _ in range(number):
        ids = list(chance.choice(canonical))
        at = chance.randrange(len(ids))
        ids[at : at + chance.randint(0, 2)] = [chance.randrange(size) for _ in range(chance.randint(0, 2))]
        yield ids or [chance.randrange(size)]


def run(row_builder: RowBuilder, pairs: Sequence[tuple[str, str]], number: int, seed: int) -> Tally:
    """Make rows by both paths and compare them."""
    tally = Tally()
    targets = [target for _, target in pairs]
    chance = random.Random(seed)
    batch: list[list[int]] = []
    for ids in (*hypotheses(row_builder, pairs, number, seed), None):
        if ids is not None:
            batch.append(ids)
        if batch and (ids is None or len(batch) == ROWS_AT_ONCE):
            _count(row_builder, batch, [chance.choice(targets) for _ in batch], tally)
            batch = []
    return tally


def _count(row_builder: RowBuilder, batch: list[list[int]], targets: list[str], tally: Tally) -> None:
    for ids, (reason, expected, actual) in zip(batch, compare_rows(row_builder, batch, targets), strict=True):
        spliced, equal = reason == SPLICED, actual == expected
        tally.rows += 1
        tally.canonical += equal
        tally.spliced += spliced
        if spliced and not equal:
            tally.wrong += 1
            tally.examples.append(f"{ids} {actual} {expected}"[:2000])
        if equal and not spliced and reason != REASONS[EMPTY]:
            tally.refused[reason] += 1


def combinations(names: Sequence[str], templates: Sequence[str], small: bool) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield tokenizer name, template name, tokenizer and template text of all combinations."""
    named = ((name, zoo.load(name)) for name in names)
    for name, tokenizer in (*named, *(zoo.small().items() if small else ())):
        for template in templates:
            yield name, template, *zoo.dress(tokenizer, template)
        if tokenizer.chat_template:
            yield name, "its own", tokenizer, zoo.OWN


def measure(tokenizer: Any, text: Any, pairs: Sequence[tuple[str, str]], asked: argparse.Namespace) -> dict[str, Any]:
    """Return the compatibility report of one combination and the tally of its rows."""
    start = time.perf_counter()
    try:
        forward = PromptTemplate(tokenizer, build_segments(tokenizer, text, "es", "en", ()))
        reverse = PromptTemplate(tokenizer, build_segments(tokenizer, text, "en", "es", ()))
    except TemplateError as error:
        return {"mode": "none", "reasons": [error.problem]}
    options = BuildOptions(checker=asked.checker, num_attacks=200)
    row_builder, report = build_row_builder(reverse, forward, pairs[::7], options)
    figures = report.to_dict()
    if row_builder.tensors is not None:
        tally = run(row_builder, pairs, asked.rows, asked.seed)
        figures |= vars(tally) | {"refused": dict(tally.refused)}
    return figures | {"seconds": round(time.perf_counter() - start, 1)}


def show(document: Mapping[str, Any], console: Console) -> None:
    keys = ("mode", "checker", "rows", "canonical", "spliced", "wrong", "refused")
    rows = []
    for name, figures in document["combinations"].items():
        cells = figures | {"refused": sum(figures.get("refused", {}).values())}
        rows.append([name, *(str(cells.get(key, "")) for key in keys)])
    total = document["total"]
    rows += [[], ["total", *(str(total.get(key, "")) for key in keys)]]
    common.print_table(console, "rows by both paths", ["tokenizer | template", *keys], rows)


def main() -> None:
    parser = common.parser(__doc__, name="all")
    parser.add_argument("--rows", type=int, default=2000, help="of each combination")
    parser.add_argument("--lines", type=int, default=100, help="of each language")
    parser.add_argument("--tokenizers", nargs="*", help="of benchmarks.zoo; all that need no npm")
    parser.add_argument("--templates", nargs="*", help="and each tokenizer's own; all")
    parser.add_argument("--small", action="store_true", help="also the small trained tokenizers")
    parser.add_argument("--checker", choices=("auto", "host"), default="auto")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()

    names = zoo.REAL if asked.tokenizers is None else asked.tokenizers
    templates = list(zoo.TEMPLATES) if asked.templates is None else asked.templates
    pairs = samples(LANGUAGES, asked.lines)
    path, total = common.result_path("exact", asked.name), Counter[str]()
    document = common.provenance("exact") | {"total": total, "combinations": {}}
    for name, template, tokenizer, text in combinations(names, templates, asked.small):
        figures = measure(tokenizer, text, pairs, asked)
        document["combinations"][f"{name} | {template}"] = figures
        total.update({key: figures.get(key, 0) for key in ("rows", "canonical", "spliced", "wrong")})
        total["refused"] += sum(figures.get("refused", {}).values())
        sys.stdout.write(f"{name} | {template}: {figures['mode']}, {figures.get('wrong', 0)} wrong\n")
        common.save(document, path)
    common.finish(document, path, show)
    sys.exit(1 if total["wrong"] else 0)


if __name__ == "__main__":
    main()
