"""Liger's kernels (https://arxiv.org/abs/2410.10989) on one loaded model: norms, feed-forward, and the fused loss."""

import importlib.util
import sys
from typing import Any

import torch
from torch import nn

from roundtrip.runtime.errors import ModelError


def require(device: str) -> None:
    """Refuse a machine without Liger, or a type of device that it does not support."""
    if device != "cuda":
        raise _unusable("its kernels require a CUDA device")
    if importlib.util.find_spec("liger_kernel") is None or importlib.util.find_spec("triton") is None:
        raise _unusable("liger-kernel and triton are not installed", "pip install 'roundtrip-mt[liger]', or ")


def _unusable(reason: str, cure: str = "") -> ModelError:
    cure += "set model.use_liger_kernel = false"
    return ModelError(f"Liger: {reason}", place="model.use_liger_kernel", cure=cure)


def _unsupported_reason(model: nn.Module) -> str | None:
    """Return why a model cannot use Liger's kernels, None where it can."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    config: Any = model.config
    if config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return f"it has no kernels for models of type {config.model_type}"
    for key in ("logits_scaling", "logit_scale"):
        if getattr(config, key, None) not in (None, 1.0):
            return f"its fused loss does not support this model's {key}"
    return None


def apply_liger(model: nn.Module) -> None:
    """Give a loaded causal LM Liger's norms and feed-forward; the fused loss is `liger_loss`."""
    require(next(model.parameters()).device.type)
    if (reason := _unsupported_reason(model)) is not None:
        raise _unusable(reason)
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    # Liger's function also replaces classes of transformers, for every model made later; these are restored.
    module = vars(sys.modules[type(model).__module__])
    before = dict(module)
    _apply_liger_kernel_to_instance(model=model, rope=False, cross_entropy=False, fused_linear_cross_entropy=False)
    module.update(before)


def liger_loss(model: nn.Module, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Return the summed cross-entropy of targets, without logits of the whole vocabulary in memory; float32, shape ().

    The weight of the output layer is read as it is: an adapter on it would be ignored, so such a recipe is refused.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    head: Any = model.get_output_embeddings()
    softcap, bias = getattr(model.config, "final_logit_softcapping", None), getattr(head, "bias", None)
    loss: torch.Tensor = liger_fused_linear_cross_entropy(
        hidden_ND, head.weight, targets_N, bias=bias, reduction="sum", softcap=softcap
    )
    return loss.float()
