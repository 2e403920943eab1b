"""Two LoRA adapters on one frozen base: making, choosing, merging into a scratch copy, saving and loading."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from roundtrip.errors import ModelError, first_line
from roundtrip.recipe import Adapter
from roundtrip.text.stream import derive

_TARGETS = "adapter.targets"


def add(model: nn.Module, recipe: Adapter, names: Iterable[str], seed: int) -> PeftModel:
    """Put one fresh adapter per name on a base.

    Each adapter is initialised from its own seed, so that neither depends on the order or on what ran before.

    Raises:
        ModelError: PEFT finds no layer of that name.
    """
    peft_model: PeftModel | None = None
    for name in names:
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules=recipe.targets if isinstance(recipe.targets, str) else list(recipe.targets),
            task_type=TaskType.CAUSAL_LM,
        )
        upcast = recipe.dtype == "float32"
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # It tells that it sets fan_in_fan_out rightly, and of tied weights, which are refused below.
            warnings.filterwarnings("ignore", "fan_in_fan_out|Model has `tie_word_embeddings", UserWarning)
            torch.manual_seed(derive(seed, "adapter", name))
            try:
                if peft_model is None:
                    peft_model = get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=upcast)
                else:
                    peft_model.add_adapter(name, config, autocast_adapter_dtype=upcast)
            except ValueError as error:
                raise ModelError(first_line(error), place=_TARGETS) from error
    assert peft_model is not None
    _refuse_unmergeable(peft_model)
    for name in names:
        for parameter in parameters(peft_model, name).values():
            # PEFT makes adapters in float32 and casts only up; a bf16 base trains fastest with bf16 adapters.
            if recipe.dtype == "base":
                parameter.data = parameter.data.to(_base_dtype(peft_model))
    freeze(peft_model)
    return peft_model


def _refuse_unmergeable(model: PeftModel) -> None:
    """Refuse layers whose merged weight would reach other places of the model, or that are no matrix product."""
    tied = [layer.weight.data_ptr() for layer in (model.get_input_embeddings(),) if layer is not None]
    for path, layer in model.base_model.model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        inner = layer.get_base_layer()
        if not isinstance(inner, nn.Linear | Conv1D):
            raise ModelError(
                f"'{path}' is a {type(inner).__name__}, only linear layers take an adapter", place=_TARGETS
            )
        if inner.weight.data_ptr() in tied:
            raise ModelError(
                f"'{path}' shares its weight with the embedding, which an adapter would change too",
                place=_TARGETS,
                cure='leave it out; "all-linear" does',
            )


def _base_dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for n, p in model.named_parameters() if ".lora_" not in n and p.is_floating_point())


def parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Return the parameters of one adapter by name, in a fixed order."""
    return {key: value for key, value in sorted(model.named_parameters()) if f".{name}." in key and ".lora_" in key}


def choose(model: PeftModel, name: str, *, train: bool) -> None:
    """Make one adapter the active one; with `train` it alone requires gradients and dropout is on."""
    model.set_adapter(name, inference_mode=not train)
    model.train(train)


def freeze(model: PeftModel) -> None:
    """Leave training: nothing requires a gradient, dropout is off."""
    model.requires_grad_(False)
    model.eval()


@torch.no_grad()
def write_merged(scratch: nn.Module, model: PeftModel, name: str | None) -> None:
    """Write `W + scale * B A` of one adapter into the scratch copy, from the frozen base; None writes the base.

    The sum is formed in float32 and rounded once, so nothing drifts however often it is done.
    """
    targets = dict(scratch.named_modules())
    for path, layer in model.base_model.model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        weight = layer.get_base_layer().weight
        merged = weight if name is None else weight.float() + delta(layer, name)
        targets[path].weight.copy_(merged)


def delta(layer: LoraLayer, name: str) -> torch.Tensor:
    """Return what an adapter adds to the weight of one linear layer, in float32, shape (out, in)."""
    product = layer.lora_B[name].weight.float() @ layer.lora_A[name].weight.float() * layer.scaling[name]
    return product.T if layer.fan_in_fan_out else product


def export(model: PeftModel, names: Iterable[str], folder: Path, base: str) -> None:
    """Save adapters as PEFT does, one folder each below `folder`."""
    from peft import get_peft_model_state_dict

    for name in names:
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        tensors = get_peft_model_state_dict(model, adapter_name=name)
        save_file(
            {key: value.contiguous().cpu() for key, value in tensors.items()},
            target / "adapter_model.safetensors",
        )
        config: dict[str, Any] = model.peft_config[name].to_dict()
        config |= {"inference_mode": True, "base_model_name_or_path": base}
        text = json.dumps(config, indent=2, sort_keys=True, default=_plain)
        (target / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set) else str(value)


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter folder.

    Raises:
        ModelError: there is none, or it is broken.
    """
    path = folder / "adapter_model.safetensors"
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"no readable adapter: {error}", place=str(path)) from error


@torch.no_grad()
def load(model: PeftModel, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put saved values into an adapter's parameters.

    Args:
        tensors: as in `adapter_model.safetensors`: names without the adapter's.

    Raises:
        ModelError: a tensor is missing, left over or of another shape.
    """
    own = {key.replace(f".{name}.", ".", 1): value for key, value in parameters(model, name).items()}
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())[0]
        raise ModelError(f"the saved adapter '{name}' does not fit this base: '{odd}' is on one side only")
    for key, value in own.items():
        if value.shape != tensors[key].shape:
            raise ModelError(
                f"the saved adapter '{name}' has {tuple(tensors[key].shape)} at '{key}', here {tuple(value.shape)}"
            )
        value.copy_(tensors[key])
