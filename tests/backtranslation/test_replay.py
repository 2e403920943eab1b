"""Replay of synthetic examples of earlier rounds."""

from __future__ import annotations

from pathlib import Path

from roundtrip.backtranslation.examples import DENOISING, PARALLEL, REPLAY, SYNTHETIC, Example, examples_path
from roundtrip.backtranslation.replay import replayed_examples
from roundtrip.recipe.plan import Direction, Phase
from roundtrip.runtime.atomic_io import write_rows

EN_ES = Direction("en", "es")


def test_the_newest_examples_come_first_and_each_target_once(tmp_path: Path) -> None:
    phases = [
        Phase(n, f"round-{1 + n // 2}", 1 + n // 2, EN_ES if n % 2 == 0 else EN_ES.reverse, n % 2 == 1)
        for n in range(8)
    ]
    for phase in phases:
        name, number = phase.direction.name, phase.round
        own = [[SYNTHETIC, f"source {number}.{i}", f"target {name} {number + i}"] for i in range(3)]
        others = [[PARALLEL, "r", "s"], [REPLAY, "old", "old"], [DENOISING, "n", "m"]]
        write_rows(examples_path(tmp_path, phase), own + others)
    assert replayed_examples(tmp_path, phases, phases[6], 0) == []
    assert replayed_examples(tmp_path, phases, phases[0], 9) == []
    # Round 3 has targets 3, 4 and 5; of round 2 (2, 3, 4) and 1 (1, 2, 3) one each is left.
    replayed = replayed_examples(tmp_path, phases, phases[6], 9)
    sources = ["source 3.0", "source 3.1", "source 3.2", "source 2.0", "source 1.0"]
    assert [example.source for example in replayed] == sources
    assert replayed_examples(tmp_path, phases, phases[6], 4) == replayed[:4]
    assert all("en-es" in example.target and example.kind == REPLAY for example in replayed)


def test_equal_sources_of_two_rounds_are_two_examples(tmp_path: Path) -> None:
    phases = [Phase(number, f"round-{1 + number}", 1 + number, EN_ES, False) for number in range(3)]
    write_rows(examples_path(tmp_path, phases[0]), [[SYNTHETIC, f"s{i}", f"t{i}"] for i in range(4)])
    write_rows(examples_path(tmp_path, phases[1]), [[SYNTHETIC, f"s{i + 2}", f"u{i}"] for i in range(2)])
    replayed = replayed_examples(tmp_path, phases, phases[2], 9)
    assert [example.target for example in replayed] == ["u0", "u1", "t0", "t1", "t2", "t3"]


def test_several_candidates_of_one_line_stay_together(tmp_path: Path) -> None:
    first, second = Phase(0, "round-1", 1, EN_ES, False), Phase(1, "round-2", 2, EN_ES, False)
    write_rows(examples_path(tmp_path, first), [[SYNTHETIC, "a", "x"], [SYNTHETIC, "b", "x"], [SYNTHETIC, "c", "y"]])
    assert replayed_examples(tmp_path, [first, second], second, 9) == [
        Example(REPLAY, "a", "x"),
        Example(REPLAY, "b", "x"),
        Example(REPLAY, "c", "y"),
    ]
