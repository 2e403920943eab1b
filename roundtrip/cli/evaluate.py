"""python -m roundtrip evaluate: scores one system or two on any test file, and shows where they differ most."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from roundtrip.backtranslation.run_folder import BEST, versions
from roundtrip.cli.app import run_cli
from roundtrip.cli.systems import (
    EvaluationSet,
    language,
    own_tokenizer,
    read_lines,
    read_test,
    same_length,
    translations,
)
from roundtrip.data.language_codes import bleu_tokenizer
from roundtrip.evaluation import comet, metrics
from roundtrip.evaluation.comet import CometScores
from roundtrip.evaluation.tables import MIN_SLICE, show
from roundtrip.recipe.schema import BleuTokenizer
from roundtrip.runtime.atomic_io import write_text
from roundtrip.runtime.errors import RecipeError, TextError

# chrF of a hypothesis against its source from which it counts as a copy.
COPY = 80.0


def main() -> None:
    """The door."""
    parser = argparse.ArgumentParser(
        prog="python -m roundtrip evaluate",
        description="Score translations on any test file: BLEU and chrF++ with signatures, paired bootstrap against a "
        "baseline, the lines that changed most, domains. A system is a file of translations, or the folder of a run or "
        "of an exported direction, which is asked.",
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
    run_cli(_work, parser)


def _work(arguments: argparse.Namespace) -> None:
    _check(arguments)
    test = read_test(arguments.source, arguments.reference, arguments.test)
    labels = read_lines(arguments.slices) if arguments.slices else []
    if arguments.slices:
        same_length(labels, test.sources, arguments.slices, "the test set has")
        if "" in labels:
            raise TextError(
                "a line without a label", place=f"{arguments.slices}:{labels.index('') + 1}", cure="give each line one"
            )
    stages = {"system": arguments.stage, "baseline": arguments.baseline_stage or arguments.stage}
    given = {"baseline": arguments.baseline, "system": arguments.system}
    places: dict[str, Path] = {name: place for name, place in given.items() if place is not None}
    to = language(places.values(), arguments.to)
    tokenizer = _tokenizer(arguments.bleu_tokenize or own_tokenizer(places.values(), to), to)
    if arguments.comet:
        comet.check(arguments.comet, arguments.comet_python)
    systems: dict[str, list[str]] = {}
    cut: dict[str, list[str]] = {name: [] for name in places}
    for name, place in places.items():
        systems[name] = translations(place, test, to, stages[name], arguments.device, cut[name])
    if len(systems) == 2 and systems["baseline"] == systems["system"]:
        raise TextError(
            "system and baseline are the same, line by line", place="--baseline", cure="name two systems that differ"
        )
    settings = {"bleu_tokenize": tokenizer, "lowercase": arguments.lowercase, "ter": arguments.ter}
    document = evaluate(test, systems, labels, settings, arguments.samples, arguments.seed, arguments.changed)
    document["places"] = {name: str(place) for name, place in places.items()}
    document["cut"] = {name: len(lines) for name, lines in cut.items()}
    if arguments.comet:
        found = comet.comet(
            test.sources,
            {"copy": test.sources, **systems},
            test.references,
            arguments.comet,
            arguments.comet_python,
            arguments.device,
        )
        add_comet(document, found, labels, arguments.samples, arguments.seed)
    document["command"] = {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()
    }
    document["versions"] = versions()
    if arguments.json:
        write_text(arguments.json, json.dumps(document, ensure_ascii=False, indent=1) + "\n")
    show(document, Console())


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be, before any time is spent."""
    for name, least in (("samples", 10), ("changed", 0)):
        if getattr(arguments, name) < least:
            raise RecipeError(
                f"{getattr(arguments, name)}: at least {least} is wanted", place=f"--{name}", cure="raise it"
            )
    if (arguments.comet is None) != (arguments.comet_python is None):
        raise RecipeError("one goes with the other", place="--comet, --comet-python", cure="give both or neither")
    target = arguments.json
    if target and target.is_dir():
        raise RecipeError("is a folder", place=f"--json {target}", cure="name a file")
    read_from = ("source", "reference", "test", "system", "baseline", "slices", "comet")
    given = [place for place in (getattr(arguments, name) for name in read_from) if place is not None]
    if target and target.exists() and any(place.exists() and place.samefile(target) for place in given):
        raise RecipeError("would be written over, and is read", place=f"--json {target}", cure="name another file")


def _tokenizer(named: str | None, to: str | None) -> str:
    """Return BLEU's tokenizer, tried once."""
    tokenizer = named or (bleu_tokenizer(to) if to else "13a")
    try:
        metrics.signatures(tokenizer)
    except RecipeError as error:
        raise RecipeError(error.problem, place="--bleu-tokenize", cure=error.cure) from error
    return tokenizer


def evaluate(
    test: EvaluationSet,
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
    every = metrics.metrics(**settings)
    return {name: metric.corpus_score(list(texts), [list(references)]).score for name, metric in every.items()}


def _signatures(settings: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, metric in metrics.metrics(**settings).items():
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
    found = metrics.paired_bootstrap(baseline, system, references, **settings, samples=samples, seed=seed)
    return [one.to_dict() for one in found]


def _copies(test: EvaluationSet, texts: Sequence[str]) -> int:
    """Return how many translations are their source, or nearly, and should not be."""
    rows = zip(test.sources, texts, test.references, strict=True)
    return sum(
        bool(text) and text != other and metrics.sentence_chrf(text, source) >= COPY for source, text, other in rows
    )


def changed(
    test: EvaluationSet, baseline: Sequence[str], system: Sequence[str], number: int, lowercase: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Return the lines that gained and that lost most, by sentence chrF++; fewer where fewer did."""
    metric = metrics.metrics(lowercase=lowercase)["chrF++"]
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


def add_comet(
    document: dict[str, Any], found: Mapping[str, CometScores], labels: Sequence[str], samples: int, seed: int
) -> None:
    """Put COMET's scores into the document, of the slices too; p-values where there are two systems."""
    every = {name: one.scores for name, one in found.items()}
    document["comet"] = {
        "signature": found["system"].signature,
        "means": {name: one.mean for name, one in found.items()},
        "scores": every,
    }
    if "baseline" in every:
        p_value = metrics.paired_bootstrap_means(every["baseline"], every["system"], samples=samples, seed=seed)
        document["comet"]["p_value"] = p_value
    for label, part in document.get("slices", {}).items():
        at = [place for place, one in enumerate(labels) if one == label]
        own = {name: [scores[place] for place in at] for name, scores in every.items()}
        part["comet"] = {"means": {name: sum(scores) / len(scores) for name, scores in own.items()}}
        if "comparison" in part:
            p_value = metrics.paired_bootstrap_means(own["baseline"], own["system"], samples=samples, seed=seed)
            part["comet"]["p_value"] = p_value
