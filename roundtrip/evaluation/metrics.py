"""Translation quality: sacreBLEU's BLEU, chrF++ and TER with their signatures, and paired bootstrap resampling."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest
from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
from sacrebleu.utils import SACREBLEU_DIR

from roundtrip.runtime.downloads import is_offline
from roundtrip.runtime.errors import RecipeError, TextError, first_line, quantity

_SENTENCE_CHRF = CHRF()


@dataclass(frozen=True)
class Scores:
    """Corpus scores of one system in one direction, 0 to 100, higher is better."""

    bleu: float
    chrf: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """One system against a baseline, by paired bootstrap resampling, in one metric: scores on the whole test set."""

    metric: str  # `BLEU`, `chrF++` or `TER`
    baseline: float  # 0 to 100; so is system
    baseline_ci: float  # half width of the 95 % confidence interval; so is system_ci
    system: float
    system_ci: float
    p_value: float  # probability of a difference at least this large if the two were equally good

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sacrebleu_metrics(
    bleu_tokenize: str = "13a", *, lowercase: bool = False, ter: bool = False, references: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return sacreBLEU's metrics by their usual names; chrF++ is chrF with word bigrams (Popović 2017).

    Text may be lowercased first, as in many older papers. Of `ter`, the translation edit rate (Snover et al. 2006),
    less is better. The references, which a bootstrap needs, are cached in the metrics.
    """
    cached = None if references is None else [list(references)]
    metrics = {
        "BLEU": BLEU(tokenize=bleu_tokenize, lowercase=lowercase, references=cached),
        "chrF++": CHRF(word_order=2, lowercase=lowercase, references=cached),
    }
    return metrics | ({"TER": TER(references=cached, case_sensitive=not lowercase)} if ter else {})


def corpus_scores(hypotheses: Sequence[str], references: Sequence[str], bleu_tokenize: str = "13a") -> Scores:
    """Return BLEU (Papineni et al. 2002) and chrF++ (Popović 2017) of a system, as sacreBLEU (Post 2018) computes them.

    Args:
        hypotheses: one translation per line; an empty one counts as a translation that matches nothing.
        references: one reference per line.
        bleu_tokenize: sacreBLEU's name of a tokenizer: `13a`, `char`, `zh`, `intl`, ...

    Returns:
        Both scores, from 0 to 100.

    Raises:
        TextError: there are no lines, or not as many hypotheses as references.

    Example:
        >>> scores = corpus_scores(["Save the file.", "Close"], ["Save the file.", "Close it"])
        >>> round(scores.chrf, 1), round(scores.bleu, 1)
        (86.2, 81.9)
    """
    _check_lengths(references, hypotheses=hypotheses)
    metrics = sacrebleu_metrics(bleu_tokenize).values()
    return Scores(*(metric.corpus_score(list(hypotheses), [list(references)]).score for metric in metrics))


def sentence_chrf(hypothesis: str, reference: str) -> float:
    """Return the chrF (Popović 2015) of one text against another, 0 to 100."""
    return float(_SENTENCE_CHRF.sentence_score(hypothesis, [reference]).score)


def signatures(bleu_tokenize: str = "13a") -> dict[str, str]:
    """Return sacreBLEU's signatures of both metrics of `corpus_scores`, or refuse a tokenizer that lacks its model."""
    if bleu_tokenize in SPM_MODELS and is_offline():
        file = Path(SACREBLEU_DIR) / "models" / Path(SPM_MODELS[bleu_tokenize]["url"]).name
        if not file.exists():
            problem = f"sacreBLEU would download its tokenizer '{bleu_tokenize}', and network access is off"
            cure = f"run once with a network, or put the model into {file}"
            raise RecipeError(problem, place="--bleu-tokenize", cure=cure)
    try:
        bleu, chrf = metric_signatures(sacrebleu_metrics(bleu_tokenize)).values()
    except (RuntimeError, ImportError, OSError) as error:
        problem = f"sacreBLEU's tokenizer '{bleu_tokenize}' cannot be used: {first_line(error)}"
        cure = "install what it names, or use 'char' for languages without spaces"
        raise RecipeError(problem, place="--bleu-tokenize", cure=cure) from error
    return {"bleu": bleu, "chrf": chrf}


