"""Liger: refused where it cannot run, on one model only where it can, and the same loss and gradients."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from roundtrip.engine.train_step import loss_sum
from roundtrip.models import adapters, liger
from roundtrip.recipe.schema import Adapter
from roundtrip.runtime.errors import ModelError
from roundtrip.tokens.batching import TokenDataset, collate
from roundtrip.tokens.prompt_template import TokenRow
from tests.conftest import WriteRecipe
from tests.runs import go

HERE = importlib.util.find_spec("liger_kernel") is not None and importlib.util.find_spec("triton") is not None


@pytest.mark.skipif(torch.cuda.is_available() and HERE, reason="Liger runs here")
def test_without_a_gpu_liger_is_refused_before_any_time_is_spent(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe(('dtype = "float32"', 'dtype = "float32"\nuse_liger_kernel = true'))
    message = "require a CUDA device" if HERE else r"not installed: pip install 'roundtrip-mt\[liger\]'"
    with pytest.raises(ModelError, match=message):
        go(path, tmp_path / "run")


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_liger_gives_the_same_loss_and_gradients(model_folder: Path, method: Any) -> None:
    """`TRITON_INTERPRET=1` runs this on a CPU."""
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
