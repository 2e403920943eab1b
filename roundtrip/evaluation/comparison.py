"""Scores of one or two systems on a test set and on slices of it, and the lines on which the two differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from roundtrip.evaluation import metrics
from roundtrip.evaluation.comet import CometScores

# chrF of a hypothesis against its source from which it counts as a copy.
COPY_CHRF = 80.0
# Slices with fewer lines are scored, but two systems are not compared on them.
MIN_SLICE = 50


@dataclass(frozen=True)
class EvaluationSet:
    """Sources and references, line by line.

    Attributes:
        labels: one per line, such as its domain; none at all where there are no slices.
    """

    sources: Sequence[str]
    references: Sequence[str]
    labels: Sequence[str] = ()

    def slices(self) -> dict[str, list[int]]:
        """Return the line indices of each label, labels in alphabetical order."""
        return {
            label: [index for index, other in enumerate(self.labels) if other == label]
            for label in sorted(set(self.labels))
        }


@dataclass(frozen=True)
class EvaluationSettings:
    """How systems are scored and compared.

    Attributes:
        bleu_tokenize: sacreBLEU's name of a tokenizer.
        lowercase: text is lowercased first.
        ter: also the translation edit rate.
        samples, seed: of the bootstrap.
        num_changed: lines to list that gained most, and that lost most.
    """

    bleu_tokenize: str = "13a"
    lowercase: bool = False
    ter: bool = False
    samples: int = 1000
    seed: int = 12345
    num_changed: int = 5

    def metrics(self, references: Sequence[str] | None = None) -> dict[str, Any]:
        return metrics.sacrebleu_metrics(
            self.bleu_tokenize, lowercase=self.lowercase, ter=self.ter, references=references
        )


def evaluate(test: EvaluationSet, systems: Mapping[str, Sequence[str]], settings: EvaluationSettings) -> dict[str, Any]:
    """Return all scores, comparisons and changed lines as one document that JSON can hold.

    Args:
        systems: `system`, and perhaps `baseline`, one translation per line. A row `copy`, the sources themselves, is
            added to the scores.
    """
    rows = {"copy": test.sources, **systems}
    document: dict[str, Any] = {
        "lines": len(test.sources),
        "signatures": metrics.metric_signatures(settings.metrics()),
        **_scores(rows, test.references, settings),
        "empty": {name: sum(not text for text in texts) for name, texts in systems.items()},
        "copies": {name: _num_copies(test, texts) for name, texts in systems.items()},
        "settings": {name: value for name, value in asdict(settings).items() if name != "num_changed"},
    }
    if "baseline" in systems:
        document["changed"] = changed_lines(test, systems["baseline"], systems["system"], settings)
    slices = test.slices()
    if slices:
        document["slices"] = {}
    for label, indices in slices.items():
        rows_of_slice = {name: [texts[index] for index in indices] for name, texts in rows.items()}
        references = [test.references[index] for index in indices]
        scores = _scores(rows_of_slice, references, settings, compare=len(indices) >= MIN_SLICE)
        document["slices"][label] = {"lines": len(indices), **scores}
    return document


def changed_lines(
    test: EvaluationSet, baseline: Sequence[str], system: Sequence[str], settings: EvaluationSettings
) -> dict[str, list[dict[str, Any]]]:
    """Return the lines that gained and that lost most, by sentence chrF++; fewer where fewer changed."""
    chrf = settings.metrics()["chrF++"]
    lines = []
    for index, (before, after, reference) in enumerate(zip(baseline, system, test.references, strict=True)):
        if before != after:
            scores = [chrf.sentence_score(text, [reference]).score for text in (before, after)]
            lines.append(
                {
                    "line": index + 1,
                    "source": test.sources[index],
                    "reference": reference,
                    "baseline": before,
                    "system": after,
                    "scores": scores,
                    "change": scores[1] - scores[0],
                }
            )
    gained = sorted((line for line in lines if line["change"] > 0), key=lambda line: -line["change"])
    lost = sorted((line for line in lines if line["change"] < 0), key=lambda line: line["change"])
    return {"gained": gained[: settings.num_changed], "lost": lost[: settings.num_changed]}


def add_comet(
    document: dict[str, Any], comet: Mapping[str, CometScores], test: EvaluationSet, settings: EvaluationSettings
) -> None:
    """Add COMET's scores to a document of `evaluate`, of its slices too; p-values where there are two systems."""
    scores = {name: system.scores for name, system in comet.items()}
    document["comet"] = {
        "signature": comet["system"].signature,
        "means": {name: system.mean for name, system in comet.items()},
        "scores": scores,
    }
    if "baseline" in scores:
        document["comet"]["p_value"] = _p_value(scores, settings)
    for label, indices in test.slices().items():
        part = document["slices"][label]
        scores_of_slice = {name: [values[index] for index in indices] for name, values in scores.items()}
        part["comet"] = {"means": {name: sum(values) / len(values) for name, values in scores_of_slice.items()}}
        if "comparison" in part:
            part["comet"]["p_value"] = _p_value(scores_of_slice, settings)


def _scores(
    rows: Mapping[str, Sequence[str]], references: Sequence[str], settings: EvaluationSettings, *, compare: bool = True
) -> dict[str, Any]:
    """Return the scores of each row by metric, and the comparison of system and baseline where there are both."""
    part: dict[str, Any] = {
        "scores": {
            row: {
                name: metric.corpus_score(list(texts), [list(references)]).score
                for name, metric in settings.metrics().items()
            }
            for row, texts in rows.items()
        }
    }
    if compare and "baseline" in rows:
        comparisons = metrics.bootstrap_metrics(
            settings.metrics(references), rows["baseline"], rows["system"], samples=settings.samples, seed=settings.seed
        )
        part["comparison"] = [comparison.to_dict() for comparison in comparisons]
    return part


def _num_copies(test: EvaluationSet, texts: Sequence[str]) -> int:
    """Return how many translations are (nearly) their source although the reference is not."""
    return sum(
        bool(text) and text != reference and metrics.sentence_chrf(text, source) >= COPY_CHRF
        for source, text, reference in zip(test.sources, texts, test.references, strict=True)
    )


def _p_value(scores: Mapping[str, Sequence[float]], settings: EvaluationSettings) -> float:
    return metrics.paired_bootstrap_means(
        scores["baseline"], scores["system"], samples=settings.samples, seed=settings.seed
    )
