"""Linear layers for generating on a CPU, with weights in the memory layout that oneDNN multiplies in.

PyTorch's own layer reorders its weight at each call, which takes up to two thirds of the time of a decoding step.
"""

from functools import cache
from typing import Any

import torch
from torch import nn

# Rows that the layout is chosen for; oneDNN chooses the same one for 1 and for 1,000.
_ROWS = 64


class PackedLinear(nn.Module):
    """A linear layer without gradients, whose weight is no parameter; it can be written and read back, bit for bit."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.write(linear.weight)

    @torch.no_grad()
    def write(self, weight: torch.Tensor) -> None:
        """Set the weight, of shape (out, in), in the precision that the layer multiplies in."""
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)

    @property
    def weight(self) -> torch.Tensor:
        """A copy of the weight, (out, in)."""
        return self._packed.to_dense()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")


@cache
def is_supported(dtype: torch.dtype) -> bool:
    """Return whether this machine has the operations, and they have a linear layer's result."""
    random = torch.Generator().manual_seed(1)
    layer = nn.Linear(48, 80).to(dtype).requires_grad_(False)
    layer.weight.copy_(torch.randn(80, 48, generator=random))
    inputs = torch.randn(3, 5, 48, generator=random).to(dtype)
    try:
        packed = PackedLinear(layer)
        is_close = torch.allclose(packed(inputs), layer(inputs), 2e-2, 2e-2)
        return bool(torch.equal(packed.weight, layer.weight) and is_close)
    except (RuntimeError, NotImplementedError, AttributeError):
        return False


def prepack(model: nn.Module) -> None:
    """Pack the linear layers of a model that only generates, where the machine supports it; tied weights get a copy."""
    first = next(model.parameters())
    if first.device.type != "cpu" or not is_supported(first.dtype):
        return
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear:
            model.set_submodule(name, PackedLinear(layer))


def restore_linear(model: Any) -> None:
    """Replace the packed layers of a model by plain ones."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, PackedLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight, plain.bias = nn.Parameter(layer.weight, requires_grad=False), layer.bias
            model.set_submodule(name, plain)
    model.tie_weights()


def write_weight(layer: Any, weight: torch.Tensor) -> None:
    """Write a weight into a linear layer, packed or not, rounded to its precision."""
    if isinstance(layer, PackedLinear):
        layer.write(weight.to(layer._packed.dtype))
    else:
        layer.weight.copy_(weight)
