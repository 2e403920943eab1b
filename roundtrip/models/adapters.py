"""Adapters on a frozen base: making, choosing, merging into a scratch copy, saving and loading."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, LoraRuntimeConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from roundtrip.models import fused_lora, prepacked_linear
from roundtrip.recipe.schema import Adapter
from roundtrip.runtime.errors import ModelError, first_line
from roundtrip.runtime.seeding import derive_seed

_TARGETS = "adapter.targets"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


_INIT = {"pissa": "pissa_niter_16", "olora": "olora"}
# Beside the matrices: of DoRA, one number for each output of a layer.
_MAGNITUDE = "lora_magnitude_vector"


def add_adapters(model: nn.Module, recipe: Mapping[str, Adapter], seed: int) -> PeftModel:
    """Put one fresh adapter per direction on a base.

    Each adapter is initialised from its own seed, so that neither depends on the order or on what ran before.

    Args:
        recipe: by name of the adapter.

    Raises:
        ModelError: PEFT finds no layer of that name, or cannot put this kind of adapter on it.
    """
    if any(one.ephemeral_gpu_offload for one in recipe.values()) and not torch.cuda.is_available():
        raise ModelError(
            "there is no GPU to do DoRA's start on", place="adapter.ephemeral_gpu_offload", cure="set it to false"
        )
    peft_model: PeftModel | None = None
    for name, settings in recipe.items():
        upcast = settings.dtype == "float32"
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # It tells that it sets fan_in_fan_out rightly, and of tied weights, which are refused below.
            warnings.filterwarnings("ignore", "fan_in_fan_out|Model has `tie_word_embeddings", UserWarning)
            torch.manual_seed(derive_seed(seed, "adapter", name))
            try:
                if peft_model is None:
                    peft_model = get_peft_model(
                        model, config_of(settings), adapter_name=name, autocast_adapter_dtype=upcast
                    )
                else:
                    peft_model.add_adapter(name, config_of(settings), autocast_adapter_dtype=upcast)
            except torch.OutOfMemoryError:
                raise
            except (ValueError, TypeError, RuntimeError) as error:
                raise ModelError(first_line(error), place=f"{_TARGETS} ({name})") from error
    assert peft_model is not None
    _refuse_unmergeable(peft_model)
    for name, settings in recipe.items():
        for parameter in parameters(peft_model, name).values():
            # PEFT makes adapters in float32 and casts only up; a bf16 base trains fastest with bf16 adapters.
            if settings.dtype == "base":
                parameter.data = parameter.data.to(_base_dtype(peft_model))
    fused_lora.fuse(peft_model)
    freeze(peft_model)
    return peft_model


def config_of(recipe: Adapter) -> LoraConfig:
    """Return PEFT's settings for an adapter.

    LoRA (https://arxiv.org/abs/2106.09685) scales its update by alpha / rank, rsLoRA by alpha / sqrt(rank)
    (https://arxiv.org/abs/2312.03732); DoRA learns magnitude and direction apart (https://arxiv.org/abs/2402.09353);
    PiSSA (https://arxiv.org/abs/2404.02948) and OLoRA (https://arxiv.org/abs/2406.01775) start from a part of the
    base's own weights, which they take out of it.
    """
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=recipe.targets if isinstance(recipe.targets, str) else list(recipe.targets),
        layers_to_transform=None if recipe.layers is None else list(recipe.layers),
        use_rslora=recipe.method in {"rslora", "rsdora"},
        use_dora=recipe.method in {"dora", "rsdora"},
        init_lora_weights=_INIT.get(recipe.method, True),
        runtime_config=LoraRuntimeConfig(ephemeral_gpu_offload=recipe.ephemeral_gpu_offload),
        task_type=TaskType.CAUSAL_LM,
    )


def _refuse_unmergeable(model: PeftModel) -> None:
    """Refuse layers whose merged weight would reach other places of the model, or that are no matrix product."""
    tied = [layer.weight for layer in (model.get_input_embeddings(),) if layer is not None]
    for path, layer in model.base_model.model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        inner = layer.get_base_layer()
        # bitsandbytes' layers are linear ones too.
        if not isinstance(inner, nn.Linear | Conv1D):
            raise ModelError(
                f"'{path}' is a {type(inner).__name__}, only linear layers take an adapter", place=_TARGETS
            )
        if any(inner.weight is weight for weight in tied):
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


def activate(model: PeftModel, name: str, *, train: bool) -> None:
    """Make one adapter the active one; with `train` it alone requires gradients and dropout is on."""
    model.set_adapter(name, inference_mode=not train)
    model.train(train)


def freeze(model: PeftModel) -> None:
    """Leave training: nothing requires a gradient, dropout is off."""
    model.requires_grad_(False)
    model.eval()


@torch.no_grad()
def write_merged(merged_copy: nn.Module, model: PeftModel, name: str | None) -> None:
    """Write the weights that the base and one adapter come to into a plain copy; None writes those of the base.

    For an adapter that has changed its base see `moving`.

    The sum is formed in float32 and rounded once, so nothing drifts however often it is done.
    """
    targets = dict(merged_copy.named_modules())
    for path, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            prepacked_linear.write_weight(
                targets[path], layer.get_base_layer().weight if name is None else merged(layer, name)
            )


def merged(layer: LoraLayer, name: str) -> torch.Tensor:
    """Return the weight that one linear layer and its adapter come to, float32.

    That is `W + scale B A`; with DoRA each of its rows is brought to the length that was learnt.
    """
    weight = layer.get_base_layer().weight.float()
    if name not in layer.lora_A:  # not a target of this direction
        return weight
    weight = (weight.T if layer.fan_in_fan_out else weight) + scaled_product(layer, name)
    if name in layer.lora_magnitude_vector:
        weight = weight * (layer.lora_magnitude_vector[name].weight.float() / weight.norm(dim=1))[:, None]
    return weight.T if layer.fan_in_fan_out else weight


def scaled_product(layer: LoraLayer, name: str) -> torch.Tensor:
    """Return `scale B A` of one linear layer, float32, shape (out, in)."""
    return layer.lora_B[name].weight.float() @ layer.lora_A[name].weight.float() * layer.scaling[name]


def tensors(model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    """Return the parameters of one adapter under the names that PEFT saves them by."""
    return {_saved_name(key, name): value.detach() for key, value in parameters(model, name).items()}


def _saved_name(key: str, name: str) -> str:
    plain = key.replace(f".{name}.", ".", 1)
    return plain.removesuffix(".weight") if plain.endswith(f"{_MAGNITUDE}.weight") else plain


def export(
    model: PeftModel, name: str, folder: Path, base: str, initial_adapter: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Save an adapter as PEFT does.

    Args:
        base: where the base came from.
        began: what the adapter took out of its base, see `moving`. The base as published still has it, so an adapter
            of twice the rank is saved that adds what was learnt and takes away what it began as.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved = {key: value.cpu() for key, value in tensors(model, name).items()}
    config: dict[str, Any] = model.peft_config[name].to_dict()
    config |= {"inference_mode": True, "base_model_name_or_path": base}
    if initial_adapter is not None:
        for key, value in initial_adapter.items():
            side = 0 if ".lora_A." in key else 1
            saved[key] = torch.cat([saved[key], value if side == 0 else -value], side)
        config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"], "init_lora_weights": True}
    save_file({key: value.contiguous() for key, value in saved.items()}, folder / WEIGHTS)
    text = json.dumps(config, indent=2, sort_keys=True, default=_plain)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def as_exported(recipe: Adapter) -> Adapter:
    """Return the settings of an adapter as `export` saves it, for the base as published."""
    twice = {"method": "lora", "rank": 2 * recipe.rank, "alpha": 2 * recipe.alpha} if recipe.method in _INIT else {}
    return recipe.model_copy(update={"init": None, "ephemeral_gpu_offload": False, **twice})


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set) else str(value)


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter folder.

    Raises:
        ModelError: there is none, or it is broken.
    """
    path = folder / WEIGHTS
    if not path.exists() and (pickle := path.with_suffix(".bin")).exists():
        raise ModelError(
            f"{pickle.name} is a pickle: to load it is to run a program of whoever made it, which is not done here",
            place=str(folder),
            cure="if you trust its author, load it with PEFT and save it again",
        )
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"no readable adapter: {error}", place=str(path)) from error


@torch.no_grad()
def load(
    model: PeftModel,
    name: str,
    saved: Mapping[str, torch.Tensor],
    initial_adapter: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Put saved values into an adapter's parameters.

    Args:
        saved: as in `adapter_model.safetensors`: names without the adapter's.
        began: see `export`; the first half of what was saved is what was learnt.

    Raises:
        ModelError: a tensor is missing, left over or of another shape.
    """
    own = {_saved_name(key, name): value for key, value in parameters(model, name).items()}
    if own.keys() != saved.keys():
        odd = sorted(own.keys() ^ saved.keys())[0]
        raise ModelError(f"the saved adapter '{name}' does not fit this base: '{odd}' is on one side only")
    for key, value in own.items():
        new = saved[key]
        if initial_adapter is not None:
            new = new.chunk(2, 0 if ".lora_A." in key else 1)[0]
        if value.shape != new.shape:
            raise ModelError(f"the saved adapter '{name}' has {tuple(new.shape)} at '{key}', here {tuple(value.shape)}")
        value.copy_(new)


def init_from_folder(model: PeftModel, name: str, recipe: Adapter, folder: Path) -> None:
    """Start an adapter from an earlier one instead of from nothing.

    Args:
        folder: an adapter as PEFT saves it.

    Raises:
        ModelError: there is none, or it is of another kind, rank or base.
    """
    place = f"adapter.{name}, init = '{folder}'"
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"no readable adapter: {error}", place=place) from error
    wanted = config_of(recipe)
    for key in ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora"):
        before, here = config.get(key), getattr(wanted, key)
        if before != here:
            raise ModelError(
                f"it has {key} {before!r}, the recipe {here!r}",
                place=place,
                cure="set method, rank and alpha of the recipe to those of the adapter",
            )
    try:
        load(model, name, read(folder))
    except ModelError as error:
        raise ModelError(
            error.problem, place=place, cure="it was made for another base or for other targets; name one that fits"
        ) from error
