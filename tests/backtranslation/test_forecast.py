"""Memory that is worked out beforehand: each part against what is really held, and what `check` says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from roundtrip.backtranslation import forecast
from roundtrip.engine import translator
from roundtrip.models import adapters, attention, base_model
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe import loader
from roundtrip.recipe.schema import Adapter, Train
from roundtrip.runtime import memory
from roundtrip.tokens.batching import TokenDataset, collate, pack
from tests.conftest import WriteRecipe
from tests.engine.test_train_step import rows
from tests.models.test_adapters import fresh
from tests.runs import go


def held(model: Any, batch: Any) -> int:
    """Return the bytes of distinct memory that autograd keeps, weights aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model.get_decoder()(input_ids=batch.ids_BT, use_cache=False, **batch.inputs)
    assert out.last_hidden_state.requires_grad
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_of_a_real_pass(
    model_folder: Path, method: str, packing: bool, checkpointing: bool
) -> None:
    made = rows(9)
    table = TokenDataset.of(made)
    found = []
    for device in ("cpu", "meta"):
        model: Any = fresh(model_folder).to(device)
        if checkpointing:
            base_model.checkpoint_activations(model)
        attention.choose(model, "varlen" if packing else "eager")
        if method == "full":
            model.requires_grad_(True).train()
        else:
            learner = adapters.add_adapters(model, {"en-es": Adapter(rank=4, method=method)}, 1)  # type: ignore[arg-type]
            adapters.activate(learner, "en-es", train=True)
        if device == "cpu":
            found.append(held(model, pack(table, range(9)) if packing else collate(table, range(9), 3)))
        else:
            found.append(forecast._kept_by(model, table.sizes, packing))
    real, foreseen = found
    assert real > 10_000 and foreseen == pytest.approx(real, rel=0.03)


def test_weights_copies_and_optimizers_are_counted_right(write_recipe: WriteRecipe) -> None:
    loaded = loader.load(str(write_recipe()))
    both = translator.load(loaded.recipe, loaded.folder)
    pairs = {name: [("one two", "uno dos"), ("three", "tres")] for name in both}
    found = forecast.forecast(loaded.recipe, loaded.folder, {name: one.template for name, one in both.items()}, pairs)
    one = next(iter(both.values()))
    plain = fresh(Path(one.base.location))
    assert found.base == sum(parameter.nbytes for parameter in plain.parameters())
    merged_copy: Any = one.direction_model.merged_copy
    tensors = [
        *merged_copy.parameters(),
        *(layer.weight for layer in merged_copy.modules() if "Packed" in type(layer).__name__),
    ]
    assert found.merged_copy == sum(tensor.nbytes for tensor in {id(t): t for t in tensors}.values())
    learning = 0
    for each in both.values():
        own = each.direction_model.parameters()
        optimizer = Optimizer(own, Train(), 10)
        for parameter in own.values():
            parameter.grad = torch.zeros_like(parameter)
            learning += parameter.nbytes + parameter.grad.nbytes
        optimizer.step(1.0)
        masters = {key: tensor for key, tensor in optimizer.state().items() if "/step" not in key and tensor.ndim}
        shared = sum(value.nbytes for value in own.values() if value.dtype == torch.float32)
        learning += sum(tensor.nbytes for tensor in masters.values() if tensor.numel() > 1) - shared
    assert found.learning == pytest.approx(learning, rel=0.01)
    kernels = memory.KERNELS * forecast._KERNEL_BYTES
    assert found.process - kernels == pytest.approx(memory.used_bytes(torch.device("cpu")), rel=0.2)


@pytest.mark.parametrize(
    ("settings", "part", "grows"),
    [
        (("train.max_tokens_per_microbatch=4096", "train.batch_size=64"), "training", True),
        (("model.gradient_checkpointing=true",), "training", False),
        (("model.shared=false",), "base", True),
        (("adapter.rank=64",), "learning", True),
        (("generate.max_length_ratio=6.0",), "generating", True),
    ],
)
def test_what_a_recipe_changes_shows(
    write_recipe: WriteRecipe, settings: tuple[str, ...], part: str, grows: bool
) -> None:
    path = write_recipe()
    sizes = []
    for overrides in ((), settings):
        loaded = loader.load(str(path), overrides)
        both = translator.load(loaded.recipe, loaded.folder)
        pairs = {name: [("one two three", "uno dos tres")] * 64 for name in both}
        templates = {name: one.template for name, one in both.items()}
        sizes.append(getattr(forecast.forecast(loaded.recipe, loaded.folder, templates, pairs), part))
    assert sizes[1] > sizes[0] if grows else sizes[1] < sizes[0]


def test_a_run_keeps_its_peak(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    go(write_recipe(), tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["peak_bytes"] == {"cpu": pytest.approx(memory.peak_bytes(torch.device("cpu")), rel=0.05)}
