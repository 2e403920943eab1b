"""Which direction a request means."""

from __future__ import annotations

import pytest

from roundtrip.recipe.plan import Direction
from roundtrip.serving.served_run import find_direction


@pytest.mark.parametrize(
    ("languages", "source", "target", "position"),
    [
        ("en es", "en", "es", 0),
        ("en es", "es", "en", 1),
        ("en es", "eng", "es_MX", 0),
        ("en es", "auto", "EN", 1),
        ("en es", "en", "en", None),
        ("en es", "en", "de", None),
        ("en es", "auto", "auto", None),
        ("en es", "en", "\x1b", None),
        ("en qaa", "qaa", "en", 1),
        ("en qaa", "en", "qab", None),
        ("zh-Hans zh-Hant", "zh", "zh_TW", 0),
        ("zh-Hans zh-Hant", "zh-Hant", "zh-CN", 1),
        ("zh-Hans zh-Hant", "zh", "zh", None),
        ("pt pt-BR", "pt", "pt-BR", 0),
        ("pt pt-BR", "auto", "pt-BR", 0),
        ("pt-PT pt-BR", "pt", "pt", None),
        ("pt-PT pt-BR", "pt", "pt-BR", 0),
    ],
)
def test_codes_of_a_request_find_the_direction(languages: str, source: str, target: str, position: int | None) -> None:
    first, second = languages.split()
    both = [Direction(first, second), Direction(second, first)]
    assert find_direction(both, source, target) == (None if position is None else both[position])
