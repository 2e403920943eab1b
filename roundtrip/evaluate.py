"""python -m roundtrip.evaluate: scores one system or two on any test file, and shows where they differ most."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from roundtrip import score
from roundtrip.comet import comet
from roundtrip.door import open_door
from roundtrip.errors import RecipeError, TextError, printable
from roundtrip.files import write_text
from roundtrip.recipe import BleuTokenizer
from roundtrip.run import BEST
from roundtrip.systems import HeldOut, read, read_test, same_length, translations
from roundtrip.text.codes import bleu_tokenizer

# A slice with fewer lines is shown without a test.
MIN_SLICE = 50
# chrF of a hypothesis against its source from which it counts as a copy.
COPY = 80.0


def main() -> None:
    """The door."""
    parser = argparse.ArgumentParser(
        prog="python -m roundtrip.evaluate",
        description="Score translations on any test file: BLEU and chrF++ with signatures, paired bootstrap against a "
        "baseline, the lines that changed most, domains. A system is a file of translations or the folder of a run.",
    )
    add = parser.add_argument
    add("--source", type=Path, metavar="FILE", help="one source a line")
    add("--reference", type=Path, metavar="FILE", help="one reference a line")
    add("--test", type=Path, metavar="FILE", help="in place of both: source, tab, reference")
    add("--system", type=Path, required=True, metavar="FILE|RUN", help="translations, one a line, or a run to ask")
    add("--baseline", type=Path, metavar="FILE|RUN", help="what it is compared with")
    add("--to", metavar="LANGUAGE", help="code of the target language: needed by runs, and chooses BLEU's tokenizer")
    add("--stage", default=BEST, help="which adapters of a run: best (default), parallel, round-1, ...")
    add("--baseline-stage", metavar="STAGE", help="of the baseline, where it is another")
    add("--device", default="auto", help="auto (default), cpu, cuda:0, ...")
    add("--bleu-tokenize", choices=get_args(BleuTokenizer), help="in place of the one that fits --to")
    add("--lowercase", action="store_true", help="lowercase first, as many older papers do")
    add("--ter", action="store_true", help="also the translation edit rate")
    add("--slices", type=Path, metavar="FILE", help="one label a line, such as a domain: scores of each")
    add("--changed", type=int, default=5, metavar="N", help="so many lines that gained and that lost most (5)")
    add("--samples", type=int, default=1000, help="of the bootstrap (1000)")
    add("--seed", type=int, default=12345, help="of the bootstrap (12345)")
    add("--comet", type=Path, metavar="CHECKPOINT", help="also COMET, by a model on disk")
    add("--comet-python", metavar="PYTHON", help="interpreter of an environment that has COMET")
    add("--json", type=Path, metavar="FILE", help="write everything to a file")
    open_door(_work, parser)


def _work(arguments: argparse.Namespace) -> None:
    for name, least in (("samples", 10), ("changed", 0)):
        if getattr(arguments, name) < least:
            raise RecipeError(
                f"{getattr(arguments, name)}: at least {least} is wanted", place=f"--{name}", cure="raise it"
            )
    if (arguments.comet is None) != (arguments.comet_python is None):
        raise RecipeError("one goes with the other", place="--comet, --comet-python", cure="give both or neither")
    if arguments.json and arguments.json.is_dir():
        raise RecipeError("is a folder", place=f"--json {arguments.json}", cure="name a file")
    test = read_test(arguments.source, arguments.reference, arguments.test)
    labels = read(arguments.slices) if arguments.slices else []
    if arguments.slices:
        same_length(labels, test.sources, arguments.slices, "the test set has")
    tokenizer = arguments.bleu_tokenize or (bleu_tokenizer(arguments.to) if arguments.to else "13a")
    score.signatures(tokenizer)
    stages = {"system": arguments.stage, "baseline": arguments.baseline_stage or arguments.stage}
    places = {"baseline": arguments.baseline, "system": arguments.system}
    systems = {
        name: translations(place, test, arguments.to, stages[name], arguments.device)
        for name, place in places.items()
        if place is not None
    }
    if len(systems) == 2 and systems["baseline"] == systems["system"]:
        raise TextError(
            "system and baseline are the same, line by line", place="--baseline", cure="name two systems that differ"
        )
    settings = {"bleu_tokenize": tokenizer, "lowercase": arguments.lowercase, "ter": arguments.ter}
    document = evaluate(test, systems, labels, settings, arguments.samples, arguments.seed, arguments.changed)
    document["places"] = {name: str(place) for name, place in places.items() if place is not None}
    if arguments.comet:
        document["comet"] = by_comet(
            test, systems, arguments.comet, arguments.comet_python, arguments.samples, arguments.seed
        )
    if arguments.json:
        write_text(arguments.json, json.dumps(document, ensure_ascii=False, indent=1) + "\n")
    show(document, Console())


def evaluate(
    test: HeldOut,
    systems: Mapping[str, Sequence[str]],
    labels: Sequence[str],
    settings: Mapping[str, Any],
    samples: int,
    seed: int,
    num_changed: int,
) -> dict[str, Any]:
    """Return all figures as one document.

    Args:
        systems: `system`, and perhaps `baseline`, each a translation a line.
        labels: one of each line, or none at all.
        settings: tokenizer, case and TER, see `score.metrics`.
        samples, seed: of the bootstrap.
        num_changed: how many lines of either kind.
    """
    rows = {"copy": test.sources, **systems}
    document: dict[str, Any] = {
        "lines": len(test.sources),
        "signatures": _signatures(settings),
        "scores": {name: _scores(texts, test.references, settings) for name, texts in rows.items()},
        "empty": {name: sum(not text for text in texts) for name, texts in systems.items()},
        "copies": {name: _copies(test, texts) for name, texts in systems.items()},
        "settings": {**settings, "samples": samples, "seed": seed},
    }
    if len(systems) == 2:
        baseline, system = systems["baseline"], systems["system"]
        document["comparison"] = _compared(baseline, system, test.references, settings, samples, seed)
        document["changed"] = changed(test, baseline, system, num_changed, settings["lowercase"])
    if labels:
        document["slices"] = {}
        for label in sorted(set(labels)):
            at = [place for place, one in enumerate(labels) if one == label]
            references = [test.references[place] for place in at]
            own = {name: [texts[place] for place in at] for name, texts in rows.items()}
            found: dict[str, Any] = {
                "lines": len(at),
                "scores": {name: _scores(texts, references, settings) for name, texts in own.items()},
            }
            if len(systems) == 2 and len(at) >= MIN_SLICE:
                found["comparison"] = _compared(own["baseline"], own["system"], references, settings, samples, seed)
            document["slices"][label] = found
    return document


def _scores(texts: Sequence[str], references: Sequence[str], settings: Mapping[str, Any]) -> dict[str, float]:
    every = score.metrics(**settings)
    return {name: metric.corpus_score(list(texts), [list(references)]).score for name, metric in every.items()}


def _signatures(settings: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, metric in score.metrics(**settings).items():
        metric.corpus_score(["a"], [["a"]])
        found[name] = str(metric.get_signature())
    return found


def _compared(
    baseline: Sequence[str],
    system: Sequence[str],
    references: Sequence[str],
    settings: Mapping[str, Any],
    samples: int,
    seed: int,
) -> list[dict[str, Any]]:
    found = score.compare(baseline, system, references, **settings, samples=samples, seed=seed)
    return [one.to_dict() for one in found]


def _copies(test: HeldOut, texts: Sequence[str]) -> int:
    """Return how many translations are their source, or nearly, and should not be."""
    rows = zip(test.sources, texts, test.references, strict=True)
    return sum(bool(text) and text != other and score.similarity(text, source) >= COPY for source, text, other in rows)


def changed(
    test: HeldOut, baseline: Sequence[str], system: Sequence[str], number: int, lowercase: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Return the lines that gained and that lost most, by sentence chrF++; fewer where fewer did."""
    metric = score.metrics(lowercase=lowercase)["chrF++"]
    lines = []
    for place, (before, after, reference) in enumerate(zip(baseline, system, test.references, strict=True)):
        if before != after:
            values = [metric.sentence_score(text, [reference]).score for text in (before, after)]
            lines.append(
                {
                    "line": place + 1,
                    "source": test.sources[place],
                    "reference": reference,
                    "baseline": before,
                    "system": after,
                    "scores": values,
                    "change": values[1] - values[0],
                }
            )
    gained = sorted((one for one in lines if one["change"] > 0), key=lambda one: -one["change"])
    lost = sorted((one for one in lines if one["change"] < 0), key=lambda one: one["change"])
    return {"gained": gained[:number], "lost": lost[:number]}


