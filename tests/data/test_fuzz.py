"""A seeded sample of the random inputs; `python -m tests.tools.fuzz` feeds any number of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from roundtrip.runtime.errors import TextError
from tests.tools import attack_files, fuzz


@pytest.mark.parametrize("name", list(fuzz.targets()))
def test_random_input_is_accepted_or_refused_with_an_error(name: str) -> None:
    counts = fuzz.fuzz(name, 250, 11)
    assert counts.total() >= 250
    assert counts["accepted"] and counts["refused"], "both must occur, or nothing is tested"


def test_hostile_parquet_files_are_read_or_refused(tmp_path: Path) -> None:
    result = attack_files.attack_parquet(3, 40, tmp_path)
    assert not result["faults"], result
    assert min(result["accepted"], result["refused"]) > 3


def test_fuzz_reports_unexpected_exceptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    monkeypatch.setattr(fuzz, "read_rows", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fuzz.read_text(b"a\tb\n", tmp_path, counts, "tsv", 1)
    with pytest.raises(AssertionError):
        fuzz.check_input(lambda: (_ for _ in ()).throw(TextError("")).send(None), counts)
