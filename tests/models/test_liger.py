"""Liger: refused where it cannot run, on one model only where it can, and the same loss and gradients."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from roundtrip.engine.train_step import loss_sum
from roundtrip.models import adapters, attention, liger
from roundtrip.recipe.schema import Adapter
from roundtrip.runtime.errors import ModelError
from roundtrip.tokens.batching import TokenDataset, collate, pack
from roundtrip.tokens.prompt_template import TokenRow
from tests.conftest import WriteRecipe
from tests.models.test_dropout import FAMILIES
from tests.runs import go

HERE = importlib.util.find_spec("liger_kernel") is not None and importlib.util.find_spec("triton") is not None


@pytest.mark.skipif(torch.cuda.is_available() and HERE, reason="Liger runs here")
def test_without_a_gpu_liger_is_refused_before_any_time_is_spent(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe(('dtype = "float32"', 'dtype = "float32"\nuse_liger_kernel = true'))
    with pytest.raises(ModelError, match="require a CUDA device"):
        go(path, tmp_path / "run")


KERNELS = {"Llama": "swiglu", "Qwen2": "swiglu", "Qwen3": "swiglu", "Gemma2": "geglu", "Mistral": "swiglu"}


def adapted(family: str, device: str) -> Any:
    """Return a model of one family with random weights and an adapter that changes it."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
    model = adapters.add_adapters(model.to(device).requires_grad_(False), {"en-es": Adapter(rank=4)}, 1)
    for parameter in adapters.parameters(model, "en-es").values():
        torch.nn.init.normal_(parameter, std=0.1)
    adapters.activate(model, "en-es", train=True)
    return model


@pytest.mark.parametrize("family", KERNELS)
def test_a_loaded_model_with_adapters_is_patched(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This shows which functions are in place; whether they compute the same, a GPU has to show."""
    pytest.importorskip("triton")
    pytest.importorskip("liger_kernel")
    monkeypatch.setattr(liger, "_unsupported_reason", lambda model: None)
    base = adapted(family, "cpu").get_base_model()
    liger.apply_liger(base)
    layer = base.model.layers[0]
    assert layer.mlp.forward.__module__ == f"liger_kernel.transformers.{KERNELS[family]}"
    for norm in (layer.input_layernorm, layer.post_attention_layernorm, base.model.norm):
        assert norm.forward.__module__ == "liger_kernel.transformers.rms_norm"
    for name in ("varlen", "eager"):
        attention.choose(base, name)
        assert layer.mlp.forward.__module__.startswith("liger_kernel"), "an attention chosen later keeps the kernels"


@pytest.mark.gpu
@pytest.mark.parametrize("family", KERNELS)
@pytest.mark.parametrize("name", ["eager", "varlen", "flash_attention_2"])
def test_liger_and_attention_combine(family: str, name: str) -> None:
    pytest.importorskip("liger_kernel")
    if name == "flash_attention_2":
        pytest.importorskip("flash_attn")
    if name == "varlen" and family == "Gemma2":
        pytest.skip("torch's kernels have no softcap")
    generator = torch.Generator().manual_seed(4)
    rows = [
        TokenRow(torch.randint(3, 64, (size,), generator=generator).tolist(), size // 2) for size in (7, 12, 19, 30)
    ]
    dataset = TokenDataset.of(rows, "cuda")
    results = []
    for fused in (False, True):
        model = adapted(family, "cuda")
        attention.choose(model.get_base_model(), name if fused else "eager")
        if fused:
            liger.apply_liger(model.get_base_model())
        batch = pack(dataset, range(4)) if fused and name in attention.READ_BOUNDS else collate(dataset, range(4), 0)
        loss = loss_sum(model, batch, fused=fused)
        loss.backward()
        own = adapters.parameters(model, "en-es").values()
        results.append((float(loss.detach()), torch.cat([parameter.grad.float().flatten() for parameter in own])))
    (expected, grads), (loss, others) = results
    assert loss == pytest.approx(expected, rel=2e-2)
    assert torch.nn.functional.cosine_similarity(grads, others, 0) > 0.99


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_liger_gives_the_same_loss_and_gradients(model_folder: Path, method: Any) -> None:
    pytest.importorskip("liger_kernel")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    random = torch.Generator().manual_seed(4)
    rows = [TokenRow(torch.randint(5, 250, (size,), generator=random).tolist(), size // 2) for size in (7, 12, 19, 30)]
    batch = collate(TokenDataset.of(rows, device), range(4), 3)
    found = []
    for fused in (False, True):
        model = AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation="eager").to(device)
        model = adapters.add_adapters(model.requires_grad_(False), {"en-es": Adapter(method=method, rank=4)}, 1)
        own = adapters.parameters(model, "en-es")
        for number, parameter in enumerate(own.values()):
            seeded = torch.Generator().manual_seed(number)
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=seeded).to(device)
        if fused:
            library = vars(sys.modules[type(model.get_base_model()).__module__])
            before = dict(library)
            liger.apply_liger(model.get_base_model())
            assert all(library[name] is value for name, value in before.items()), "the library itself is left alone"
            assert "liger" in model.get_base_model().model.layers[0].mlp.forward.__module__
        adapters.activate(model, "en-es", train=True)
        loss = loss_sum(model, batch, fused=fused)
        loss.backward()
        found.append((float(loss.detach()), [parameter.grad for parameter in own.values()]))
    (plain, grads), (fused, others) = found
    assert fused == pytest.approx(plain, rel=1e-4)
    for grad, other in zip(grads, others, strict=True):
        assert grad is not None and other is not None
        assert (grad - other).abs().max() <= 1e-3 * grad.abs().max()
        assert (grad - other).abs().mean() <= 1e-4 * grad.abs().max()
