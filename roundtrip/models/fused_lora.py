"""A linear layer and its LoRA as one operation: the product that computes the update also adds it, in both passes.
Shapes: N tokens, I inputs, O outputs, R rank.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import nn


class _Product(torch.autograd.Function):
    """x W^T + bias + scale (x A^T) B^T, and the gradients of x, A and B."""

    @staticmethod
    def forward(
        context: Any, x: torch.Tensor, layer: nn.Linear, a_RI: torch.Tensor, b_OR: torch.Tensor, scale: float
    ) -> torch.Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        low_NR = x_NI @ a_RI.T
        y_NO = nn.functional.linear(x_NI, layer.weight, layer.bias).addmm_(low_NR, b_OR.T, alpha=scale)
        context.save_for_backward(x_NI, layer.weight, a_RI, b_OR, low_NR)
        context.scale = scale
        # Not a view of autograd's: some models add to what a layer returns in place.
        y: torch.Tensor = torch.ops.aten._unsafe_view.default(y_NO, [*x.shape[:-1], y_NO.shape[-1]])
        return y

    @staticmethod
    def backward(context: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_NI, weight_OI, a_RI, b_OR, low_NR = context.saved_tensors
        grad_NO = grads[0].reshape(-1, grads[0].shape[-1])
        grad_low_NR = (grad_NO @ b_OR).mul_(context.scale)
        grad_x = None
        if context.needs_input_grad[0]:
            grad_x = (grad_NO @ weight_OI).addmm_(grad_low_NR, a_RI).view(*grads[0].shape[:-1], -1)
        grad_b = (low_NR.T @ grad_NO).mul_(context.scale).T
        return grad_x, None, grad_low_NR.T @ x_NI, grad_b, None


class FusedLinear(Linear):
    """PEFT's layer, computed as one operation where a single plain adapter is trained; all else is PEFT's."""

    def forward(self, x: torch.Tensor, *arguments: Any, **settings: Any) -> torch.Tensor:
        name = self._fusable(x) if not arguments and not settings else None
        if name is None:
            return super().forward(x, *arguments, **settings)
        a_RI, b_OR = self.lora_A[name].weight, self.lora_B[name].weight
        return _Product.apply(x, self.get_base_layer(), a_RI, b_OR, self.scaling[name])

    def _fusable(self, x: torch.Tensor) -> str | None:
        """Return the adapter that is trained; None where there is none, or PEFT computes more than the sum."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1 or not torch.is_grad_enabled():
            return None
        name = str(active[0])
        dropped = self.training and not isinstance(self.lora_dropout[name], nn.Identity)
        if dropped or name in self.lora_variant or self.lora_B[name].bias is not None:
            return None
        return name if x.dtype == self.lora_A[name].weight.dtype == self.get_base_layer().weight.dtype else None


def fuse(model: PeftModel) -> None:
    """Let the linear layers of a model compute with their adapters in one operation; other layers do not change."""
    for layer in model.modules():
        if type(layer) is Linear and type(layer.get_base_layer()) is nn.Linear:
            layer.__class__ = FusedLinear
