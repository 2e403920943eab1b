"""What a run reports of a phase."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from roundtrip.backtranslation.examples import PARALLEL, SYNTHETIC, Example, PhaseExamples
from roundtrip.backtranslation.filtering import Candidate
from roundtrip.backtranslation.labels import advice
from roundtrip.backtranslation.reporting import report_examples
from roundtrip.recipe.plan import Direction, Phase
from roundtrip.runtime.errors import TrainingError

ROUND = Phase(0, "round-1", 1, Direction("en", "es"), False)


@pytest.mark.parametrize(
    "reason",
    ["unfinished", "length_ratio", "copy", "repetition", "wrong_language", "low_round_trip", "placeholders",
     "target_too_long", "multiple_lines", "empty"],
)  # fmt: skip
def test_more_than_half_rejected_says_what_to_try(reason: str) -> None:
    said: list[str] = []
    events: Any = SimpleNamespace(log=lambda *a, **k: None, say=said.append)
    made = PhaseExamples([Example(SYNTHETIC, "a", "b")], {}, (), Counter({reason: 3, "other": 1}), num_candidates=7)
    report_examples(events, ROUND, replace(made, num_candidates=8))
    assert len(said) == 1, "half of them is not more than half"
    report_examples(events, ROUND, made)
    assert said[1].startswith("  4 of 7 synthetic sources rejected: 3 ") and "{" not in said[1]
    assert "more than half" in said[2] and advice(Counter({reason: 1})) in said[2]
    none_left = replace(made, examples=[Example(PARALLEL, "a", "b")], samples=[Candidate(0, "bad", "good")])
    with pytest.raises(TrainingError, match="all 4 synthetic sources.*\n    'bad' for 'good'"):
        report_examples(events, ROUND, none_left)
