"""One optimizer step of an adapter: the package's, and AdamW on float32 masters with fewer and larger kernels.

All take the same gradients: scaled, clipped to a norm, a step of AdamW, and the masters rounded to the precision of the
adapter. `launches` is the number of kernels of a step. `step` reads the norm on the host in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.gpu import measure, profiling, shapes
from benchmarks.gpu.measure import Figures, Part
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.training import DIRECTIONS, RANK
from roundtrip import Optimizer
from roundtrip.models import adapters
from roundtrip.models.optimizer import BETAS, EPS, MAX_GRAD_NORM
from roundtrip.recipe.schema import Adapter, Train

SCALE = 1e-3
# Arguments of AdamW.
KINDS: dict[str, dict[str, bool]] = {
    "AdamW, a kernel for each tensor": {"foreach": False},
    "AdamW and copies by foreach": {"foreach": True},
    "fused AdamW, copies by foreach": {"fused": True},
}
# Sets the gradients, and takes a step.
Step = Callable[[], float]


def package_step(parameters: Mapping[str, nn.Parameter], grads: list[torch.Tensor]) -> Step:
    """Return a step of the package's optimizer."""
    optimizer = Optimizer(parameters, Train(), 10**6, Adapter(rank=RANK))

    def step() -> float:
        for parameter, grad in zip(parameters.values(), grads, strict=True):
            parameter.grad = grad
        return optimizer.step(SCALE)

    return step


def master_step(parameters: Mapping[str, nn.Parameter], grads: list[torch.Tensor], kind: Mapping[str, bool]) -> Step:
    """Return a step of AdamW on masters, whose copies and norm are computed for many tensors at a time."""
    values = [parameter.detach() for parameter in parameters.values()]
    masters = [value.float().clone() for value in values]
    adam = torch.optim.AdamW(masters, lr=1e-4, betas=BETAS, eps=EPS, weight_decay=0.0, **kind)
    one_by_one = kind.get("foreach") is False
    for master in masters:
        master.grad = torch.zeros_like(master)

    def copy(to: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        if one_by_one:
            for target, value in zip(to, values, strict=True):
                target.copy_(value)
        else:
            torch._foreach_copy_(to, values)

    def step() -> float:
        master_grads: list[Any] = [master.grad for master in masters]
        copy(master_grads, grads)
        if one_by_one:
            for grad in master_grads:
                grad.mul_(SCALE)
        else:
            torch._foreach_mul_(master_grads, SCALE)
        norm = float(nn.utils.clip_grad_norm_(masters, MAX_GRAD_NORM, foreach=not one_by_one))
        adam.step()
        with torch.no_grad():
            copy(values, masters)
        return norm

    return step


def measure_step(part: Part, model: Any, make: Callable[..., Step]) -> Figures:
    """Return the figures of a step over the parameters of one adapter."""
    parameters = adapters.parameters(model, DIRECTIONS[0])
    grads = [torch.randn_like(parameter) for parameter in parameters.values()]
    step = make(parameters, grads)
    seconds, peak = measure.seconds_and_peak(part.device, step)
    return {
        "ms": 1000 * seconds,
        "launches": profiling.num_launches(part.device, step),
        "peak_gib": peak,
        "tensors": len(grads),
        "parameters": sum(grad.numel() for grad in grads),
    }


def model_of(shape: Shape, device: torch.device) -> Any:
    """Return a base with two adapters."""
    return adapters.add_adapters(shapes.build_model(shape, device), dict.fromkeys(DIRECTIONS, Adapter(rank=RANK)), 1)


def measure_part(part: Part) -> None:
    """Measure an adapter of each shape."""
    for shape in part.shapes:
        model = part.build(shape.name, partial(model_of, shape, part.device))
        if model is None:
            continue
        part.rung(shape.name, "Optimizer.step", partial(measure_step, part, model, package_step))
        for name, kind in KINDS.items():
            make = partial(master_step, kind=kind)
            part.rung(shape.name, name, partial(measure_step, part, model, make))
        del model
