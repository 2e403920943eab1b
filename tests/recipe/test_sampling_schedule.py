"""The temperature of a round: as the recipe has it, or by how good the generating direction is."""

from __future__ import annotations

import pytest

from roundtrip.recipe.sampling_schedule import describe_sampling, sampling_settings
from roundtrip.recipe.schema import Generate


@pytest.mark.parametrize(
    ("dev_chrf", "temperature", "num_candidates", "text"),
    [
        (None, 0.0, 1, "en-es uses greedy search: without dev pairs its quality is unknown"),
        (39.9, 0.0, 1, "en-es uses greedy search: its dev chrF++ 39.9 is below 40"),
        (40.0, 0.7, 4, "en-es samples at temperature 0.7, 4 candidates per line: its dev chrF++ 40.0 is at least 40"),
    ],
)
def test_sampling_settings_of_auto_follow_dev_chrf(
    dev_chrf: float | None, temperature: float, num_candidates: int, text: str
) -> None:
    generate = Generate(num_candidates=4)
    settings = sampling_settings(generate, dev_chrf)
    assert (settings.temperature, settings.num_candidates) == (temperature, num_candidates)
    assert describe_sampling(generate, settings, "en-es", dev_chrf) == text


def test_sampling_settings_keep_a_temperature_that_is_a_number() -> None:
    generate = Generate(temperature=0.3, num_candidates=2, top_p=0.9)
    settings = sampling_settings(generate, 1.0)
    assert settings == generate
    assert describe_sampling(generate, settings, "en-es", 1.0) == (
        "en-es samples at temperature 0.3, 2 candidates per line"
    )
