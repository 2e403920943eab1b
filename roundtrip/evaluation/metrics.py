"""How good translations are: sacreBLEU's BLEU and chrF++ with their signatures, and paired bootstrap."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest
from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
from sacrebleu.utils import SACREBLEU_DIR

from roundtrip.runtime.downloads import is_offline
from roundtrip.runtime.errors import RecipeError


@dataclass(frozen=True)
class Scores:
    """Corpus scores of one system in one direction, 0 to 100, higher is better."""

    bleu: float
    chrf: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def _metrics(bleu_tokenize: str) -> tuple[Any, Any]:
    found = metrics(bleu_tokenize)
    return found["BLEU"], found["chrF++"]


def metrics(
    bleu_tokenize: str = "13a",
    *,
    lowercase: bool = False,
    ter: bool = False,
    references: list[list[str]] | None = None,
) -> dict[str, Any]:
    """Return sacreBLEU's metrics by their usual names; chrF++ is chrF with word bigrams (Popović 2017).

    Args:
        lowercase: text is lowercased first, as many older papers have it; the signature says so.
        ter: also the translation edit rate, of which less is better.
        references: cached in the metrics.
    """
    found = {
        "BLEU": BLEU(tokenize=bleu_tokenize, lowercase=lowercase, references=references),
        "chrF++": CHRF(word_order=2, lowercase=lowercase, references=references),
    }
    return found | ({"TER": TER(references=references, case_sensitive=not lowercase)} if ter else {})


def corpus_scores(hypotheses: Sequence[str], references: Sequence[str], bleu_tokenize: str = "13a") -> Scores:
    """Score a system. Empty hypotheses count as written: they match nothing."""
    bleu, chrf = _metrics(bleu_tokenize)
    return Scores(
        bleu.corpus_score(list(hypotheses), [list(references)]).score,
        chrf.corpus_score(list(hypotheses), [list(references)]).score,
    )


def signatures(bleu_tokenize: str = "13a") -> dict[str, str]:
    """Return sacreBLEU's signatures of both metrics as used here.

    Raises:
        RecipeError: the tokenizer needs a package or a model that is not here.
    """
    named = {}
    if bleu_tokenize in SPM_MODELS and is_offline():
        file = Path(SACREBLEU_DIR) / "models" / Path(SPM_MODELS[bleu_tokenize]["url"]).name
        if not file.exists():
            raise RecipeError(
                f"sacreBLEU would fetch its tokenizer '{bleu_tokenize}', and we are offline",
                place="evaluation.bleu_tokenize",
                cure=f"run once with a network, or put the model into {file}",
            )
    try:
        for name, metric in zip(("bleu", "chrf"), _metrics(bleu_tokenize), strict=True):
            metric.corpus_score(["a"], [["a"]])
            named[name] = str(metric.get_signature())
    except (RuntimeError, ImportError, OSError) as error:
        raise RecipeError(
            f"sacreBLEU's tokenizer '{bleu_tokenize}' cannot be used: {str(error).strip().splitlines()[0]}",
            place="evaluation.bleu_tokenize",
            cure="install what it names, or use 'char' for languages without spaces",
        ) from error
    return named


def sentence_chrf(a: str, b: str) -> float:
    """Return the chrF of one text against another, 0 to 100."""
    return float(_SENTENCE_CHRF.sentence_score(a, [b]).score)


_SENTENCE_CHRF = CHRF()


@dataclass(frozen=True)
class Comparison:
    """One system against a baseline, by paired bootstrap resampling (Koehn 2004) in one metric.

    Attributes:
        baseline, system: scores on the whole test set.
        baseline_ci, system_ci: half widths of the 95 % confidence intervals.
        p_value: chance of a difference at least this large if the two were equally good.
    """

    metric: str
    baseline: float
    baseline_ci: float
    system: float
    system_ci: float
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def paired_bootstrap(
    baseline: Sequence[str],
    system: Sequence[str],
    references: Sequence[str],
    *,
    bleu_tokenize: str = "13a",
    lowercase: bool = False,
    ter: bool = False,
    samples: int = 1000,
    seed: int = 12345,
) -> list[Comparison]:
    """Compare two systems on the same lines, in the metrics of `metrics`."""
    every = metrics(bleu_tokenize, lowercase=lowercase, ter=ter, references=[list(references)])
    with _bootstrap_seed(seed):
        _, results = PairedTest(
            [("baseline", list(baseline)), ("system", list(system))],
            every,
            None,
            test_type="bs",
            n_samples=samples,
        )()
    found = []
    # Results stand under sacreBLEU's own names (chrF2++ is chrF++), in the order of the metrics.
    pairs = [value for key, value in results.items() if key != "System"]
    for name, (first, second) in zip(every, pairs, strict=True):
        # Of no difference at all sacreBLEU would say that it is significant, also of lines that differ in what a metric
        # does not see (case where it is lowercased, spaces).
        p_value = 1.0 if first.score == second.score else second.p_value
        numbers = (first.score, first.ci, second.score, second.ci, p_value)
        found.append(Comparison(name, *map(float, numbers)))
    return found


def paired_bootstrap_means(
    baseline: Sequence[float], system: Sequence[float], *, samples: int = 1000, seed: int = 12345
) -> float:
    """Return the p-value of a difference of means of line scores, by paired bootstrap resampling (Koehn 2004).

    The share of resampled differences, shifted to a mean of zero, that are at least as far from it: two-sided, and a
    little more careful than sacreBLEU's rule, which is that of `compare`.
    """
    differences = np.asarray(system) - np.asarray(baseline)
    found = abs(differences.mean())
    chosen = np.random.default_rng(seed).integers(len(differences), size=(samples, len(differences)))
    resampled = differences[chosen].mean(axis=1)
    return float((np.sum(np.abs(resampled - resampled.mean()) >= found) + 1) / (samples + 1))


@contextmanager
def _bootstrap_seed(seed: int) -> Iterator[None]:
    """SacreBLEU takes the seed of its bootstrap from the environment only."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before
