"""Scores, comparisons and the judge: values against sacreBLEU itself, and each reason against a hypothesis."""

from __future__ import annotations

import json
import os

import pytest
import sacrebleu

from roundtrip.backtranslation.filtering import filter_candidates, rejection_reason
from roundtrip.evaluation.metrics import corpus_scores, paired_bootstrap, sentence_chrf, signatures
from roundtrip.recipe.schema import CandidateFilter
from roundtrip.runtime.errors import RecipeError

REFERENCES = [f"The {n} small houses stand in a row near the river ." for n in range(40)]
GOOD = [text.replace("near", "by") for text in REFERENCES]
POOR = [text.replace("small houses stand", "house stands small") for text in REFERENCES]


def test_scores_are_those_of_sacrebleu() -> None:
    scores = corpus_scores(POOR, REFERENCES)
    assert scores.bleu == sacrebleu.corpus_bleu(POOR, [REFERENCES]).score
    assert scores.chrf == sacrebleu.corpus_chrf(POOR, [REFERENCES], word_order=2).score
    assert corpus_scores(REFERENCES, REFERENCES).bleu == pytest.approx(100.0)


def test_empty_hypotheses_score_nothing_and_do_not_crash() -> None:
    assert corpus_scores([""] * 40, REFERENCES).to_dict() == {"bleu": 0.0, "chrf": 0.0}


def test_the_tokenizer_is_used_and_named() -> None:
    assert corpus_scores(POOR, REFERENCES, "char").bleu != corpus_scores(POOR, REFERENCES, "13a").bleu
    assert "tok:char" in signatures("char")["bleu"]
    assert "nw:2" in signatures()["chrf"] and sacrebleu.__version__ in signatures()["chrf"]


def test_a_tokenizer_that_needs_a_package_says_so() -> None:
    with pytest.raises(RecipeError, match=r"score\.bleu_tokenize: sacreBLEU's tokenizer 'ko-mecab' cannot be used"):
        signatures("ko-mecab")


def test_a_clear_difference_is_significant_and_none_is_not() -> None:
    environment = dict(os.environ)
    for one in paired_bootstrap(POOR, GOOD, REFERENCES, samples=200):
        assert one.system > one.baseline and one.p_value < 0.05
        assert one.system == pytest.approx(
            {"BLEU": corpus_scores(GOOD, REFERENCES).bleu, "chrF++": corpus_scores(GOOD, REFERENCES).chrf}[one.metric]
        )
        json.dumps(one.to_dict())
    mixed = [a if number % 2 else b for number, (a, b) in enumerate(zip(GOOD, POOR, strict=True))]
    other = [b if number % 2 else a for number, (a, b) in enumerate(zip(GOOD, POOR, strict=True))]
    assert all(one.p_value > 0.05 for one in paired_bootstrap(mixed, other, REFERENCES, samples=200))
    assert dict(os.environ) == environment


def test_comparisons_follow_their_seed() -> None:
    mixed = [a if number % 3 else b for number, (a, b) in enumerate(zip(GOOD, POOR, strict=True))]
    one, same, other = (paired_bootstrap(POOR, mixed, REFERENCES, samples=100, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    ("text", "target", "finished", "reason"),
    [
        ("The house is red", "La casa es roja", True, None),
        ("", "La casa es roja", True, "empty"),
        ("The house is red", "La casa es roja", False, "unfinished"),
        ("The house\nis red", "La casa es roja", True, "several lines"),
        ("The house is red and big and old and new", "La casa es roja", True, "length ratio"),
        ("The", "La casa es roja y muy grande", True, "length ratio"),
        ("La casa es roja", "La casa es roja", True, "copy"),
        ("LA CASA ES ROJA", "La casa es roja", True, "copy"),
        ("La casa es roja.", "La casa es roja", True, "copy"),
    ],
)
def test_each_reason(text: str, target: str, finished: bool, reason: str | None) -> None:
    assert rejection_reason(text, target, finished, CandidateFilter()) == reason


def test_rejections_are_counted_and_the_rest_kept_in_order() -> None:
    texts = ["A cat", "", "Un perro", "A dog", "long " * 20]
    targets = ["Un gato", "Una mesa", "Un perro", "Un perro", "Una flor"]
    judged = filter_candidates(texts, [True, True, True, False, True], targets, CandidateFilter())
    assert judged.pairs == [("A cat", "Un gato")] and judged.places == [0]
    assert judged.rejected == {"copy": 1, "empty": 1, "length ratio": 1, "unfinished": 1}


def test_limits_of_the_judge_are_used() -> None:
    assert rejection_reason("a" * 40, "b" * 15, True, CandidateFilter(max_length_ratio=1.9)) == "length ratio"
    assert rejection_reason("ab cd" * 8, "b" * 15, True, CandidateFilter(max_length_ratio=2.1)) is None


def test_the_usual_ratio_of_a_pair_of_languages_is_no_fault() -> None:
    english, chinese = "The house near the river is old and red.", "河边的房子又旧又红。"
    assert rejection_reason(english, chinese, True, CandidateFilter()) == "length ratio"
    assert rejection_reason(english, chinese, True, CandidateFilter(), usual_ratio=4.0) is None


def test_similarity_is_chrf() -> None:
    assert sentence_chrf("La casa", "La casa") == pytest.approx(100.0)
    assert sentence_chrf("xyz", "La casa") == 0.0
