"""Placeholders in a whole run: pairs that break them, rejected sources, and who keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roundtrip.data.corpora import BROKEN_PLACEHOLDERS
from roundtrip.evaluation.metrics import corpus_scores
from tests.conftest import WriteRecipe, toy_pairs
from tests.runs import NAMES, go, read_events


def test_placeholders_of_pairs_sources_and_translations_are_counted(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path, run = write_recipe(), tmp_path / "run"
    pairs = [(f"{en} %s", f"{es} %s") if i % 2 else (en, es) for i, (en, es) in enumerate(toy_pairs())]
    pairs[:3] = [(f"{en} %s", f"{es} %d") for en, es in toy_pairs()[:3]]
    (tmp_path / "toy.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in pairs), encoding="utf-8")
    shown = go(path, run)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["lines"]["corpus"][BROKEN_PLACEHOLDERS] == 3
    assert f"warning: first pair {BROKEN_PLACEHOLDERS}: printf placeholder: missing %s, extra %d" in shown
    assert repr(pairs[0][0]) in shown and f"3 {BROKEN_PLACEHOLDERS}" in shown
    assert "chrF++ / BLEU / lines with all placeholders kept" in shown
    for part in ("dev", "test"):
        rows = [line.split("\t") for line in (run / "data" / f"{part}.tsv").read_text(encoding="utf-8").splitlines()]
        assert all(scores["intact"] == 1.0 for scores in metrics[part]["copy"].values())
        for side, name in enumerate(NAMES):
            translations = run / "translations" / f"{part}.parallel.{name}.txt"
            lines = translations.read_text(encoding="utf-8").splitlines()
            kept = [line.count("%s") == 1 and line.count("%") == 1 for line in lines]
            with_any = [keeps for row, keeps in zip(rows, kept, strict=True) if "%" in row[side]]
            assert metrics[part]["parallel"][name]["intact"] == pytest.approx(sum(with_any) / len(with_any))
            assert metrics[part]["parallel"][name]["chrf"] == corpus_scores(lines, [row[1 - side] for row in rows]).chrf
    assert all("placeholders" in event["rejected"] for event in read_events(run, "examples") if event["rejected"])
