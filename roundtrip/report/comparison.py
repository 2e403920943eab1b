"""Several runs side by side: their scores, differences tested by paired bootstrap, and what their recipes differ in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roundtrip import __version__
from roundtrip.evaluation.metrics import paired_bootstrap
from roundtrip.evaluation.tables import significance
from roundtrip.recipe.language_codes import bleu_tokenizer
from roundtrip.recipe.plan import Direction
from roundtrip.report.figures import NO_VALUE, figures_of, number, signed
from roundtrip.report.page import COMPARISON_HEADER, NumberTable, Row, comparison_cells, environment
from roundtrip.report.run_data import RunData, read_run
from roundtrip.report.verdict import Verdict, verdict
from roundtrip.runtime.atomic_io import write_text

# Characters of a value of a recipe on the page.
MAX_VALUE = 160


@dataclass(frozen=True)
class ComparedRun:
    label: str
    data: RunData
    verdict: Verdict


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write one page that compares several runs with the first of them, in what both translate.

    Raises:
        RunError: one of the folders is not a run that can be read.
    """
    all_data = [read_run(folder) for folder in folders]
    names = [data.name for data in all_data]
    labels = [name if names.count(name) == 1 else str(path) for name, path in zip(names, folders, strict=True)]
    runs = [ComparedRun(label, data, verdict(data)) for label, data in zip(labels, all_data, strict=True)]
    write_text(out, render_comparison(runs))
    return out


def render_comparison(runs: Sequence[ComparedRun]) -> str:
    """Return the page of several runs."""
    from roundtrip.report import run_charts

    first, notes, sentences = runs[0], list[str](), list[str]()
    tables = []
    for direction in dict.fromkeys(direction for run in runs for direction in run.data.directions):
        tables.append(_score_table(direction, runs, notes, sentences))
    same = [run for run in runs if run.data.recipe.languages == first.data.recipe.languages]
    if len(same) < len(runs):
        notes.append("The runs are not all between the same languages: only runs of the same direction are compared.")
    problems = [f"{run.label}: {problem}" for run in runs for problem in run.data.problems]
    page = environment().get_template("comparison.html")
    return page.render(
        runs=runs,
        headline=f"{runs[1].label if len(runs) == 2 else f'{len(runs)} runs,'} compared with {first.label}",
        sentences=sentences or ["No two of these runs have translated the same test lines, so that none are compared."],
        notes=list(dict.fromkeys(notes)) + problems,
        tables=tables,
        charts=run_charts.comparison_charts([run.data for run in same], [run.label for run in same]),
        differences=_differences(same if same[1:] else runs),
        footer=f"Written by roundtrip {__version__} from the files of the runs; nothing here is read from a network.",
    )


def _score_table(
    direction: Direction, runs: Sequence[ComparedRun], notes: list[str], sentences: list[str]
) -> NumberTable:
    """Return the scores of the best stages of a direction, and their differences from those of the first run."""
    own = [run for run in runs if direction in run.data.directions]
    rows = []
    for run in own:
        best = run.data.best.get(direction.name, "")
        test, dev = (scores.get(best, {}).get(direction.name, {}) for scores in (run.data.test, run.data.dev))
        cells = [best or NO_VALUE, number(test.get("chrf")), number(test.get("bleu")), number(dev.get("chrf"))]
        gain = next((each.change for each in run.verdict.directions if each.name == direction.name), None)
        cells.append(NO_VALUE if gain is None else signed(gain))
        results = _compare(direction, own[0], run, notes) if run is not own[0] else []
        if chrf := figures_of(results, "chrF++"):
            against = f"{direction.name}: {run.label} {signed(chrf['change'])} chrF++ against {own[0].label}"
            sentences.append(f"{against}, {significance(chrf['p_value'])} (p = {chrf['p_value']:.3f}).")
        rows.append(Row(run.label, [*cells, *comparison_cells(results)]))
    header = ["run", "best stage", "test chrF++", "test BLEU", "dev chrF++", "gain in the run", *COMPARISON_HEADER]
    return NumberTable(direction.name, header, rows)


def _compare(direction: Direction, first: ComparedRun, other: ComparedRun, notes: list[str]) -> list[dict[str, Any]]:
    """Return the paired bootstrap of two runs on their test lines, nothing where these differ or are missing."""
    texts = []
    for run in (first, other):
        if not run.data.test or "test" not in run.data.pairs:
            notes.append(f"{run.label} has no test translations, so that it is not compared.")
            return []
        lines = run.data.translations("test", run.data.best[direction.name], direction)
        if lines is None:
            notes.append(f"The test translations of {run.label} cannot be read, so that it is not compared.")
            return []
        texts.append((run.data.oriented("test", direction), lines))
    (test, before), (other_test, after) = texts
    if test != other_test:
        shared = set(zip(test.sources, test.references, strict=True))
        shared &= set(zip(other_test.sources, other_test.references, strict=True))
        lines_of = f"{len(test.sources):,} and {len(other_test.sources):,} lines, {len(shared):,} in both"
        notes.append(
            f"{first.label} and {other.label} have different test sets ({lines_of}), so that they are not compared."
        )
        return []
    results = paired_bootstrap(before, after, test.references, bleu_tokenize=bleu_tokenizer(direction.target))
    return [result.to_dict() for result in results]


def _differences(runs: Sequence[ComparedRun]) -> NumberTable:
    """Return the keys of recipes, and the versions, that are not the same in all runs."""
    flat = [dict(_flat({"recipe": run.data.manifest.recipe, "version": run.data.manifest.versions})) for run in runs]
    rows = []
    for key in dict.fromkeys(key for each in flat for key in each):
        values = [each.get(key, NO_VALUE) for each in flat]
        if len(set(values)) > 1:
            shown = [value if len(value) <= MAX_VALUE else f"{value[:MAX_VALUE]}…" for value in values]
            rows.append(Row(key.removeprefix("recipe."), shown))
    header = ["key", *(run.label for run in runs)]
    return NumberTable("What differs in recipes and versions", header, rows, is_text=True)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the values of nested tables by their dotted keys, as JSON."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", json.dumps(value, ensure_ascii=False)))
    return pairs
