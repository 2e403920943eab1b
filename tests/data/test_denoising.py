"""Disturbed copies of a line, the sources of denoising examples."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from roundtrip.data.denoising import MOVED, add_noise
from tests.conftest import toy_pairs


@given(
    text=st.text(st.sampled_from("ab cd"), min_size=1).filter(lambda text: len(text.split()) > 1),
    seed=st.integers(0, 999),
)
def test_noise_adds_no_word_and_moves_none_too_far(text: str, seed: int) -> None:
    words = [f"{number}-{word}" for number, word in enumerate(text.split())]
    noisy = add_noise(" ".join(words), seed).split(" ")
    assert noisy and not Counter(noisy) - Counter(words)
    kept = sorted(words.index(word) for word in noisy)
    before = [kept.index(words.index(word)) for word in noisy]
    assert all(earlier - later <= MOVED for i, earlier in enumerate(before) for later in before[i:])
    assert noisy == add_noise(" ".join(words), seed).split(" ")


def test_noise_disturbs_most_sentences_and_text_without_spaces() -> None:
    sentences = [en for en, _ in toy_pairs()]
    assert sum(add_noise(text, seed) != text for seed, text in enumerate(sentences)) > 0.9 * len(sentences)
    assert add_noise("我们今天去公园玩得很开心", 1) != "我们今天去公园玩得很开心"


def test_at_least_one_word_stays() -> None:
    assert {add_noise("la casa", seed) for seed in range(500)} == {"la casa", "casa la", "la", "casa"}
