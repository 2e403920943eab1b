"""PiSSA (https://arxiv.org/abs/2404.02948) and OLoRA (https://arxiv.org/abs/2406.01775): adapters that begin with the
strongest part of the base, from which it is subtracted. Training runs on `W - scale B0 A0` of the published `W`; what
is generated, scored or saved comes from `W + scale (B A - B0 A0)`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from roundtrip.models import adapters, prepacked_linear
from roundtrip.models.adapters import Tensors, lora_layers
from roundtrip.models.tensor_files import read_tensors
from roundtrip.runtime.atomic_io import atomic_path
from roundtrip.runtime.errors import ModelError

METHODS = ("pissa", "olora")


@dataclass(frozen=True)
class ResidualBase:
    """What an adapter has subtracted from its base, on the CPU."""

    initial_adapter: Tensors  # under the names that PEFT saves them by
    published: Tensors  # the weights of the layers as they were, by path


def linear_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the weights of all linear layers, before adapters are put on them."""
    return {
        path: layer.weight.detach().to("cpu", copy=True)
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
    }


@torch.no_grad()
def subtract_from_base(model: PeftModel, name: str, before: Tensors, path: Path | None) -> ResidualBase:
    """Subtract a new adapter from its base, as `linear_weights` returned it before PEFT has changed it.

    The adapter is read from the file at `path`, or written to it, since another machine or another number of threads
    decomposes a matrix otherwise.
    """
    if path is not None and path.exists():
        try:
            adapters.load(model, name, read_tensors(path))
        except ModelError as error:
            problem = f"the initial adapter of {name} cannot be read: {error.problem}"
            raise ModelError(problem, place=str(path), cure="restore this file, or start a new run") from error
    initial_adapter = {key: value.to("cpu", copy=True) for key, value in adapters.tensors(model, name).items()}
    if path is not None and not path.exists():
        with atomic_path(path) as temporary:
            save_file({key: value.contiguous() for key, value in initial_adapter.items()}, temporary)
    published = {key: before[key] for key, layer in lora_layers(model).items() if name in layer.lora_A}
    for key, layer in lora_layers(model).items():
        if key in published:
            weight, product = layer.get_base_layer().weight, adapters.scaled_product(layer, name)
            weight.copy_(before[key].to(weight.device).float() - (product.T if layer.fan_in_fan_out else product))
    return ResidualBase(initial_adapter, published)


@torch.no_grad()
def write_merged_residual(merged_copy: nn.Module, model: PeftModel, name: str | None, residual: ResidualBase) -> None:
    """Write `W + scale (B A - B0 A0)` of one direction into a plain copy; for None `W` as published."""
    targets = dict(merged_copy.named_modules())
    layers = lora_layers(model)
    for path, published in residual.published.items():
        layer = layers[path]
        weight = published.to(layer.get_base_layer().weight.device).float()
        if name is not None:
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            key = f"base_model.model.{path}.lora_{{}}.weight"
            first, second = (residual.initial_adapter[key.format(side)].to(weight.device) for side in "AB")
            product = torch.cat([b, -second], 1).float() @ torch.cat([a, first], 0).float() * layer.scaling[name]
            weight = weight + (product.T if layer.fan_in_fan_out else product)
        prepacked_linear.write_weight(targets[path], weight)
