"""What the dry run says of text: lengths, tokens, and what is suspicious, each with a cure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roundtrip.data import corpora as data_corpora
from roundtrip.data.text_report import TextReport, text_report
from tests.conftest import toy_pairs

Pairs = list[tuple[str, str]]
PAIRS = [(f"{en} It was a long day in the town.", f"{es} Fue un largo día en la ciudad.") for en, es in toy_pairs()]


def report(
    train: Pairs, dev: Pairs = PAIRS[:40], tokens: tuple[float, float] = (1.5, 2.0), **counts: int
) -> TextReport:
    """Look at pairs, with a tokenizer that has so many tokens a word."""
    of_train = {"kept": len(train), **{reason.replace("_", " "): number for reason, number in counts.items()}}
    parts = {"train": of_train, "dev": {"kept": len(dev)}, "test": {}}
    corpora: Any = SimpleNamespace(train=train, dev=dev, test=[], mono={}, counts=parts)

    def counter(rate: float) -> Any:
        return lambda lines: round(rate * sum(len(line.split()) for line in lines))

    return text_report(corpora, ("en", "es"), {"en": counter(tokens[0]), "es": counter(tokens[1])})


def test_good_text_is_described_without_a_finding() -> None:
    made = report(PAIRS[:300])
    en, es = made.sides["train"]
    assert (en.sampled, sum(en.lengths), en.tokens_per_unit, es.tokens_per_unit) == (300, 300, 1.5, 2.0)
    assert not made.findings and list(made.lines())[-1] == "  nothing suspicious in it"
    assert all(len(line) <= 80 for line in made.lines() if "%" not in line)
    assert made.to_dict()["parts"]["train"]["sides"][0]["language"] == "en"


@pytest.mark.parametrize(
    ("made", "problem", "cure"),
    [
        (lambda: report([(es, en) for en, es in PAIRS]), "en and es seem to be swapped", "in the order of"),
        (lambda: report([(en, en + ".") for en, _ in PAIRS]), "the lines of es look like English", "right language"),
        (lambda: report([(en, es.encode().decode("cp1252", "ignore")) for en, es in PAIRS]), "Windows-1252", "iconv"),
        (lambda: report([(en, es.replace("í", "\ufffd")) for en, es in PAIRS]), "lost characters", "original file"),
        (lambda: report(PAIRS, tokens=(1.2, 6.0)), "es takes 6.0 tokens a word (en: 1.2 a word)", "for each token"),
        (lambda: report(PAIRS, both_sides_equal=200), "200 of 800 lines (25%): both sides equal", "not translated"),
        (lambda: report(PAIRS, empty=900), "900 of 1500 lines (60%): empty", "line N translates line N"),
        (lambda: report(PAIRS, length_ratio=200), "length ratio", "line N of one side"),
        (lambda: report(PAIRS, **{data_corpora.BROKEN_PLACEHOLDERS: 60}), "other placeholders", "placeholders.md"),
        (lambda: report(PAIRS, [(f"q{i} z{i}", es) for i, (_, es) in enumerate(PAIRS[:40])]), "of en are", "domain"),
    ],
    ids=["swapped", "one language", "mojibake", "lost", "tokens", "equal", "empty", "ratio", "placeholders", "domain"],
)  # fmt: skip
def test_what_is_suspicious_is_named_with_a_cure(made: Any, problem: str, cure: str) -> None:
    findings = made().findings
    assert any(problem in finding.problem and cure in finding.cure for finding in findings), findings


@given(st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60)), max_size=12))
@settings(deadline=None, max_examples=40)
def test_any_text_is_described(rows: Pairs) -> None:
    made = report(rows, rows)
    assert all(sum(side.lengths) == side.sampled == len(rows) for sides in made.sides.values() for side in sides)
    assert list(made.lines())


def test_a_large_part_is_sampled() -> None:
    assert report([PAIRS[0]] * 5000).sides["train"][0].sampled == 1000
