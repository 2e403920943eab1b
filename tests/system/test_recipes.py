"""Every shipped recipe, with a tiny model and a toy corpus in place of the real ones, takes its first steps."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from roundtrip.recipe import loader
from roundtrip.runtime.errors import ModelError
from tests.conftest import toy_pairs
from tests.recipe.test_loader import SHIPPED
from tests.runs import go

# What stands in for the recipe's size; everything else is as shipped.
SMALLER: dict[str, dict[str, Any]] = {
    "train": {
        "lr_warmup_steps": 0,
        "parallel_epochs": 1,
        "max_length": 96,
        "batch_size": 16,
        "max_tokens_per_microbatch": 1024,
    },
    "rounds": {"count": 1, "monolingual_lines": 20},
    "filter": {"max_length_ratio": 100.0, "max_copy_chrf": 100.0},
    "evaluation": {"bootstrap_samples": 20},
    "checkpoint": {"every_steps": 1000, "keep": 1},
}
SCRATCH = {"vocab_size": 420, "num_layers": 2, "hidden_size": 48}


def toml(table: dict[str, Any], path: tuple[str, ...] = ()) -> str:
    """Write what `tomllib` read."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"[{'.'.join(json.dumps(part) for part in path)}]"] if path else []
    lines += [f"{json.dumps(key)} = {json.dumps(value, ensure_ascii=False)}" for key, value in plain.items()]
    inner = [toml(value, (*path, key)) for key, value in table.items() if isinstance(value, dict)]
    return "\n".join(lines + inner)


def stand_in(name: str, folder: Path, model_folder: Path) -> Path:
    data: dict[str, Any] = tomllib.loads(loader.find(name).read_text(encoding="utf-8"))
    rows = "".join(f"{en}\t{es}\n" for en, es in toy_pairs())
    (folder / "toy.tsv").write_text(rows, encoding="utf-8")
    data["languages"] = ["en", "es"]
    # A model that knows nothing needs more of it before it ends its sentences.
    number = 300 if "from_scratch" in data["model"] else 32
    data["data"] = {"split": {"corpus": "toy.tsv", "train": number, "dev": 8, "test": 8}}
    for key, values in SMALLER.items():
        data[key] = data.get(key, {}) | values
    data["rounds"]["require_better_than_copy"] = False
    data.get("filter", {}).pop("min_round_trip_chrf", None)
    model = data["model"]
    if "from_scratch" in model:
        model["from_scratch"] = SCRATCH
        data["train"] |= {"parallel_epochs": 8, "pretrain_lines": 20}
        if name.endswith("-base"):  # which others begin with
            data["train"] |= {"parallel_epochs": 0, "pretrain_lines": 100}
            data["rounds"]["number"] = 0
    else:
        model["path"] = str(model_folder)
    if model.get("attention") == "flash_attention_2":
        model |= {"attention": "auto", "liger": False}
        data["generate"] |= {"cuda_graphs": False}
    path = folder / f"{name}.toml"
    path.write_text(toml(data), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_runs_with_a_stand_in(name: str, tmp_path: Path, model_folder: Path) -> None:
    go(stand_in(name, tmp_path, model_folder), tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert min(metrics["steps"].values()) >= 2
    losses = [
        event["loss"]
        for event in map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
        if event["event"] == "step"
    ]
    assert min(losses[1:]) < losses[0]


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="FlashAttention is here")
def test_a_gpu_recipe_says_what_is_missing_before_it_trains(tmp_path: Path, model_folder: Path) -> None:
    path = stand_in("gpu", tmp_path, model_folder)
    with pytest.raises(ModelError, match="attention 'flash_attention_2'"):
        go(path, tmp_path / "run", overrides=('model.attention="flash_attention_2"',))
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