def metric_signatures(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the signature of each metric; sacreBLEU knows it only after a first score."""
    for metric in metrics.values():
        metric.corpus_score(["a"], [["a"]])
    return {name: str(metric.get_signature()) for name, metric in metrics.items()}


def paired_bootstrap(
    baseline: Sequence[str],
    system: Sequence[str],
    references: Sequence[str],
    *,
    bleu_tokenize: str = "13a",
    samples: int = 1000,
    seed: int = 12345,
) -> list[Comparison]:
    """Compare two systems on the same lines by paired bootstrap resampling (Koehn 2004), as sacreBLEU implements it.

    Args:
        baseline, system: translations, one per line.
        references: one reference per line.
        bleu_tokenize: see `corpus_scores`.
        samples: resampled test sets; the smallest possible p-value is 1 / (samples + 1).
        seed: of the resampling.

    Returns:
        One comparison each in BLEU and chrF++.

    Raises:
        TextError: there are no lines, or not as many translations as references.

    Example:
        >>> references = ["Save the file.", "Close the window."]
        >>> bleu, chrf = paired_bootstrap(["Save file", "Close"], references, references, samples=20)
        >>> chrf.metric, chrf.system, chrf.p_value < 0.05
        ('chrF++', 100.0, True)
    """
    _check_lengths(references, baseline=baseline, system=system)
    metrics = sacrebleu_metrics(bleu_tokenize, references=references)
    return bootstrap_metrics(metrics, baseline, system, samples=samples, seed=seed)


def bootstrap_metrics(
    metrics: Mapping[str, Any], baseline: Sequence[str], system: Sequence[str], *, samples: int, seed: int
) -> list[Comparison]:
    """Compare two systems in metrics that hold their references; see `paired_bootstrap`."""
    systems = [("baseline", list(baseline)), ("system", list(system))]
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(seed)  # sacreBLEU reads it from there only
    try:
        _, results = PairedTest(systems, metrics, None, test_type="bs", n_samples=samples)()
    finally:
        del os.environ["SACREBLEU_SEED"]
        if before is not None:
            os.environ["SACREBLEU_SEED"] = before
    results.pop("System")
    comparisons = []
    # sacreBLEU has its own names (chrF2++ is chrF++) and keeps the order of the metrics.
    for name, (first, second) in zip(metrics, results.values(), strict=True):
        # sacreBLEU calls it significant when there is no difference at all, also for lines that differ only in what a
        # metric ignores (letter case where it is lowercased, spaces).
        p_value = 1.0 if first.score == second.score else second.p_value
        values = (first.score, first.ci, second.score, second.ci, p_value)
        comparisons.append(Comparison(name, *map(float, values)))
    return comparisons


def paired_bootstrap_means(
    baseline: Sequence[float], system: Sequence[float], *, samples: int = 1000, seed: int = 12345
) -> float:
    """Return the p-value of a difference of means of line scores, by paired bootstrap resampling (Koehn 2004).

    It is the share of resampled differences, shifted to a mean of zero, that are at least as far from it: two-sided,
    and slightly more conservative than sacreBLEU's rule, which `paired_bootstrap` uses.
    """
    differences = np.asarray(system) - np.asarray(baseline)
    chosen = np.random.default_rng(seed).integers(len(differences), size=(samples, len(differences)))
    resampled = differences[chosen].mean(axis=1)
    as_extreme = np.abs(resampled - resampled.mean()) >= abs(differences.mean())
    return float((np.sum(as_extreme) + 1) / (samples + 1))


def _check_lengths(references: Sequence[str], **systems: Sequence[str]) -> None:
    for name, lines in systems.items():
        if len(lines) != len(references) or not lines:
            problem = f"{quantity(len(lines), 'line')} for {quantity(len(references), 'reference')}"
            raise TextError(problem, place=name, cure="give one translation per reference, and at least one")