def by_comet(
    test: HeldOut, systems: Mapping[str, Sequence[str]], checkpoint: Path, python: str, samples: int, seed: int
) -> dict[str, Any]:
    """Return COMET's scores, and the p-value of the difference where there are two systems."""
    found = {name: comet(test.sources, texts, test.references, checkpoint, python) for name, texts in systems.items()}
    document: dict[str, Any] = {
        "signature": found["system"].signature,
        "means": {name: one.mean for name, one in found.items()},
        "scores": {name: one.scores for name, one in found.items()},
    }
    if len(found) == 2:
        both = found["baseline"].scores, found["system"].scores
        document["p_value"] = score.compare_means(*both, samples=samples, seed=seed)
    return document


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print the tables and the lines for a person."""
    names = list(document["signatures"])
    table = Table(title=f"{document['lines']} lines", title_justify="left")
    for column in ("", *names, *(["COMET"] if "comet" in document else []), "empty", "copies"):
        table.add_column(column, justify="left" if not column else "right")
    for row, scores in document["scores"].items():
        cells = [f"{scores[name]:.1f}" for name in names]
        if "comet" in document:
            mean = document["comet"]["means"].get(row)
            cells.append("-" if mean is None else f"{mean:.4f}")
        counts = [str(document[kind][row]) if row in document[kind] else "-" for kind in ("empty", "copies")]
        label = "copying the source" if row == "copy" else f"{row}: {document.get('places', {}).get(row, '')}"
        table.add_row(Text(printable(label)), *cells, *counts)
    console.print(table)
    if "comparison" in document:
        settings = document["settings"]
        _say(console, f"system against baseline, paired bootstrap, {settings['samples']} samples:")
        _show_comparison(document["comparison"], console)
        if "p_value" in document.get("comet", {}):
            _say(console, f"  COMET: p = {document['comet']['p_value']:.3f}")
    for label, found in document.get("slices", {}).items():
        shown = "; ".join(
            f"{row} " + " / ".join(f"{scores[name]:.1f}" for name in names) for row, scores in found["scores"].items()
        )
        _say(console, f"{label}, {found['lines']} lines ({' / '.join(names)}): {shown}")
        if "comparison" in found:
            _show_comparison(found["comparison"], console)
        elif "comparison" in document:
            _say(console, f"  too few lines for a test ({MIN_SLICE} are wanted)")
    for kind, lines in document.get("changed", {}).items():
        for one in lines:
            _say(console, f"\n{kind} {abs(one['change']):.0f} chrF++, line {one['line']}: {one['source']}")
            before, after = one["scores"]
            _say(console, f"  reference  {one['reference']}")
            _say(console, f"  baseline   {one['baseline']}  ({before:.0f})")
            _say(console, f"  system     {one['system']}  ({after:.0f})")
    for name, signature in document["signatures"].items():
        _say(console, f"{name}: {signature}")
    if "comet" in document:
        _say(console, f"COMET: {document['comet']['signature']}")


def _show_comparison(comparison: Sequence[Mapping[str, Any]], console: Console) -> None:
    for one in comparison:
        sure = "significant" if one["p_value"] < 0.05 else "not significant"
        _say(
            console,
            f"  {one['metric']}: {one['baseline']:.1f} → {one['system']:.1f} "
            f"({one['system'] - one['baseline']:+.1f}), ± {one['system_ci']:.1f}, p = {one['p_value']:.3f}, {sure}",
        )


def _say(console: Console, text: str) -> None:
    console.print(Text("\n".join(printable(line) for line in text.split("\n"))), soft_wrap=True)


if __name__ == "__main__":
    main()
