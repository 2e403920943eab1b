"""A seeded share of the random inputs; `python -m tests.tools.fuzz` feeds as many as one has time for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from roundtrip.runtime.errors import TextError
from tests.tools import fuzz


@pytest.mark.parametrize("name", list(fuzz.targets()))
def test_random_input_is_taken_or_refused_in_words(name: str) -> None:
    found = fuzz.fuzz(name, 250, 11)
    assert found.total() >= 250
    assert found["taken"] and found["refused"], "both kinds come up, so that something is tested"


def test_the_fuzzer_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    monkeypatch.setattr(fuzz, "read_pairs", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fuzz.read_text(b"a\tb\n", tmp_path, counts, "tsv", 1)
    with pytest.raises(AssertionError):
        fuzz.judged(lambda: (_ for _ in ()).throw(TextError("")).send(None), counts)
