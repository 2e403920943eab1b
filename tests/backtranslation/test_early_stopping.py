"""Early stopping, and the refusal of rounds that start too weak."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roundtrip.backtranslation.early_stopping import has_stopped_improving, require_better_than_copy
from roundtrip.recipe.loader import load_recipe
from roundtrip.recipe.plan import PARALLEL
from roundtrip.runtime.errors import TrainingError
from tests.conftest import WriteRecipe


@given(values=st.lists(st.integers(0, 9), max_size=12), patience=st.integers(1, 4))
def test_none_of_the_last_values_is_better_than_the_best_before(values: list[int], patience: int) -> None:
    expected = len(values) > patience and all(value <= max(values[:-patience]) for value in values[-patience:])
    assert has_stopped_improving(values, patience) == expected
    assert has_stopped_improving([-value for value in values], patience, lower_is_better=True) == expected


@pytest.mark.parametrize(("now", "refused"), [(10.0, True), (10.1, False)])
def test_a_direction_must_be_better_than_copying(now: float, refused: bool, write_recipe: WriteRecipe) -> None:
    path = write_recipe(("require_better_than_copy = false", "require_better_than_copy = true"))
    recipe = load_recipe(str(path)).recipe
    copied = {"en-es": {"chrf": 10.0}, "es-en": {"chrf": 10.0}}
    scores = {"copy": copied, PARALLEL: {"en-es": {"chrf": 50.0}, "es-en": {"chrf": now}}}
    if refused:
        with pytest.raises(TrainingError, match=r"es-en(.|\n)* a.toml --set rounds\.require_better_than_copy=false$"):
            require_better_than_copy(recipe, scores, "train a.toml")
    else:
        require_better_than_copy(recipe, scores, "train a.toml")
