"""python -m benchmarks.sampled RUN: rows that a trained model samples, by the splice and by the text path.

Adversarial rows are many and crude; what counts in use is what a model generates at temperature 1.0 and 1.3. Both
directions of a finished run generate sources for its monolingual lines with their best adapters; each row is made by
the splice and by the text path. Counted are wrong rows (must be 0), canonical ones that took the text path all the
same, and, after the first 2,000 rows (`warm`), the share of canonical rows that were spliced and of those that
`lookup` knew without the host.

Writes benchmarks/results/sampled-NAME.json. Exits with 1 if a row is wrong.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import common
from roundtrip import load_trained
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.backtranslation.token_rows import make_row_builders
from roundtrip.data.corpora import reopen
from roundtrip.data.sampler import Cursor, take_rows
from roundtrip.engine.translator import Translations
from roundtrip.recipe.plan import directions
from roundtrip.runtime.event_log import EventLog
from roundtrip.tokens.audit import compare_rows
from roundtrip.tokens.row_builder import SPLICED, RowBuilder
from roundtrip.tokens.splice import splicing

WARM_UP_ROWS = 2000
BATCH_SIZE = 100
TEMPERATURES = (1.0, 1.3)


def count(
    row_builder: RowBuilder, translations: Translations, targets: list[str], warm: bool, tally: Counter[str]
) -> None:
    """Make the rows of one batch by both paths and count them."""
    hypotheses = translations.hypotheses
    assert row_builder.tensors is not None and row_builder.checker is not None
    source_BN, source_size_B, _, fits_B = splicing.trim_source(
        hypotheses.ids_BN, hypotheses.size_B, row_builder.tensors
    )
    known_B = (row_builder.checker.lookup(source_BN, source_size_B) & fits_B).tolist()
    rows = compare_rows(row_builder, hypotheses.lists(), targets)
    for (reason, expected, actual), known, finished in zip(rows, known_B, translations.finished, strict=True):
        equal, spliced = actual == expected, reason == SPLICED
        tally["rows"] += 1
        tally["finished"] += finished
        tally["wrong"] += spliced and not equal
        tally["canonical"] += equal
        tally[f"canonical, {reason}"] += equal
        tally["not canonical"] += not equal
        if warm and equal:
            tally["warm: canonical"] += 1
            tally["warm: spliced"] += spliced
            tally["warm: known without the host"] += known


def load(folder: Path) -> tuple[Any, Any, dict[str, Any], dict[str, RowBuilder]]:
    """Return recipe, corpora, translators with their best adapters, and row builders of a finished run."""
    run = RunFolder(folder)
    recipe = run.recipe()
    corpora = reopen(recipe, run.data, run.manifest().lines)
    translators = {direction.name: load_trained(folder, direction.name) for direction in directions(recipe)}
    builders, _ = make_row_builders(recipe, translators, corpora.dev, EventLog(Console(stderr=True)))
    return recipe, corpora, translators, builders


def measure(folder: Path, num_lines: int) -> dict[str, Any]:
    """Return the tallies of each direction and temperature, and how many pairs of tokens the host has checked.

    Args:
        num_lines: of each direction at each temperature.
    """
    recipe, corpora, translators, builders = load(folder)
    tallies: dict[str, Counter[str]] = {}
    num_asked: list[int] = []
    total: Counter[str] = Counter()
    for temperature in TEMPERATURES:
        settings = recipe.generate.model_copy(update={"temperature": temperature, "top_p": 1.0})
        for d in directions(recipe):
            lines, _ = take_rows(corpora.mono[d.target], Cursor(), num_lines, 1)
            tally = tallies[f"{d.name}, temperature {temperature}"] = Counter()
            for start in range(0, len(lines), BATCH_SIZE):
                batch = [line for (line,) in lines[start : start + BATCH_SIZE]]
                translations = translators[d.reverse.name].translate(batch, settings, start)
                num_rows = sum(each["rows"] for each in tallies.values())
                count(builders[d.name], translations, batch, num_rows >= WARM_UP_ROWS, tally)
                checker = builders[d.name].checker
                num_asked.append(checker.num_asked if checker is not None else 0)
                sys.stdout.write(f"{num_rows + len(batch)} rows, {num_asked[-1]} pairs checked, {dict(tally)}\n")
            total.update(tally)
    return {"total": total, "by_direction": tallies, "pairs_settled_after_each_100_rows": num_asked}


def show(document: Mapping[str, Any], console: Console) -> None:
    tallies = document["by_direction"] | {"total": document["total"]}
    keys = dict.fromkeys(key for tally in tallies.values() for key in tally)
    rows = [(key, *(str(tally.get(key, 0)) for tally in tallies.values())) for key in keys]
    common.print_table(console, "sampled rows", ["rows", *tallies], rows)


def main() -> None:
    parser = common.parser(__doc__, name="smollm2")
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--lines", type=int, default=800, help="of each direction at each temperature")
    asked = parser.parse_args()
    document = common.provenance("sampled") | measure(asked.run, asked.lines)
    common.finish(document, common.result_path("sampled", asked.name), show)
    sys.exit(1 if document["total"]["wrong"] else 0)


if __name__ == "__main__":
    main()
