"""Adapters on a frozen base: creating, activating, merging into a copy, saving and loading."""

import copy
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, LoraRuntimeConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from roundtrip.models import fused_lora, prepacked_linear
from roundtrip.models.model_files import PICKLE, read_json
from roundtrip.models.tensor_files import read_tensors
from roundtrip.recipe.schema import Adapter
from roundtrip.runtime.errors import ModelError, first_line
from roundtrip.runtime.limits import LimitedCallError, call_limited
from roundtrip.runtime.seeding import derive_seed

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Tensors = Mapping[str, torch.Tensor]
_INIT = {"pissa": "pissa_niter_16", "olora": "olora"}
# For a pattern and all names of a model; PEFT does the same a few times.
PATTERN_SECONDS = 1.0
_ALL_LINEAR = "all-linear"
_FOLDER_CURE = f"name a folder that PEFT has saved an adapter to, with {WEIGHTS} and {CONFIG}"
# Settings of PEFT that we compute by, and those that say where an adapter comes from, or only matter while it trains.
# PEFT itself sets fan_in_fan_out by the kind of a layer.
_HONOURED = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "target_modules", "fan_in_fan_out"),
    *("init_lora_weights", "bias", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("lora_dropout", "task_type", "inference_mode", "runtime_config", "megatron_core", "qalora_group_size"),
}
# Initial adapters that leave the base as it was published.
_PLAIN_INIT = (True, False, None, "gaussian", "orthogonal")
_MAX_RANK = 1 << 16
_LAYER_NAME = re.compile(r"[\w.^$\\-]+")
_TARGETS_CURE = 'name linear layers of the model, or "all-linear" for all except the output layer'


def add_adapters(model: nn.Module, settings: Mapping[str, Adapter], seed: int) -> PeftModel:
    """Add one new adapter per direction to a base, in its precision, each initialized from its own seed."""
    if any(adapter.ephemeral_gpu_offload for adapter in settings.values()) and not torch.cuda.is_available():
        problem = "initializing DoRA on a GPU requires a CUDA device, and there is none"
        raise ModelError(problem, place="adapter.ephemeral_gpu_offload", cure="set it to false")
    base_dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    peft_model: PeftModel | None = None
    all_linear = _all_linear(model)
    for name, adapter in settings.items():
        config = lora_config(adapter)
        if adapter.init is not None:
            saved = read_config(Path(adapter.init))
            config.rank_pattern, config.alpha_pattern = saved["rank_pattern"], saved["alpha_pattern"]
        if config.target_modules == _ALL_LINEAR:
            config.target_modules = all_linear
        elif isinstance(config.target_modules, str):
            _check_pattern(config, model, f"adapter.targets ({name})")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT warns that it corrects fan_in_fan_out, and of tied weights, which are refused below.
            warnings.filterwarnings("ignore", "fan_in_fan_out|Model has `tie_word_embeddings", UserWarning)
            torch.manual_seed(derive_seed(seed, "adapter", name))
            try:
                if peft_model is None:
                    peft_model = get_peft_model(model, config, name, autocast_adapter_dtype=False)
                else:
                    peft_model.add_adapter(name, config, autocast_adapter_dtype=False)
            except torch.OutOfMemoryError:
                raise
            except (ValueError, TypeError, RuntimeError) as error:
                raise ModelError(first_line(error), place=f"adapter.targets ({name})", cure=_TARGETS_CURE) from error
    assert peft_model is not None
    _refuse_unmergeable(peft_model)
    for name in settings:
        for parameter in parameters(peft_model, name).values():
            # PEFT creates adapters in float32 and casts only up; a bf16 base trains fastest with bf16 adapters.
            parameter.data = parameter.data.to(base_dtype)
    fused_lora.fuse(peft_model)
    freeze(peft_model)
    return peft_model


