"""Filtering of synthetic sources: every reason, rules of one's own, and the round trip."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import roundtrip
from roundtrip.backtranslation.filtering import (
    Candidate,
    FilteredCandidates,
    filter_candidates,
    num_repeats,
    rejection_reason,
    round_trip_chrf,
)
from roundtrip.data.language_id import LanguageIdentifier
from roundtrip.recipe.schema import CandidateFilter
from roundtrip.runtime.errors import RecipeError
from tests.conftest import WriteRecipe

ANY_LENGTH = CandidateFilter(max_length_ratio=100.0)


@pytest.mark.parametrize(
    ("source", "target", "finished", "reason"),
    [
        ("", "la casa", True, "empty"),
        ("the house", "la casa", False, "unfinished"),
        ("the\nhouse", "la casa", True, "multiple_lines"),
        ("the house " * 9, "la casa", True, "length_ratio"),
        ("La Casa", "la casa", True, "copy"),
        ("the house is red", "la casa es roja", True, None),
        ("the house of %s is red", "la casa de %(name)s es roja", True, "placeholders"),
        ("the house is red", "la casa <b>roja</b>", True, "placeholders"),
        ("the <b>red</b> house of %(name)s", "la casa <b>roja</b> de %(name)s", True, None),
    ],
)
def test_each_reason(source: str, target: str, finished: bool, reason: str | None) -> None:
    assert rejection_reason(Candidate(0, source, target, finished), CandidateFilter()) == reason


def test_rejections_are_counted_and_the_kept_stay_in_order() -> None:
    sources = ["", "the table", "la flor", "the moon is old"]
    targets = ["la casa", "la mesa", "la flor", "la luna es vieja"]
    candidates = [Candidate(i, *pair) for i, pair in enumerate(zip(sources, targets, strict=True))]
    filtered = filter_candidates(candidates)
    assert [candidate.line for candidate in filtered.kept] == [1, 3]
    assert filtered.rejected == {"empty": 1, "copy": 1}


def test_a_rule_of_ones_own_is_asked_after_the_built_in_ones() -> None:
    asked: list[str] = []

    def rule(candidate: Candidate) -> str | None:
        asked.append(candidate.source)
        return "too_red" if "red" in candidate.source else None

    candidates = [Candidate(0, "", "x"), Candidate(1, "the red door", "la puerta"), Candidate(2, "a cat", "un gato")]
    filtered = filter_candidates(candidates, ANY_LENGTH, filters=[rule])
    assert filtered.rejected == {"empty": 1, "too_red": 1} and [one.line for one in filtered.kept] == [2]
    assert asked == ["the red door", "a cat"]


def test_the_usual_length_ratio_of_a_language_pair_counts() -> None:
    candidate = Candidate(0, "我们今天去公园", "We are going to the park today, all of us together")
    assert rejection_reason(candidate, CandidateFilter(), 1.0) == "length_ratio"
    assert rejection_reason(candidate, CandidateFilter(), 0.25) is None


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("", 1), ("a", 1), ("a a", 2), ("the cat sat on the mat", 1), ("no no no no", 4), ("go on, go on, go on", 2),
        ("a man and a woman and a man and a woman", 1), ("我我我我", 4), ("ab" * 5, 5), ("a b c d e f g h " * 3, 3),
    ],
)  # fmt: skip
def test_num_repeats(text: str, times: int) -> None:
    assert num_repeats(text) == times


@given(phrase=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True), times=st.integers(1, 6))
def test_num_repeats_finds_any_phrase(phrase: list[str], times: int) -> None:
    assert num_repeats(" ".join(["x", *phrase * times, "y"])) == times


def test_repetition_is_rejected_unless_the_target_repeats_too() -> None:
    assert rejection_reason(Candidate(0, "no no no no no", "eso no"), ANY_LENGTH) == "repetition"
    assert rejection_reason(Candidate(0, "no no no no", "eso no"), ANY_LENGTH) is None
    assert rejection_reason(Candidate(0, "no no no no no", "nunca " * 5), ANY_LENGTH) is None


def test_rejecting_more_of_the_kept_adds_to_the_counts() -> None:
    kept = [Candidate(i, source, target) for i, (source, target) in enumerate(["ax", "by", "cz"])]
    filtered = FilteredCandidates(kept, Counter(empty=1))
    assert filtered.without([False, True, True], "low") == FilteredCandidates(kept[:1], Counter(empty=1, low=2))
    assert filtered.without([False] * 3, "low") == filtered


def test_the_other_language_is_recognized_and_short_lines_are_not_classified() -> None:
    identifier = LanguageIdentifier(("en", "fr"))
    french = "Deux hommes sont assis sur un banc dans le parc, près d'un arbre."
    english = "Two men are sitting on a bench in the park, next to a tree."
    assert identifier.is_other(french, "en") and not identifier.is_other(french, "fr")
    assert identifier.is_other(english, "fr") and not identifier.is_other(english, "en")
    assert not identifier.is_other("Bonjour", "en")
    assert identifier.share_right([english, french, "short"], "en") == (0.5, 2)


@pytest.mark.parametrize(("languages", "match"), [(("en", "en-GB"), "not distinguish"), (("en", "tlh"), "know 'tlh'")])
def test_languages_that_cannot_be_told_apart_are_refused(languages: tuple[str, str], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        LanguageIdentifier(languages)


def test_a_missing_language_identifier_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(RecipeError, match=r"pip install 'roundtrip-mt\[langid\]'"):
        LanguageIdentifier(("en", "es"))


def test_a_source_too_long_for_the_model_scores_zero_in_the_round_trip(write_recipe: WriteRecipe) -> None:
    """The model has 128 positions; it could not train on such a row either."""
    forward = roundtrip.load_translators(roundtrip.load_recipe(str(write_recipe())))["en-es"]
    candidates = [Candidate(0, "word " * 200, "la casa"), Candidate(1, "I see the house", "Veo la casa")]
    scores = round_trip_chrf(forward, candidates)
    assert scores[0] == 0.0 and scores[1] > 0.0
