"""The benchmark of token roads runs, on the smallest setting; what it says of time is left to idle machines."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from benchmarks import plots, prior_art, tokens
from benchmarks.batches import templates
from tests.conftest import toy_pairs

SMALLEST = tokens.Settings(batches=(2,), lengths=(12,), turns=1, seconds=1.0, compiled=False, num_sentences=24)
ROADS = {
    *("strings", "strings, fewest calls", "strings, usual", "prior art", "prior art, gc.collect()", "Road.rows"),
    *(f"splice, {guard} guard" for guard in ("no", "cold", "warm", "host")),
}


def test_every_road_is_timed_and_ours_is_exact(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    text = io.StringIO()
    found = tokens.document({"small": tokenizer}, toy_pairs(), SMALLEST, torch.device("cpu"), Console(file=text))
    path = tmp_path / "tokens-small.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    plots.show(json.loads(path.read_text(encoding="utf-8")), Console(file=text))
    small = json.loads(path.read_text(encoding="utf-8"))["tokenizers"]["small"]
    (case,) = small["cases"]
    assert set(case["token_rows"]) == ROADS and all(row_builder in text.getvalue() for row_builder in ROADS)
    times = [*case["token_rows"].values(), *case["parts"].values(), *small["setup_seconds"].items()]
    assert all(one["best_ms"] > 0 and one["turns"] for one in times if isinstance(one, dict))
    exact = {name: row_builder["exact"] for name, row_builder in case["token_rows"].items() if "exact" in row_builder}
    assert exact.pop("strings, usual") < 1.0  # a line break follows the end token
    assert set(exact.values()) == {1.0} and len(exact) == 7
    assert {case["token_rows"][f"splice, {guard} guard"]["proved"] for guard in ("cold", "warm")} == {1.0}
    for shares in (small["plain_separator"]["final punctuation"], small["plain_separator"]["none"]):
        assert shares["ours"]["targets"] == shares["ours"]["rows"] == 1.0


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row_builder = {"best_ms": 1.0}
    cases = [{"length": 64, "batch": batch, "roads": {"strings": row_builder}} for batch in (1, 8)]
    hardware = {"processor": "abacus", "threads": 1, "device": "cpu"}
    plots.draw({"tokenizers": {"small": {"cases": cases}}, "hardware": hardware}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "pairs",
    [
        [("la casa", "the house")],
        [("la casa", "the house"), ("veo", "I see the old house")],
        [("la casa roja", "the house is red"), ("veo", "I see")],
    ],
)
def test_the_prior_art_is_right_where_it_may_be(
    tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]
) -> None:
    """Our code of it is not at fault where all holds that it assumes: nothing merges, and the end token pads."""
    writer, learner = templates(tokenizer, prior_art.PLAIN)
    end = tokenizer.eos_token_id
    made = prior_art.Skip(tokenizer, end).rows(prior_art.generated(writer, pairs, end, torch.device("cpu")))
    targets, whole = prior_art.right(made, learner.rows(pairs))
    assert all(targets) and all(whole)
