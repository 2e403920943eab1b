"""Corpus scores, signatures and paired bootstrap, against sacreBLEU itself."""

from __future__ import annotations

import json
import os

import pytest
import sacrebleu

from roundtrip.evaluation.metrics import corpus_scores, paired_bootstrap, sentence_chrf, signatures
from roundtrip.runtime.errors import RecipeError, TextError

REFERENCES = [f"The {n} small houses stand in a row near the river ." for n in range(40)]
GOOD = [text.replace("near", "by") for text in REFERENCES]
POOR = [text.replace("small houses stand", "house stands small") for text in REFERENCES]


def test_corpus_scores_equal_sacrebleu() -> None:
    scores = corpus_scores(POOR, REFERENCES)
    assert scores.bleu == sacrebleu.corpus_bleu(POOR, [REFERENCES]).score
    assert scores.chrf == sacrebleu.corpus_chrf(POOR, [REFERENCES], word_order=2).score
    assert corpus_scores(REFERENCES, REFERENCES).bleu == pytest.approx(100.0)


def test_empty_hypotheses_score_zero() -> None:
    assert corpus_scores([""] * 40, REFERENCES).to_dict() == {"bleu": 0.0, "chrf": 0.0}


def test_wrong_number_of_lines_is_refused() -> None:
    with pytest.raises(TextError, match="hypotheses: 39 lines for 40 references"):
        corpus_scores(POOR[1:], REFERENCES)
    with pytest.raises(TextError, match="system: 41 lines for 40 references"):
        paired_bootstrap(POOR, [*GOOD, ""], REFERENCES)
    with pytest.raises(TextError, match="hypotheses: 0 lines"):
        corpus_scores([], [])


def test_bleu_tokenizer_is_used_and_in_the_signature() -> None:
    assert corpus_scores(POOR, REFERENCES, "char").bleu != corpus_scores(POOR, REFERENCES, "13a").bleu
    assert "tok:char" in signatures("char")["bleu"]
    assert "nw:2" in signatures()["chrf"] and sacrebleu.__version__ in signatures()["chrf"]


def test_unavailable_bleu_tokenizer_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"--bleu-tokenize: sacreBLEU's tokenizer 'ko-mecab' cannot be used"):
        signatures("ko-mecab")


def test_paired_bootstrap_significance() -> None:
    environment = dict(os.environ)
    scores = corpus_scores(GOOD, REFERENCES)
    for result in paired_bootstrap(POOR, GOOD, REFERENCES, samples=200):
        assert result.system > result.baseline and result.p_value < 0.05
        assert result.system == pytest.approx({"BLEU": scores.bleu, "chrF++": scores.chrf}[result.metric])
        json.dumps(result.to_dict())
    mixed = [a if number % 2 else b for number, (a, b) in enumerate(zip(GOOD, POOR, strict=True))]
    other = [b if number % 2 else a for number, (a, b) in enumerate(zip(GOOD, POOR, strict=True))]
    assert all(result.p_value > 0.05 for result in paired_bootstrap(mixed, other, REFERENCES, samples=200))
    assert dict(os.environ) == environment


def test_paired_bootstrap_depends_on_seed_only() -> None:
    mixed = [a if number % 3 else b for number, (a, b) in enumerate(zip(GOOD, POOR, strict=True))]
    first, same, other = (paired_bootstrap(POOR, mixed, REFERENCES, samples=100, seed=seed) for seed in (1, 1, 2))
    assert first == same != other


def test_sentence_chrf_range() -> None:
    assert sentence_chrf("La casa", "La casa") == pytest.approx(100.0)
    assert sentence_chrf("xyz", "La casa") == 0.0
