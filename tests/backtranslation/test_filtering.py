"""Filtering of candidates: each reason for a rejection, and the limits of the recipe."""

from __future__ import annotations

import pytest

from roundtrip.backtranslation.filtering import filter_candidates, rejection_reason
from roundtrip.recipe.schema import CandidateFilter


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
def test_rejection_reason(text: str, target: str, finished: bool, reason: str | None) -> None:
    assert rejection_reason(text, target, finished, CandidateFilter()) == reason


def test_filter_candidates_counts_rejections_and_keeps_order() -> None:
    texts = ["A cat", "", "Un perro", "A dog", "long " * 20]
    targets = ["Un gato", "Una mesa", "Un perro", "Un perro", "Una flor"]
    filtered = filter_candidates(texts, [True, True, True, False, True], targets, CandidateFilter())
    assert filtered.pairs == [("A cat", "Un gato")] and filtered.places == [0]
    assert filtered.rejected == {"copy": 1, "empty": 1, "length ratio": 1, "unfinished": 1}


def test_filter_limits_come_from_the_recipe() -> None:
    assert rejection_reason("La casa es roja.", "La casa es roja", True, CandidateFilter(max_copy_chrf=100.0)) is None
    assert rejection_reason("a" * 40, "b" * 15, True, CandidateFilter(max_length_ratio=1.9)) == "length ratio"
    assert rejection_reason("ab cd" * 8, "b" * 15, True, CandidateFilter(max_length_ratio=2.1)) is None


def test_usual_length_ratio_of_the_languages_is_accepted() -> None:
    english, chinese = "The house near the river is old and red.", "河边的房子又旧又红。"
    assert rejection_reason(english, chinese, True, CandidateFilter()) == "length ratio"
    assert rejection_reason(english, chinese, True, CandidateFilter(), usual_ratio=4.0) is None
