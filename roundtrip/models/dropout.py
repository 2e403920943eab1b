"""Dropout of models whose weights are all trained (https://arxiv.org/abs/1706.03762, section 5.4)."""

from typing import Any

import torch
from torch import nn

from roundtrip.runtime.errors import ModelError

# Rates that layers of transformers read from an attribute of their own.
_RATES = ("attention_dropout", "dropout")
# What a block of Llama's kind adds to the residual stream: Qwen, Gemma, Mistral and many others have these names.
_ADDED = ("self_attn", "mlp")


def add_dropout(model: nn.Module, rate: float) -> None:
    """Drop attention weights, embeddings, and what each block adds to the residual stream, in train mode only.

    Layers that have dropout of their own get the rate; blocks that have none, as Llama's, get it by forward hooks.

    Raises:
        ModelError: the blocks of this model have neither dropout of their own nor Llama's parts.
    """
    decoder, blocks = _blocks(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name in _RATES:
            if isinstance(getattr(module, name, None), int | float):
                setattr(module, name, rate)
    without: list[nn.Module] = []
    if not any(isinstance(module, nn.Dropout) for module in decoder.children()):
        without.append(model.get_input_embeddings())
    if not all(_has_own(block) for block in blocks):
        if not all(hasattr(block, name) for block in blocks for name in _ADDED):
            raise ModelError(
                f"no dropout for models of type {getattr(model.config, 'model_type', 'unknown')}: their blocks have "
                f"neither dropout of their own nor the parts {' and '.join(_ADDED)}",
                place="adapter.dropout",
                cure="set adapter.dropout = 0, or train adapters with adapter.method = 'lora'",
            )
        without += [getattr(block, name) for block in blocks for name in _ADDED]
    for module in without:
        module.register_forward_hook(_drop(rate))


def _blocks(model: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """Return the decoder and its blocks, which are the longest list of modules in the model."""
    lists = [
        (module, child) for module in model.modules() for child in module.children() if isinstance(child, nn.ModuleList)
    ]
    decoder, blocks = max(lists, key=lambda pair: len(pair[1]), default=(model, nn.ModuleList()))
    return decoder, list(blocks)


def _has_own(block: nn.Module) -> bool:
    """Return whether a block drops what it adds to the residual stream by itself."""
    return isinstance(getattr(block, "dropout", None), int | float) or any(
        isinstance(module, nn.Dropout) for module in block.modules()
    )


def _drop(rate: float) -> Any:
    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # an attention also returns its weights
            return (torch.nn.functional.dropout(output[0], rate, module.training), *output[1:])
        return torch.nn.functional.dropout(output, rate, module.training)

    return hook