def _check_pattern(config: LoraConfig, model: nn.Module, place: str) -> None:
    """Refuse a regular expression that PEFT could not match with the names of the model, or not within a second."""
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters())]

    def match() -> bool:
        convert_peft_config_for_transformers(copy.copy(config), model, None)
        return all([re.fullmatch(str(config.target_modules), name) for name in names])

    try:
        call_limited(match, PATTERN_SECONDS)
    except LimitedCallError as error:
        problem = f"the regular expression {str(config.target_modules)!r} cannot be used: {error}"
        raise ModelError(problem, place=place, cure=_TARGETS_CURE) from error


def _all_linear(model: nn.Module) -> str | set[str]:
    """Return what PEFT is asked for as "all-linear": by name where it would take other layers, or none.

    Left out are routers of experts, which are linear layers with another output; what PEFT refuses (a product in
    recurrent layers that kernels compute from the bare weight); and names that PEFT maps to stacked experts.
    """
    output = model.get_output_embeddings()
    linear = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not output
    }
    is_taken = {name: _is_taken(model, name) for name in {path.rpartition(".")[2] for path in linear}}
    taken = {path for path, layer in linear.items() if is_taken[path.rpartition(".")[2]] and _is_plain(layer)}
    config = LoraConfig(target_modules=_ALL_LINEAR)
    convert_peft_config_for_transformers(config, model, None)
    return _ALL_LINEAR if len(taken) == len(linear) and config.target_modules == _ALL_LINEAR else taken


def _is_plain(layer: nn.Module) -> bool:
    """Return whether a linear layer, perhaps of a class of its model's own, returns a product and nothing else."""
    if not type(layer).__module__.startswith("transformers.models."):
        return True
    x = torch.randn(1, layer.weight.shape[1], generator=torch.Generator().manual_seed(1)).to(layer.weight)
    try:
        return bool(torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=0.01, atol=0.01))
    except (TypeError, RuntimeError):
        return False


def _is_taken(model: nn.Module, name: str) -> bool:
    """Return whether PEFT puts adapters on linear layers of this name, and on nothing else."""
    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
        _check_lora_target_modules_mamba(config, model, name)
    except ValueError:
        return False
    return bool(config.target_modules == {name})


def lora_config(settings: Adapter) -> LoraConfig:
    """Return PEFT's configuration of an adapter.

    LoRA (https://arxiv.org/abs/2106.09685) scales its update by alpha / rank, rsLoRA by alpha / sqrt(rank)
    (https://arxiv.org/abs/2312.03732); DoRA learns magnitude and direction apart (https://arxiv.org/abs/2402.09353);
    for PiSSA and OLoRA see `pissa_olora`.
    """
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets if isinstance(settings.targets, str) else list(settings.targets),
        use_rslora=settings.method in {"rslora", "rsdora"},
        use_dora=settings.method in {"dora", "rsdora"},
        init_lora_weights=_INIT.get(settings.method, True),
        runtime_config=LoraRuntimeConfig(ephemeral_gpu_offload=settings.ephemeral_gpu_offload),
        task_type=TaskType.CAUSAL_LM,
    )


def _refuse_unmergeable(model: PeftModel) -> None:
    """Refuse layers that are not linear, or that share their weight with another part of the model."""
    embedding = model.get_input_embeddings()
    for path, layer in lora_layers(model).items():
        inner = layer.get_base_layer()
        # bitsandbytes' layers are subclasses of nn.Linear.
        if not isinstance(inner, nn.Linear | Conv1D):
            problem = f"'{path}' is a {type(inner).__name__}, only linear layers take an adapter"
        elif embedding is not None and inner.weight is embedding.weight:
            problem = f"'{path}' shares its weight with the embedding, which an adapter would change too"
        else:
            continue
        raise ModelError(problem, place="adapter.targets", cure=_TARGETS_CURE)


def lora_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """Return the layers with adapters, by their paths in the base."""
    return {path: layer for path, layer in model.base_model.model.named_modules() if isinstance(layer, LoraLayer)}


def parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Return the parameters of one adapter by name, in a fixed order."""
    return {key: value for key, value in sorted(model.named_parameters()) if f".{name}." in key and ".lora_" in key}


def activate(model: PeftModel, name: str, *, train: bool) -> None:
    """Activate one adapter; with `train` it alone requires gradients, and dropout is on."""
    model.set_adapter(name, inference_mode=not train)
    model.train(train)


def freeze(model: PeftModel) -> None:
    """Switch to eval mode, where nothing requires a gradient."""
    model.requires_grad_(False).eval()


@torch.no_grad()
def write_merged(merged_copy: nn.Module, model: PeftModel, name: str | None) -> None:
    """Write the weights of the base, merged with one adapter or with none, into a plain copy; they are rounded once."""
    targets = dict(merged_copy.named_modules())
    for path, layer in lora_layers(model).items():
        weight = layer.get_base_layer().weight if name is None else _merged(layer, name)
        prepacked_linear.write_weight(targets[path], weight)


def _merged(layer: LoraLayer, name: str) -> torch.Tensor:
    """Return `W + scale B A` of one linear layer, float32; DoRA scales each of its rows to the learned magnitude."""
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
    saved = {key.replace(f".{name}.", ".", 1): value.detach() for key, value in parameters(model, name).items()}
    # PEFT drops the end of DoRA's magnitudes, one number for each output of a layer.
    return {key.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): saved[key] for key in saved}


def export(model: PeftModel, name: str, folder: Path, base: str, initial_adapter: Tensors | None = None) -> None:
    """Save an adapter, trained on the hub id or folder `base`, as PEFT does.

    The base as published still has an initial adapter that was subtracted from it, see `pissa_olora`: the adapter is
    then saved with twice the rank, so that it adds the trained one and subtracts the initial one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved = {key: value.cpu() for key, value in tensors(model, name).items()}
    config: dict[str, Any] = model.peft_config[name].to_dict()
    config |= {"inference_mode": True, "base_model_name_or_path": base}
    if initial_adapter is not None:
        for key, value in initial_adapter.items():
            is_a = ".lora_A." in key
            saved[key] = torch.cat([saved[key], value if is_a else -value], 0 if is_a else 1)
        config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"], "init_lora_weights": True}
    save_file({key: value.contiguous() for key, value in saved.items()}, folder / WEIGHTS)
    text = json.dumps(config, indent=2, sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def as_exported(settings: Adapter, folder: Path | None = None) -> Adapter:
    """Return the settings of an adapter as `export` saves it into a folder, for the base as published."""
    update: dict[str, Any] = {"init": folder and str(folder.absolute()), "ephemeral_gpu_offload": False}
    if settings.method in _INIT:
        update |= {"method": "lora", "rank": 2 * settings.rank, "alpha": 2 * settings.alpha}
    return settings.model_copy(update=update)


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter folder."""
    path = folder / WEIGHTS
    if not path.exists() and (pickle := path.with_suffix(".bin")).exists():
        problem = f"{pickle.name} is {PICKLE}"
        cure = "if you trust its author, load it with PEFT and save it again"
        raise ModelError(problem, place=str(folder), cure=cure)
    if not path.exists():
        raise ModelError(f"no readable adapter: it has no {WEIGHTS}", place=str(folder), cure=_FOLDER_CURE)
    return read_tensors(path, _FOLDER_CURE)


def read_config(folder: Path) -> dict[str, Any]:
    """Return PEFT's configuration of an adapter folder: of a kind that we compute as PEFT does, and of the right types.

    Raises:
        ModelError: another kind; the first setting that we do not honour is named.
    """
    config, place = read_json(folder / CONFIG), str(folder / CONFIG)
    rank, alpha, targets = config.get("r"), config.get("lora_alpha", ""), config.get("target_modules")
    names = targets if isinstance(targets, list) else [targets or ""]
    is_supported = {
        "peft_type": config.get("peft_type") == "LORA",
        "r": type(rank) is int and 1 <= rank <= _MAX_RANK,
        "lora_alpha": type(alpha) in (int, float) and 0 < alpha < _MAX_RANK**2,
        "target_modules": targets != [] and all(isinstance(name, str) for name in names),
        "bias": config.get("bias") in (None, "none"),
        "init_lora_weights": config.get("init_lora_weights") in _PLAIN_INIT,
        **{key: type(config.get(key)) in (bool, type(None)) for key in ("use_rslora", "use_dora")},
        **{key: isinstance(config.get(key), str | None) for key in ("base_model_name_or_path", "revision")},
    }
    for key, is_valid in is_supported.items():
        if not is_valid:
            problem = f"its {key} is {config.get(key)!r}, which is not supported"
            raise ModelError(problem, place=place, cure=_FOLDER_CURE)
    for key in ("rank_pattern", "alpha_pattern"):
        config[key] = _checked_pattern(config.get(key) or {}, key, place)
    neutral = LoraConfig().to_dict()
    for key, value in config.items():
        # What is empty is not in use, as what is None; PEFT may have settings that this version does not know yet.
        if key not in _HONOURED and value != neutral.get(key) and value not in (None, False, 0, "", [], {}):
            problem = f"its {key} is {value!r}, which is not supported"
            cure = f"train an adapter without {key}, or merge it into its base with PEFT and name that as the model"
            raise ModelError(problem, place=place, cure=cure)
    return config


def _checked_pattern(pattern: Any, key: str, place: str) -> dict[str, int | float]:
    """Return ranks or alphas by patterns of layer names; PEFT matches them, and those that repeat might not end."""
    if not isinstance(pattern, dict):
        raise ModelError(f"its {key} is {pattern!r}, not an object", place=place, cure=_FOLDER_CURE)
    for name, value in pattern.items():
        types = (int,) if key == "rank_pattern" else (int, float)
        if type(value) not in types or not 0 < value <= _MAX_RANK or not _LAYER_NAME.fullmatch(name):
            problem = f"its {key} has {name!r}: {value!r}, which is no layer, or no number up to {_MAX_RANK:,}"
            cure = "name layers by letters, digits and `_ . ^ $ \\ -` alone, and give each a number above 0"
            raise ModelError(problem, place=place, cure=cure)
    return pattern


@torch.no_grad()
def load(model: PeftModel, name: str, saved: Tensors, initial_adapter: Tensors | None = None) -> None:
    """Copy saved values into an adapter's parameters; with an initial adapter, see `export`, the first half of each."""
    own, cure = tensors(model, name), "it was trained on another base or other targets; name one that fits"
    if own.keys() != saved.keys():
        key = sorted(own.keys() ^ saved.keys())[0]
        problem = f"the saved adapter '{name}' does not fit this base: only one of them has '{key}'"
        raise ModelError(problem, cure=cure)
    for key, value in own.items():
        new = saved[key]
        if initial_adapter is not None:
            new = new.chunk(2, 0 if ".lora_A." in key else 1)[0]
        if value.shape != new.shape:
            problem = f"the saved adapter '{name}' has shape {tuple(new.shape)} at '{key}'"
            raise ModelError(f"{problem}, expected {tuple(value.shape)}", cure=cure)
        value.copy_(new)


def init_from_folder(model: PeftModel | None, name: str, settings: Adapter, folder: Path) -> None:
    """Initialize an adapter with an earlier one, which PEFT or `export` has saved; without a model only check it."""
    expected = lora_config(settings)
    try:
        config = read_config(folder)
        for key in ("r", "lora_alpha", "use_rslora", "use_dora"):
            if (config.get(key) or 0) != getattr(expected, key):
                problem = f"its {key} is {config.get(key)!r}, the recipe's {getattr(expected, key)!r}"
                raise ModelError(problem, cure="set method, rank and alpha of the recipe to those of the adapter")
        saved = read(folder)
        if model is not None:
            load(model, name, saved)
    except ModelError as error:
        problem = f"{error.place}: {error.problem}" if error.place else error.problem
        place = f"adapter.{name}, init = '{folder}'"
        raise ModelError(problem, place=place, cure=error.cure or _FOLDER_CURE) from error
