"""How much memory a run will take at its peak, worked out from the recipe and some lines before anything is loaded.

The model is made without weights (on PyTorch's meta device), and a forward pass over it tells what a backward pass
would need to keep, layer by layer; the rest is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import masking_utils

from roundtrip.engine.generate import length_limit
from roundtrip.engine.translator import expansion_of
from roundtrip.models import adapters, attention, base_model, prepacked_linear, residual_init
from roundtrip.recipe.sampling_schedule import sampling_settings
from roundtrip.recipe.schema import Adapter, Model, Recipe
from roundtrip.runtime.errors import ModelError, RoundtripError, first_line
from roundtrip.runtime.memory import KERNELS, used_bytes
from roundtrip.tokens.batching import token_budget_batches
from roundtrip.tokens.prompt_template import PromptTemplate

# Of bitsandbytes, with the numbers by which blocks of weights are scaled.
_BYTES_A_WEIGHT = {"8bit": 1.02, "4bit": 0.53}
# Bytes of one logit when the loss is formed: as the model gives it, in float32, as log-probability, and the gradients
# of the last and the first.
_BYTES_A_LOGIT = {torch.float32: 4 + 4 + 4, torch.bfloat16: 2 + 4 + 4 + 4}
# The base's logit beside it, for the distance between the two.
_BYTES_OF_BASE_LOGIT = 4 + 4
# On a CPU, what the C library takes for tensors of ever new sizes by what they hold, until it is trimmed. Measured.
_HOLES = 1.3
# Of one prepared product of matrices on a CPU.
_KERNEL_BYTES = 350 * 1024


@dataclass(frozen=True)
class Forecast:
    """Bytes at the peak, by what holds them.

    Attributes:
        process: what Python and its libraries hold on a CPU, prepared kernels with them; 0 on a GPU, and where the
            system does not say.
        base: weights of the base or both bases.
        scratch: the copy to generate from.
        learning: what learns, its float32 masters, and the optimizer's two averages.
        training: activations, gradients and logits of the largest forward pass.
        generating: cache and logits of the largest batch.
    """

    process: int
    base: int
    merged_copy: int
    learning: int
    training: int
    generating: int

    @property
    def peak(self) -> int:
        held = self.process + self.base + self.merged_copy + self.learning
        return held + int((_HOLES if self.process else 1.0) * max(self.training, self.generating))

    def __str__(self) -> str:
        parts = {"libraries": self.process, "base": self.base, "copy to generate from": self.merged_copy}
        parts |= {"what learns, and its optimizer": self.learning, "a training pass": self.training}
        parts |= {"or a batch of hypotheses": self.generating}
        return f"memory at the peak: about {_gib(self.peak)} (" + ", ".join(
            f"{name} {_gib(size)}" for name, size in parts.items() if size
        ) + ")"  # fmt: skip


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def forecast(
    recipe: Recipe,
    folder: Path,
    templates: Mapping[str, PromptTemplate],
    pairs: Mapping[str, Sequence[tuple[str, str]]],
) -> Forecast:
    """Work out the peak.

    A model that looks at values on its way, as some mixtures of experts do, cannot be walked through without any.

    Args:
        templates, pairs: by direction; the pairs stand for the lines of the run.

    Raises:
        SourceError, ModelError: the model cannot be had, or cannot be walked through.
    """
    try:
        return _forecast(recipe, folder, templates, pairs)
    except RoundtripError:
        raise
    except Exception as error:
        raise ModelError(f"its memory cannot be forecast: {first_line(error)}", place="model") from error


def _forecast(
    recipe: Recipe,
    folder: Path,
    templates: Mapping[str, PromptTemplate],
    pairs: Mapping[str, Sequence[tuple[str, str]]],
) -> Forecast:
    names = list(recipe.model)
    device = base_model.choose_device(recipe.model[names[0]].device)
    models = names[:1] if recipe.one_base else names
    weights = merged_copy = learning = training = generating = 0
    for name in models:
        spec = recipe.model[name]
        own = {one: recipe.adapter[one] for one in (names if recipe.one_base else [name])}
        dtype = base_model.choose_dtype(spec.dtype, base_model.choose_device(spec.device))
        model = _without_weights(spec, folder, dtype)
        weights += _loaded(model, spec, dtype)
        whole = own[name].method == "full"
        if not whole and spec.merged_copy and spec.quantize == "none":
            merged_copy += _copied(model, device, dtype)
        learner: Any = model if whole else adapters.add_adapters(model, own, 1)
        for one in own:
            parameters = list(model.parameters()) if whole else list(adapters.parameters(learner, one).values())
            averaged = recipe.train.ema_decay > 0
            learning += sum(_learning(parameter, whole=whole, averaged=averaged) for parameter in parameters)
            if own[one].method in residual_init.METHODS:
                learning += sum(layer.weight.nbytes for layer in model.modules() if isinstance(layer, nn.Linear))
        for one in own:
            rows = templates[one].rows(pairs[one])
            sizes = [(len(row.ids), len(row.ids) - row.start) for row in rows]
            training = max(training, _training(recipe, learner, one, own[one], spec, device, sizes))
            generating = max(
                generating,
                _generating(recipe, model, templates[one], pairs[one], device, dtype),
            )
    held = used_bytes(device)
    process = held + KERNELS * _KERNEL_BYTES if held and device.type != "cuda" else 0
    return Forecast(process, weights, merged_copy, learning, training, generating)


def _without_weights(spec: Model, folder: Path, dtype: torch.dtype) -> Any:
    """Return a model of the right shapes that holds nothing."""
    with torch.device("meta"):
        model = base_model.uninitialized(spec, folder, dtype)
    return model.requires_grad_(False).eval()


def _copied(model: Any, device: torch.device, dtype: torch.dtype) -> int:
    """Return the size of a scratch copy; packed, a tied output layer has a weight of its own."""
    size = sum(int(parameter.nbytes) for parameter in model.parameters())
    if (
        device.type == "cpu"
        and prepacked_linear.is_supported(dtype)
        and getattr(model.config, "tie_word_embeddings", False)
    ):
        size += int(model.get_output_embeddings().weight.nbytes)
    return size


def _loaded(model: Any, spec: Model, dtype: torch.dtype) -> int:
    """Return the size of the base; where it is quantized its linear layers are, but for the output layer."""
    size = sum(int(parameter.nbytes) for parameter in model.parameters())
    if spec.quantize == "none":
        return size
    head = model.get_output_embeddings()
    linear = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]
    return size - int(sum(weight.numel() for weight in linear) * (dtype.itemsize - _BYTES_A_WEIGHT[spec.quantize]))


def _learning(parameter: nn.Parameter, *, whole: bool, averaged: bool) -> int:
    """Return what a parameter that learns takes, and its gradient; of a whole model it is in the base already.

    Args:
        averaged: its past is averaged, which takes a float32 number, and one more while the average stands in for it.
    """
    masters = 0 if parameter.dtype == torch.float32 else 4
    own = 0 if whole else parameter.dtype.itemsize
    return int(parameter.numel() * (own + masters + 4 + 4 + parameter.dtype.itemsize + (8 if averaged else 0)))


def _training(
    recipe: Recipe,
    model: Any,
    name: str,
    adapter: Adapter,
    spec: Model,
    device: torch.device,
    sizes: Sequence[tuple[int, int]],
) -> int:
    """Return what the largest forward pass keeps for its backward pass.

    Args:
        sizes: tokens and labels of each row.
    """
    limit = recipe.train.max_length
    rows = sorted((size for size in sizes if size[0] <= limit), reverse=True)[: recipe.train.batch_size]
    lengths = [size for size, _ in rows]
    inner = model if adapter.method == "full" else model.base_model.model
    names = attention.candidates(spec.attention, device)
    is_packed = recipe.train.packing != "never" and names[0] in attention.READ_BOUNDS
    # FlashAttention keeps no more than `varlen` does without its scores; it cannot be asked without a GPU.
    attention.choose(inner, attention.VARLEN if is_packed else "eager" if names[-1] == "eager" else "sdpa")
    groups = list(
        token_budget_batches(range(len(rows)), lengths, recipe.train.max_tokens_per_microbatch, packed=is_packed)
    )
    if spec.gradient_checkpointing:
        base_model.checkpoint_activations(inner)
    if adapter.method == "full":
        inner.requires_grad_(True).train()
    else:
        adapters.activate(model, name, train=True)
    vocabulary = inner.get_output_embeddings().weight.shape[0]
    dtype = next(inner.parameters()).dtype
    largest = 0
    for group in groups[:1]:
        kept = _kept_by(inner, [lengths[i] for i in group], is_packed)
        logits = sum(rows[i][1] for i in group) * vocabulary
        largest = max(largest, kept + (0 if spec.use_liger_kernel else logits * _BYTES_A_LOGIT[dtype]))
        if recipe.train.kl_weight:
            # Two passes over the target text, whose logits are compared in float32, by whatever kernel the loss goes.
            largest = max(largest, kept + logits * (_BYTES_A_LOGIT[dtype] + _BYTES_OF_BASE_LOGIT))
    adapters.freeze(model)
    return largest


def _kept_by(model: Any, lengths: Sequence[int], is_packed: bool) -> int:
    """Return the bytes that autograd holds after the decoder has run over rows of such lengths."""
    held: dict[int, torch.UntypedStorage] = {}
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = storage
        return tensor

    if is_packed:
        bounds = torch.zeros(len(lengths) + 1, dtype=torch.int32, device="meta")
        given: dict[str, Any] = {f"cu_seq_lens_{side}": bounds for side in "qk"}
        given |= {f"max_length_{side}": max(lengths) for side in "qk"}
        shape = (1, sum(lengths))
    else:
        shape = (len(lengths), max(lengths))
        # A mask of this shape is taken as it is: to make one, values would have to be looked at.
        mask = torch.zeros(1, 1, 1, shape[1], dtype=next(model.parameters()).dtype, device="meta")
        given = {"attention_mask": mask}
    ids = torch.zeros(shape, dtype=torch.int64, device="meta")
    # Places are looked at for rows that are packed without bounds; here there is nothing to look at.
    unseen = mock.patch.object(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    with unseen, torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        model.get_decoder()(input_ids=ids, use_cache=False, **given)
    return sum(storage.nbytes() for storage in held.values())


def _generating(
    recipe: Recipe,
    model: Any,
    template: PromptTemplate,
    pairs: Sequence[tuple[str, str]],
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """Return cache, logits and the prompts' forward pass of the largest batch of hypotheses."""
    config, settings = model.config.get_text_config(decoder=True), recipe.generate
    # The most that is asked for in any round: with good models, `auto` samples.
    most = sampling_settings(settings, None if recipe.blind else 100.0)
    samples, heat = (most.num_candidates, most.heat) if recipe.rounds.count else (1, 0.0)
    prompts = [len(prompt) for prompt in template.prompts([source for source, _ in pairs])]
    grown = expansion_of(template, pairs)
    limits = [length_limit(math.ceil(grown * max(1, prompt - template.num_fixed)), settings) for prompt in prompts]
    longest = max(range(len(prompts)), key=lambda i: prompts[i])
    width = prompts[longest] + limits[longest] + 1
    num_lines = max(recipe.rounds.monolingual_lines if recipe.rounds.count else 0, 64)
    rows = min(max(samples, settings.max_tokens_per_batch // width), num_lines * samples)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * rows * width * heads * size * dtype.itemsize
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    prompt_pass = 3 * rows * prompts[longest] * wide * dtype.itemsize
    # As the model gives it, in float32, and twice more where it is sampled from.
    a_logit = dtype.itemsize + 4 + (8 if heat > 0 else 0)
    logits = rows * int(model.get_output_embeddings().weight.shape[0]) * a_logit
    return int(cache + max(prompt_pass, logits))
