"""The benchmarks: `tokens` runs on its smallest setting, and every kept result can be shown and drawn."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from benchmarks import common, row_baselines, tokens
from benchmarks.batches import templates
from tests.conftest import toy_pairs

SMALLEST = tokens.Settings(batches=(2,), lengths=(12,), turns=1, seconds=1.0, compiled=False, num_sentences=24)
VARIANTS = {
    *("text", "text, fewest calls", "text, usual", "prior art", "prior art, gc.collect()", "RowBuilder.build"),
    *(f"splice, {checker} checker" for checker in ("no", "cold", "warm", "host")),
}


def test_document_times_every_variant_and_ours_is_exact(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    text = io.StringIO()
    document = tokens.document({"small": tokenizer}, toy_pairs(), SMALLEST, torch.device("cpu"), lambda line: None)
    path = tmp_path / "tokens-small.json"
    common.save(document, path)
    tokens.show(json.loads(path.read_text(encoding="utf-8")), Console(file=text))
    small = json.loads(path.read_text(encoding="utf-8"))["tokenizers"]["small"]
    (case,) = small["cases"]
    assert set(case["variants"]) == VARIANTS and all(variant in text.getvalue() for variant in VARIANTS)
    times = [*case["variants"].values(), *case["parts"].values(), *small["setup_seconds"].items()]
    assert all(each["best_ms"] > 0 and each["turns"] for each in times if isinstance(each, dict))
    exact = {name: figures["exact"] for name, figures in case["variants"].items() if "exact" in figures}
    assert exact.pop("text, usual") < 1.0  # a line break follows the end token
    assert set(exact.values()) == {1.0} and len(exact) == 7
    assert {case["variants"][f"splice, {checker} checker"]["proved"] for checker in ("cold", "warm")} == {1.0}
    for shares in (small["plain_separator"]["final punctuation"], small["plain_separator"]["none"]):
        assert shares["ours"]["targets"] == shares["ours"]["rows"] == 1.0


# Those of commands in `tests/tools`, and of a benchmark that there is no longer.
WITHOUT_BENCHMARK = ("attack", "faults", "fuzz", "engine", "trial")


@pytest.mark.parametrize("name", sorted(path.name for path in common.RESULTS.glob("*.json")))
def test_show_kept_reads_every_result(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name.startswith(WITHOUT_BENCHMARK):
        pytest.skip("not written by a benchmark")
    shutil.copy(common.RESULTS / name, tmp_path / name)
    common.show_kept(tmp_path / name)
    assert len(capsys.readouterr().out.splitlines()) > 3
    plot = tmp_path / name.replace(".json", ".png")
    if (common.RESULTS / plot.name).exists():
        assert plot.read_bytes().startswith(b"\x89PNG")


def test_command_leaves_out_absolute_paths() -> None:
    arguments = ["--run", str(Path.cwd() / "runs" / "a"), "--set=model.path=/srv/models/base", "--turns", "2"]
    shown = common.command("round", arguments)
    assert shown == "python -m benchmarks.round --run runs/a --set=model.path=base --turns 2"


@pytest.mark.parametrize(
    "pairs",
    [
        [("la casa", "the house")],
        [("la casa", "the house"), ("veo", "I see the old house")],
        [("la casa roja", "the house is red"), ("veo", "I see")],
    ],
)
def test_baseline_is_right_where_its_assumptions_hold(
    tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]
) -> None:
    """Our implementation does not cause the errors of the baseline: nothing merges here, and the end token pads."""
    reverse, forward = templates(tokenizer, row_baselines.PLAIN)
    end = tokenizer.eos_token_id
    made = row_baselines.Skip(tokenizer, end).rows(row_baselines.generated(reverse, pairs, end, torch.device("cpu")))
    targets, whole = row_baselines.right(made, forward.rows(pairs))
    assert all(targets) and all(whole)
