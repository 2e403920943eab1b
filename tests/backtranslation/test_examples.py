"""Examples of a phase: which lines and pairs are read, how they are turned and mixed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import roundtrip
from roundtrip.backtranslation import examples
from roundtrip.backtranslation.examples import PARALLEL, REPLAY, SYNTHETIC, Example, Streams
from roundtrip.backtranslation.filtering import Candidate
from roundtrip.data.sampler import Cursor
from roundtrip.recipe.loader import load_recipe
from roundtrip.recipe.plan import Direction, Phase
from roundtrip.recipe.schema import Recipe
from tests.conftest import WriteRecipe

EN_ES = Direction("en", "es")
PAIRS = [(f"en {i}", f"es {i}") for i in range(6)]
CORPORA: Any = SimpleNamespace(
    train=PAIRS, mono={"en": [(f"en line {i}",) for i in range(9)], "es": [(f"es line {i}",) for i in range(5)]}
)


def round_phase(number: int, direction: Direction = EN_ES) -> Phase:
    return Phase(number, f"round-{number}", number, direction, False)


@pytest.fixture
def path(write_recipe: WriteRecipe) -> Path:
    return write_recipe()


@pytest.fixture
def recipe(path: Path) -> Recipe:
    return load_recipe(str(path), ("rounds.monolingual_lines=3", "rounds.denoising_ratio=0.2")).recipe


def test_lines_of_the_target_language_continue_at_the_cursor_and_start_over(recipe: Recipe) -> None:
    streams = Streams(recipe, CORPORA, {})
    first = streams.lines(round_phase(1))
    assert streams.after == {"mono.es": Cursor(0, 3)} and streams.restarted() == ()
    streams = Streams(recipe, CORPORA, streams.after)
    second = streams.lines(round_phase(2))
    assert {*first, *second[:2]} == {line for (line,) in CORPORA.mono["es"]}
    assert streams.after == {"mono.es": Cursor(1, 1)} and streams.restarted() == ("mono.es",)


def test_parallel_pairs_are_turned_to_the_direction(recipe: Recipe) -> None:
    assert examples.parallel_examples([("a", "b")], EN_ES, recipe) == [Example(PARALLEL, "a", "b")]
    assert examples.parallel_examples([("a", "b")], EN_ES.reverse, recipe) == [Example(PARALLEL, "b", "a")]
    pairs = examples.parallel_examples(CORPORA.train, EN_ES.reverse, recipe)
    assert [(pair.target, pair.source) for pair in pairs] == PAIRS


def test_examples_are_mixed_in_order_and_a_new_source_replaces_a_replayed_one(recipe: Recipe) -> None:
    candidates = [Candidate(i, f"source {i}", f"target {i}") for i in range(4)]
    replayed = [Example(REPLAY, "old 1", "target 1"), Example(REPLAY, "old 7", "target 7")]
    streams = Streams(recipe, CORPORA, {})
    mixed = examples.mix(round_phase(1), streams, candidates, replayed)
    # Five synthetic examples, 40 % parallel ones of both, and then 20 % denoising ones of all.
    assert [example.kind for example in mixed] == [SYNTHETIC] * 4 + [REPLAY] + [PARALLEL] * 3 + ["denoising"] * 2
    assert mixed[4].source == "old 7" and mixed[0].candidate is candidates[0]
    assert streams.after == {"train.en-es": Cursor(0, 3), "noised.es": Cursor(0, 2)}


def test_usual_length_ratio_is_source_characters_per_target_character(recipe: Recipe) -> None:
    pairs = [("abcd", "xy"), ("ef", "z")]
    assert examples.usual_length_ratio(pairs, recipe, EN_ES) == 2.0
    assert examples.usual_length_ratio(pairs, recipe, EN_ES.reverse) == 0.5
    assert examples.usual_length_ratio([], recipe, EN_ES) == 1.0


def test_lines_that_fill_more_than_half_of_a_row_are_dropped(path: Path) -> None:
    loaded = load_recipe(str(path), ("train.max_length=12",))
    reverse = roundtrip.load_translators(loaded)["es-en"]
    lines = ["la casa", "Veo la casa roja aquí. " * 6]
    assert examples.short_lines(lines, loaded.recipe, loaded.recipe.generate, reverse) == ["la casa"]
