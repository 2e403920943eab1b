"""python -m benchmarks.sampled RUN: rows that a trained model really samples, by both roads.

Attacks are many and crude; what counts in use is what a model writes at temperature 1.0 and 1.3. Both directions of a
finished run write sources for its monolingual lines with their best adapters; each row is made by the splice and by
strings. Counted are wrong rows (must be 0), canonical ones that were sent by strings all the same, and, after the
first 2,000 rows, the share of canonical rows that took the splice and of those that `lookup` knew without the host.

Writes benchmarks/results/sampled-NAME.json with versions and command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from roundtrip.backtranslation import row_builders
from roundtrip.backtranslation.run_folder import BEST, RunFolder, versions
from roundtrip.backtranslation.dev_scoring import parallel_texts
from roundtrip.data.corpora import reopen
from roundtrip.data.sampler import Cursor, take_rows
from roundtrip.engine import translator
from roundtrip.recipe.plan import directions
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.event_log import EventLog
from roundtrip.tokens.audit import compare_rows
from roundtrip.tokens.prompt_segments import Segments
from roundtrip.tokens.row_builder import SPLICED, RowBuilder
from roundtrip.tokens.splice import splicing as splices

WARM_UP = 2000
ROWS_AT_ONCE = 100


def count(
    row_builder: RowBuilder, written: translator.Translations, targets: list[str], warm: bool, tally: Counter[str]
) -> None:
    """Make the rows of one batch both ways."""
    ids_BN, size_B = written.hypotheses.ids_BN, written.hypotheses.size_B
    assert row_builder.tensors is not None and row_builder.guard is not None
    source = splices.trim_source(ids_BN, size_B, row_builder.tensors)
    known_B = (row_builder.guard.lookup(source.ids_BN, source.size_B) & source.fits_B).tolist()
    reasons, expected, got = compare_rows(row_builder, written.hypotheses.lists(), targets)
    for reason, want, have, known, finished in zip(reasons, expected, got, known_B, written.finished, strict=True):
        tally["rows"] += 1
        tally["finished"] += finished
        tally["wrong"] += reason == SPLICED and have != want
        tally["canonical"] += have == want
        tally[f"canonical, {reason}"] += have == want
        tally["not canonical"] += have != want
        if warm and have == want:
            tally["warm: canonical"] += 1
            tally["warm: spliced"] += reason == SPLICED
            tally["warm: known without the host"] += known


def main() -> None:
    """Sample, make rows both ways, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--lines", type=int, default=800, help="of each direction at each temperature")
    parser.add_argument("--name", default="smollm2")
    arguments = parser.parse_args()
    run = RunFolder(arguments.run)
    recipe, folder = run.recipe()
    facts = run.facts()
    corpora = reopen(recipe, run.data, facts["lines"])
    segments = {name: Segments.from_dict(value) for name, value in facts["segments"].items()}
    both = translator.load(recipe, folder, segments)
    for d in directions(recipe):
        both[d.name].direction_model.restore(run.adapters / BEST / d.name)
    samples = {d.name: list(zip(*parallel_texts(corpora, recipe, "dev", d), strict=True)) for d in directions(recipe)}
    templates = {name: one.template for name, one in both.items()}
    devices = {name: one.base.device for name, one in both.items()}
    found, _ = row_builders.find(recipe, templates, templates, samples, devices, EventLog(roads_console()))
    tally: dict[str, Counter[str]] = {}
    asked: list[int] = []
    total = 0
    for temperature in (1.0, 1.3):
        settings = recipe.generate.model_copy(update={"temperature": temperature, "top_p": 1.0})
        for d in directions(recipe):
            lines, _ = take_rows(corpora.mono[d.target], Cursor(), arguments.lines, 1)
            for start in range(0, len(lines), ROWS_AT_ONCE):
                some = [line for (line,) in lines[start : start + ROWS_AT_ONCE]]
                written = both[d.reverse.name].translate(some, Generate(**settings.model_dump()), start)
                here = tally.setdefault(f"{d.name}, temperature {temperature}", Counter())
                count(found[d.name], written, some, total >= WARM_UP, here)
                total += len(some)
                guard = found[d.name].guard
                asked.append(guard.num_asked if guard is not None else 0)
                sys.stdout.write(f"{total} rows, {asked[-1]} pairs settled, {dict(here)}\n")
                sys.stdout.flush()
    whole: Counter[str] = Counter()
    for here in tally.values():
        whole.update(here)
    document: dict[str, Any] = {
        "command": " ".join(sys.argv[1:]),
        "versions": versions(),
        "total": whole,
        "by_direction": tally,
        "pairs_settled_after_each_100_rows": asked,
    }
    path = Path(__file__).parent / "results" / f"sampled-{arguments.name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if whole["wrong"]:
        sys.exit(1)


def roads_console() -> Any:
    """Return where the search for the roads speaks."""
    from rich.console import Console

    return Console(stderr=True)


if __name__ == "__main__":
    main()
