"""The optimizer of one direction: AdamW on float32 master copies, with a schedule that is a function of the step."""

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import nn

from roundtrip.recipe.schema import Adapter, Train
from roundtrip.runtime.distributed import SINGLE_PROCESS, ProcessGroup

# Gradients are clipped to this norm; the usual value, which rarely takes effect once the warm-up is over.
MAX_GRAD_NORM = 1.0
# The decay rates of AdamW's moments, and the number that keeps its division finite.
BETAS, EPS = (0.9, 0.99), 1e-8
# The factor of the highest learning rate that the schedule ends at.
MIN_LR_FACTOR = 0.1


def lr_factor(settings: Train, step: int, num_steps: int, planned_step: float | None = None) -> float:
    """Return the factor of the highest learning rate in optimizer step `step` (from 0) of `num_steps` planned ones.

    It rises over `lr_warmup_steps`, then falls linearly to `MIN_LR_FACTOR`; `planned_step` is the step of the plan that
    this one stands for, where fewer are taken than planned.
    """
    warmup = settings.lr_warmup_steps
    rise = min(1.0, (step + 1) / (warmup + 1))
    done = min(1.0, max(0, (step if planned_step is None else planned_step) - warmup) / max(1, num_steps - warmup))
    return rise * (1.0 - (1.0 - MIN_LR_FACTOR) * done)


class Optimizer:
    """AdamW over the parameters of one direction, with float32 masters where they are of lower precision.

    In bfloat16 an update smaller than 1/256 of a weight would be lost; the masters keep it
    (https://arxiv.org/abs/1710.03740). With LoRA+ (https://arxiv.org/abs/2402.12354) the B matrices, which begin at
    zero, have a multiple of the learning rate. Weight decay excludes vectors (norms, biases, magnitudes).

    Args:
        parameters: by name; the names are the keys of the saved state.
        settings: learning rate, weight decay and schedule.
        num_steps: how many steps are planned, over which the learning rate falls.
        adapter: the multiple.

    Example:
        >>> weight = nn.Parameter(torch.ones(2, 3))
        >>> optimizer = Optimizer({"weight": weight}, Train(lr=1e-3, lr_warmup_steps=0), num_steps=10)
        >>> weight.grad = torch.ones(2, 3)
        >>> grad_norm = optimizer.step(scale=1.0)
        >>> round(grad_norm, 3), round(float(weight[0, 0].detach()), 4)
        (2.449, 0.999)
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: Train,
        num_steps: int,
        adapter: Adapter = Adapter(),  # noqa: B008 (frozen)
    ) -> None:
        self.settings, self.num_steps, self.step_number = settings, num_steps, 0
        self._parameters = dict(parameters)
        # A float32 parameter is its own master: `float` returns it as it is, over the same memory.
        self._masters = {name: p.detach().float() for name, p in self._parameters.items()}
        groups: dict[tuple[float, float], list[torch.Tensor]] = {}
        for name, master in self._masters.items():
            ratio = adapter.loraplus_lr_ratio if ".lora_B." in name else 1.0
            decay = settings.weight_decay if master.ndim > 1 else 0.0
            groups.setdefault((ratio, decay), []).append(master)
        parts = [
            {"params": masters, "ratio": ratio, "weight_decay": decay, "lr": ratio * settings.lr}
            for (ratio, decay), masters in groups.items()
        ]
        self._adam = torch.optim.AdamW(parts, betas=BETAS, eps=EPS)

    def learning_rate(self, planned_step: float | None = None) -> float:
        """Return the learning rate of the next step, without the ratio of LoRA+; see `lr_factor`."""
        return self.settings.lr * lr_factor(self.settings, self.step_number, self.num_steps, planned_step)

    def step(
        self,
        scale: float,
        planned_step: float | None = None,
        *,
        skip: bool = False,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> float:
        """Take one step with the gradients as summed in the parameters, times `scale`; then clear them.

        Args:
            planned_step: see `lr_factor`.
            skip: change nothing, as where the gradient is not finite; the schedule advances.
            processes: their gradients are summed, and all take the same step.

        Returns:
            The gradient norm before clipping.
        """
        for name, parameter in self._parameters.items():
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            self._masters[name].grad = grad.detach().float() * scale
            parameter.grad = None
        if processes.world_size > 1:
            # Adapters are many small matrices: one sum of all.
            masters = list(self._masters.values())
            flat = processes.all_reduce(torch.cat([master.grad.flatten() for master in masters]))
            for master, part in zip(masters, flat.split([master.numel() for master in masters]), strict=True):
                master.grad = part.view_as(master)
        norm = float(torch.nn.utils.clip_grad_norm_(self._masters.values(), MAX_GRAD_NORM))
        if math.isfinite(norm) and not skip:
            rate = self.learning_rate(planned_step)
            for group in self._adam.param_groups:
                group["lr"] = rate * group["ratio"]
            self._adam.step()
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(self._masters[name])
        self._adam.zero_grad()
        self.step_number += 1
        return norm

    def digest(self) -> str:
        """Return a hash of the master weights."""
        digest = hashlib.blake2b(digest_size=16)
        for master in self._masters.values():
            digest.update(master.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def zero_grad(self) -> None:
        """Drop all gradients that were summed since the last step."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        """Return all tensors that a resume needs, masters included, by parameter name."""
        tensors = {f"master/{name}": master for name, master in self._masters.items()}
        for name, master in self._masters.items():
            tensors |= {f"{key}/{name}": value for key, value in self._adam.state.get(master, {}).items()}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor], step_number: int) -> None:
        """Continue from the `state` of this optimizer or of one of the same shape; sets the model's parameters too."""
        self.step_number = step_number
        self._adam.state.clear()  # of an optimizer that has taken no step there are no moments
        for name, master in self._masters.items():
            master.copy_(tensors[f"master/{name}"])
            self._parameters[name].copy_(master)
            if f"step/{name}" in tensors:
                moments = {
                    key: tensors[f"{key}/{name}"].to(master.device, copy=True) for key in ("exp_avg", "exp_avg_sq")
                }
                self._adam.state[master] = {"step": tensors[f"step/{name}"].clone(), **moments}
