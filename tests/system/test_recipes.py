"""Every shipped recipe takes its first steps, with a tiny model and a toy corpus in place of its own."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from roundtrip.backtranslation import filtering
from roundtrip.recipe import loader
from roundtrip.runtime.errors import ModelError
from tests.conftest import toy_pairs
from tests.recipe.test_loader import SHIPPED
from tests.runs import go

# Keys that set the size of a run; all others are as shipped.
SMALLER: dict[str, dict[str, Any]] = {
    "train": {
        "lr_warmup_steps": 0,
        "parallel_epochs": 1,
        "max_length": 96,
        "batch_size": 16,
        "max_tokens_per_microbatch": 1024,
    },
    "rounds": {"count": 1, "monolingual_lines": 20, "require_better_than_copy": False},
    "filter": {"max_length_ratio": 100.0, "min_round_trip_chrf": 0.0},
    "checkpoint": {"every_steps": 1000, "keep": 1},
}
FROM_SCRATCH = {"vocab_size": 420, "num_layers": 2, "hidden_size": 48}


def toml(table: dict[str, Any], path: tuple[str, ...] = ()) -> str:
    """Return the text of a table that `tomllib` parsed."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"[{'.'.join(json.dumps(part) for part in path)}]"] if path else []
    lines += [f"{json.dumps(key)} = {json.dumps(value, ensure_ascii=False)}" for key, value in plain.items()]
    inner = [toml(value, (*path, key)) for key, value in table.items() if isinstance(value, dict)]
    return "\n".join(lines + inner)


def smaller_recipe(name: str, folder: Path, model_folder: Path) -> Path:
    """Write a shipped recipe, made smaller, with toy text beside it."""
    data: dict[str, Any] = tomllib.loads(loader.find(name).read_text(encoding="utf-8"))
    rows = "".join(f"{en}\t{es}\n" for en, es in toy_pairs())
    (folder / "toy.tsv").write_text(rows, encoding="utf-8")
    data["languages"] = ["en", "es"]
    model = data["model"]
    # A model from scratch needs more pairs before it ends its sentences.
    num_pairs = 300 if "from_scratch" in model else 32
    data["data"] = {"split": {"corpus": "toy.tsv", "train": num_pairs, "dev": 8, "test": 8}}
    for section, values in SMALLER.items():
        data[section] = data.get(section, {}) | values
    if "from_scratch" in model:
        model["from_scratch"] = FROM_SCRATCH
        data["train"] |= {"parallel_epochs": 8, "pretrain_lines": 20}
        if name.endswith("-base"):  # makes a model that another recipe starts from
            data["train"] |= {"parallel_epochs": 0, "pretrain_lines": 100}
            data["rounds"]["count"] = 0
    else:
        model["path"] = str(model_folder)
    if model.get("use_liger_kernel"):  # for a GPU
        model |= {"use_liger_kernel": False}
        data["generate"] |= {"cuda_graphs": False}
    path = folder / f"{name}.toml"
    path.write_text(toml(data), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_runs_with_a_tiny_model(
    name: str, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filtering, "MAX_COPY_CHRF", 100.0)  # a model this weak copies
    go(smaller_recipe(name, tmp_path, model_folder), tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert min(metrics["steps"].values()) >= 2
    events = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert min(losses[1:]) < losses[0]


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="FlashAttention is installed")
def test_missing_flash_attention_is_an_error_before_training(tmp_path: Path, model_folder: Path) -> None:
    path = smaller_recipe("gpu", tmp_path, model_folder)
    with pytest.raises(ModelError, match="flash-attn is not installed"):
        go(path, tmp_path / "run", overrides=('model.attention="flash_attention_2"',))
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
