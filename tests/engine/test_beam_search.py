"""Beam search, against that of transformers."""

from dataclasses import replace
from typing import Any

import pytest

from roundtrip.engine.generate import generate
from roundtrip.engine.request import BeamSearch, GenerationRequest, StopRule
from roundtrip.recipe.schema import Generate
from tests.engine.test_decoding import ALL, LIMITS, PROMPTS, STOPS, model_of


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("num_beams", [2, 5])
def test_beams_are_those_of_transformers(kind: str, num_beams: int) -> None:
    """Each prompt alone, since transformers has one limit for a batch; at it, it may take a hypothesis that is cut."""
    model = model_of(kind)
    limits = [limit + 20 for limit in LIMITS]
    request = GenerationRequest(PROMPTS, limits, BeamSearch(num_beams=num_beams), StopRule(STOPS), 1)
    together = generate(model, request)
    reference = request.settings.model_copy(update={"engine": "transformers"})
    num_equal = 0
    for number, (prompt, limit) in enumerate(zip(PROMPTS, limits, strict=True)):
        expected = generate(model, GenerationRequest([prompt], [limit], reference, request.stop, 1))
        is_equal = together.lists()[number] == expected.lists()[0]
        assert is_equal or (bool(together.finished_B[number]) and not expected.finished_B[0])
        num_equal += is_equal
    assert num_equal >= 7
    assert together.lists() != generate(model, replace(request, settings=Generate())).lists()


def test_one_that_has_not_ended_is_cut_at_its_own_limit() -> None:
    """Without stop ids no hypothesis ends, and the most likely of that length is returned."""
    model = model_of("RoPE, tied head")
    request = GenerationRequest(PROMPTS, LIMITS, BeamSearch(num_beams=3), StopRule([]), 1)
    found = generate(model, request)
    assert found.size_B.tolist() == LIMITS and not found.finished_B.any()


def test_the_batch_does_not_matter() -> None:
    model = model_of("RoPE, tied head")
    request = GenerationRequest(PROMPTS, LIMITS, BeamSearch(num_beams=4), StopRule(STOPS), 1)
    small = replace(request, settings=request.settings.model_copy(update={"max_tokens_per_batch": 1}))
    assert generate(model, small).lists() == generate(model, request).lists()


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.8, "num_candidates": 2}, {"temperature": 0.8}, {"num_candidates": 2}]
)
def test_samples_and_several_candidates_have_no_beams(settings: dict[str, Any]) -> None:
    model = model_of("RoPE, tied head")
    for engine in ("native", "transformers"):
        settings["engine"] = engine
        found = [
            generate(model, GenerationRequest(PROMPTS, LIMITS, BeamSearch(num_beams=n, **settings), StopRule(STOPS), 1))
            for n in (1, 4)
        ]
        assert found[0].lists() == found[1].lists()
