"""Dropout of models that train all weights: in train mode only, of every part, and for many families."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from roundtrip.backtranslation.trainer import Trainer
from roundtrip.models.dropout import add_dropout
from roundtrip.runtime.errors import ModelError
from roundtrip.runtime.interrupts import Interrupted
from tests.conftest import WriteRecipe
from tests.runs import assert_same, end_state, go, read_events

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA = SIZES | {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": LLAMA,
    "Qwen2": LLAMA,
    "Qwen3": LLAMA | {"head_dim": 16},
    "Gemma2": LLAMA | {"head_dim": 16},
    "Mistral": LLAMA,
    "Phi3": LLAMA,
    "GPTNeoX": SIZES | {"intermediate_size": 64},
    "GPT2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
    "Bloom": SIZES,
    "OPT": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32},
}
IDS = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))


def family(name: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**FAMILIES[name])
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@torch.no_grad()
def logits(model: Any, seed: int = 1, ids: torch.Tensor = IDS) -> torch.Tensor:
    torch.manual_seed(seed)
    result: torch.Tensor = model(ids, use_cache=False).logits
    return result


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_is_in_train_mode_alone_and_follows_the_seed(name: str) -> None:
    model = family(name)
    before = logits(model)
    add_dropout(model, 0.3)
    assert torch.equal(logits(model), before)
    model.train()
    assert torch.equal(logits(model), logits(model))
    assert not torch.allclose(logits(model), logits(model, seed=2), atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_part_is_dropped(name: str) -> None:
    """At a rate of 1 nothing reaches the residual stream, so the logits do not depend on the tokens."""
    model = family(name).train()
    others = IDS.flip(1)
    assert not torch.allclose(logits(model), logits(model, ids=others), atol=1e-4)
    add_dropout(model, 1.0)
    assert torch.allclose(logits(model), logits(model, ids=others), atol=1e-5)


def test_attention_weights_are_dropped() -> None:
    model = family("Llama").train()
    add_dropout(model, 0.5)
    for module in model.modules():
        module._forward_hooks.clear()
    assert not torch.allclose(logits(model), logits(model, seed=2), atol=1e-5)


def test_a_model_without_a_place_for_it_is_refused() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
    model = AutoModelForCausalLM.from_config(transformers.MambaConfig(**sizes))
    with pytest.raises(ModelError, match=r"no dropout for models of type mamba.*\n.*adapter.dropout = 0"):
        add_dropout(model, 0.1)


def test_a_stopped_run_with_dropout_resumes_to_the_same_end(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(
        ("[adapter]\nrank = 4\n", '[adapter]\nmethod = "full"\n'), ("[model]\n", "[model]\nshared = false\n")
    )
    go(path, tmp_path / "whole")
    train_step = Trainer.train_step

    def stopping(self: Trainer, *arguments: Any) -> None:
        if self.state.total_steps() == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        train_step(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", stopping)
    with pytest.raises(Interrupted):
        go(path, tmp_path / "resumed")
    monkeypatch.undo()
    go(path, tmp_path / "resumed", resume=True)
    assert_same(end_state(tmp_path / "resumed"), end_state(tmp_path / "whole"))
    go(path, tmp_path / "none", overrides=("adapter.dropout=0.0",))
    dropped, plain = ([event["loss"] for event in read_events(tmp_path / name, "step")] for name in ("whole", "none"))
    assert len(dropped) == len(plain) and dropped[0] > plain[0]
