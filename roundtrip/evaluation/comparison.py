"""Scores of one or two systems on a test set and on slices of it, and the lines on which the two differ most."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from roundtrip.evaluation import metrics

# chrF of a hypothesis against its source from which it counts as a copy.
COPY_CHRF = 80.0
# Slices with fewer lines are scored, but two systems are not compared on them.
MIN_SLICE = 50
# By system, a score of each line.
LineScores = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class EvaluationSet:
    """Sources and references, line by line; labels (such as domains) too, or none where there are no slices."""

    sources: Sequence[str]
    references: Sequence[str]
    labels: Sequence[str] = ()

    def slices(self) -> dict[str, list[int]]:
        """Return the line indices of each label, labels in alphabetical order."""
        slices: dict[str, list[int]] = {label: [] for label in sorted(set(self.labels))}
        for index, label in enumerate(self.labels):
            slices[label].append(index)
        return slices


@dataclass(frozen=True)
class EvaluationSettings:
    """How systems are scored (see `metrics.sacrebleu_metrics`) and compared (by a bootstrap).

    Of the lines that gained most, and of those that lost most, `num_changed` are listed.
    """

    bleu_tokenize: str = "13a"
    lowercase: bool = False
    ter: bool = False
    samples: int = 1000
    seed: int = 12345
    num_changed: int = 5

    def metrics(self, references: Sequence[str] | None = None) -> dict[str, Any]:
        options = {"lowercase": self.lowercase, "ter": self.ter}
        return metrics.sacrebleu_metrics(self.bleu_tokenize, references=references, **options)


def evaluate(test: EvaluationSet, systems: Mapping[str, Sequence[str]], settings: EvaluationSettings) -> dict[str, Any]:
    """Return all scores, comparisons and changed lines as one document that JSON can hold.

    Systems are `system`, and perhaps `baseline`; a row `copy`, the sources themselves, is added to the scores.
    """
    rows = {"copy": test.sources, **systems}
    document: dict[str, Any] = {
        **_scores(rows, test.references, settings, compare="baseline" in systems),
        "signatures": metrics.metric_signatures(settings.metrics()),
        "empty": {name: sum(not text for text in texts) for name, texts in systems.items()},
        "copies": {name: _num_copies(test, texts) for name, texts in systems.items()},
        "settings": {name: value for name, value in asdict(settings).items() if name != "num_changed"},
    }
    if "baseline" in systems:
        document["changed"] = changed_lines(test, systems["baseline"], systems["system"], settings)
    if test.labels:
        document["slices"] = {}
    for label, indices in test.slices().items():
        document["slices"][label] = _scores(
            {name: [texts[index] for index in indices] for name, texts in rows.items()},
            [test.references[index] for index in indices],
            settings,
            compare="baseline" in systems and len(indices) >= MIN_SLICE,
        )
    return document


def changed_lines(
    test: EvaluationSet, baseline: Sequence[str], system: Sequence[str], settings: EvaluationSettings
) -> dict[str, list[dict[str, Any]]]:
    """Return the lines that gained and that lost most, by sentence chrF++; fewer where fewer changed."""
    chrf = settings.metrics()["chrF++"]
    lines: list[dict[str, Any]] = []
    for index, (before, after, reference) in enumerate(zip(baseline, system, test.references, strict=True)):
        if before != after:
            scores = [chrf.sentence_score(text, [reference]).score for text in (before, after)]
            texts = {"source": test.sources[index], "reference": reference, "baseline": before, "system": after}
            lines.append({"line": index + 1, **texts, "scores": scores, "change": scores[1] - scores[0]})
    lines.sort(key=lambda line: abs(line["change"]), reverse=True)
    gained, lost = ([line for line in lines if line["change"] * sign > 0] for sign in (1, -1))
    return {"gained": gained[: settings.num_changed], "lost": lost[: settings.num_changed]}


def add_comet(
    document: dict[str, Any], signature: str, scores: LineScores, test: EvaluationSet, settings: EvaluationSettings
) -> None:
    """Add COMET's scores of each line to a document of `evaluate`: means, and p-values where it has a comparison."""
    document["comet"] = {"signature": signature, "scores": scores}
    slices = [(document["slices"][label], indices) for label, indices in test.slices().items()]
    for part, indices in [(document, list(range(len(test.sources)))), *slices]:
        chosen = {name: [values[index] for index in indices] for name, values in scores.items()}
        comet = part.setdefault("comet", {})
        comet["means"] = {name: sum(values) / len(values) for name, values in chosen.items()}
        if "comparison" in part:
            pair = chosen["baseline"], chosen["system"]
            comet["p_value"] = metrics.paired_bootstrap_means(*pair, samples=settings.samples, seed=settings.seed)


def _scores(
    rows: Mapping[str, Sequence[str]], references: Sequence[str], settings: EvaluationSettings, *, compare: bool
) -> dict[str, Any]:
    """Return the scores of each row by metric, and the comparison of system and baseline."""
    scored: dict[str, dict[str, float]] = {}
    for row, texts in rows.items():
        scores = {name: metric.corpus_score(texts, [references]) for name, metric in settings.metrics().items()}
        scored[row] = {name: score.score for name, score in scores.items()}
    part: dict[str, Any] = {"lines": len(references), "scores": scored}
    if compare:
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
