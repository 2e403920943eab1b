"""python -m benchmarks.exact: is every spliced row the row that strings would make? Counted over many rows.

For each tokenizer and template: lines of ten languages and hand-made nasty ones, as the writer would write them and
under attack (see `roundtrip.tokens.adversarial`), finished, unfinished and padded in several ways. Each row is made
by both roads. What counts:

- wrong: rows that the road took by the splice and that differ from strings in any id or label. Must be 0.
- refused: canonical rows with text in them that it sent by strings all the same, with the reasons. Costs time,
  nothing else.

Writes benchmarks/results/exact-NAME.json with versions and command. `--rows` is the number for each combination.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import zoo
from roundtrip.backtranslation.run_folder import versions
from roundtrip.runtime.errors import TemplateError
from roundtrip.tokens import compatibility
from roundtrip.tokens.adversarial import AdversarialRows
from roundtrip.tokens.audit import canonical_hypotheses, compare_rows
from roundtrip.tokens.prompt_segments import build_segments
from roundtrip.tokens.prompt_template import PromptTemplate
from roundtrip.tokens.row_builder import SPLICED, RowBuilder
from roundtrip.tokens.splice.canonicality import EMPTY, REASONS

LANGUAGES = ("es", "de", "ru", "ar", "he", "hi", "th", "ja", "zh", "ko")
ROWS_AT_ONCE = 256


@dataclass
class Tally:
    """What came of one combination."""

    rows: int = 0
    canonical: int = 0
    spliced: int = 0
    wrong: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


def samples(languages: Sequence[str], number: int) -> list[tuple[str, str]]:
    """Return (source, target) lines: software strings of each language, the nasty lines on either side."""
    english = zoo.lines("en", number)
    pairs = [(line, english[i % len(english)]) for code in languages for i, line in enumerate(zoo.lines(code, number))]
    nasty = [" ".join(line.split()) or "x" for line in zoo.NASTY]
    return pairs + [(line, english[i % len(english)]) for i, line in enumerate(nasty)] + [("x", line) for line in nasty]


def hypotheses(
    row_builder: RowBuilder, pairs: Sequence[tuple[str, str]], number: int, seed: int
) -> Iterator[list[int]]:
    """Yield generated ids: canonical rows, then attacked ones; some with an end token, some cut short."""
    chance = random.Random(seed)
    canonical = [ids for ids in canonical_hypotheses(row_builder.reverse_template, pairs) if ids]
    some = canonical if len(canonical) <= number // 3 else chance.sample(canonical, number // 3)
    attacked = _attacks(row_builder, canonical, number - len(some), seed)
    stops = row_builder.reverse_template.segments.stop_ids
    for ids in (*some, *attacked):
        kind = chance.random()
        if kind < 0.1:
            yield ids[: chance.randint(1, len(ids))]
        elif kind < 0.5:
            # What follows the end has no meaning, were it text or special tokens.
            yield [*ids, chance.choice(stops), *chance.choices(ids, k=chance.randint(0, 3))]
        else:
            yield ids
    yield [stops[0]]
    yield []


def _attacks(row_builder: RowBuilder, canonical: Sequence[list[int]], number: int, seed: int) -> Iterator[list[int]]:
    """Attack with the vocabulary's own tokens where it can be read; else with tokens at random."""
    if row_builder.guard is not None:
        yield from AdversarialRows(row_builder.guard.pairs.vocabulary, seed).rows(canonical, number)
        return
    chance = random.Random(seed)
    size = len(row_builder.forward_template.tokenizer)
    for _ in range(number):
        ids = list(chance.choice(canonical))
        at = chance.randrange(len(ids))
        ids[at : at + chance.randint(0, 2)] = [chance.randrange(size) for _ in range(chance.randint(0, 2))]
        yield ids or [chance.randrange(size)]


def run(row_builder: RowBuilder, pairs: Sequence[tuple[str, str]], number: int, seed: int) -> Tally:
    """Make rows both ways and compare them."""
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
    reasons, expected, got = compare_rows(row_builder, batch, targets)
    for ids, reason, want, have in zip(batch, reasons, expected, got, strict=True):
        taken = reason == SPLICED
        tally.rows += 1
        tally.canonical += have == want
        tally.spliced += taken
        if taken and have != want:
            tally.wrong += 1
            tally.examples.append(f"{ids} {have.ids} {want.ids}"[:2000])
        if have == want and not taken and reason != REASONS[EMPTY]:
            tally.refused[reason] += 1


def combinations(names: Sequence[str], templates: Sequence[str], small: bool) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield tokenizer name, template name, tokenizer and template text of everything that fits together."""
    for name in names:
        yield from _dressed(name, zoo.load(name), templates)
    for name, tokenizer in (zoo.small() if small else {}).items():
        yield from _dressed(name, tokenizer, templates)


def _dressed(name: str, tokenizer: Any, templates: Sequence[str]) -> Iterator[tuple[str, str, Any, Any]]:
    for template in templates:
        yield name, template, *zoo.dress(tokenizer, template)
    if tokenizer.chat_template:
        yield name, "its own", tokenizer, zoo.OWN


def one(tokenizer: Any, text: Any, pairs: Sequence[tuple[str, str]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the verdict on one combination and the tally of its rows."""
    start = time.perf_counter()
    try:
        learner = PromptTemplate(tokenizer, build_segments(tokenizer, text, "es", "en", ()))
        writer = PromptTemplate(tokenizer, build_segments(tokenizer, text, "en", "es", ()))
    except TemplateError as error:
        return {"mode": "none", "reasons": [error.problem]}
    row_builder, judged = compatibility.build_row_builder(
        writer, learner, pairs[::7], compatibility.BuildOptions(guard=arguments.guard, num_attacks=200)
    )
    found = judged.to_dict()
    if row_builder.tensors is not None:
        tally = run(row_builder, pairs, arguments.rows, arguments.seed)
        found |= vars(tally) | {"refused": dict(tally.refused)}
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Run all combinations and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="of each combination")
    parser.add_argument("--lines", type=int, default=100, help="of each language")
    parser.add_argument("--tokenizers", nargs="*", default=list(zoo.REAL), help=f"of {(*zoo.REAL, *zoo.NPM)}")
    parser.add_argument("--templates", nargs="*", default=list(zoo.TEMPLATES), help="and each tokenizer's own")
    parser.add_argument("--small", action="store_true", help="the small trained tokenizers too")
    parser.add_argument("--guard", choices=("auto", "host"), default="auto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="all", help="of the result file")
    arguments = parser.parse_args()
    pairs = samples(LANGUAGES, arguments.lines)
    path = Path(__file__).parent / "results" / f"exact-{arguments.name}.json"
    found: dict[str, Any] = {}
    total: Counter[str] = Counter()
    for name, template, tokenizer, text in combinations(arguments.tokenizers, arguments.templates, arguments.small):
        key = f"{name} | {template}"
        found[key] = here = one(tokenizer, text, pairs, arguments)
        total.update({count: here.get(count, 0) for count in ("rows", "canonical", "spliced", "wrong")})
        total["refused"] += sum(here.get("refused", {}).values())
        shown = " ".join(
            f"{k} {here[k]}" for k in ("mode", "guard", "rows", "canonical", "spliced", "wrong") if k in here
        )
        sys.stdout.write(f"{key}: {shown} {here.get('refused', '')} {here['reasons'][:2]}\n")
        sys.stdout.flush()
        document = {"command": " ".join(sys.argv[1:]), "versions": versions(), "total": total, "combinations": found}
        path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{dict(total)}\n")
    if total["wrong"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
