"""The optimizer of one direction: AdamW on float32 master copies, and its schedule as a pure function of the step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from roundtrip.recipe.schema import Adapter, Train
from roundtrip.runtime.distributed import SINGLE_PROCESS, ProcessGroup


def lr_factor(recipe: Train, step: int, num_steps: int) -> float:
    """Return the share of the highest rate that optimizer step `step` (from 0) out of `num_steps` takes.

    It rises over `lr_warmup_steps`, then stays or falls to a tenth along a line or half a cosine.
    """
    rise = min(1.0, (step + 1) / (recipe.lr_warmup_steps + 1))
    done = min(1.0, max(0, step - recipe.lr_warmup_steps) / max(1, num_steps - recipe.lr_warmup_steps))
    match recipe.lr_schedule:
        case "constant":
            fall = 1.0
        case "linear":
            fall = 1.0 - 0.9 * done
        case "cosine":
            fall = 0.1 + 0.45 * (1.0 + math.cos(math.pi * done))
    return rise * fall


class Optimizer:
    """AdamW over the parameters of one direction, with float32 masters where they are of lower precision.

    In bfloat16 an update smaller than 1/256 of a weight would be lost; the masters keep it
    (https://arxiv.org/abs/1710.03740). With LoRA+ (https://arxiv.org/abs/2402.12354) the B matrices, which begin at
    zero, learn at a multiple of the rate. Weight decay leaves vectors (norms, biases, magnitudes) alone.

    Args:
        parameters: by name; the names are the keys of the saved state.
        recipe: rate, weight decay, clipping and schedule.
        num_steps: how many steps the schedule spans.
        adapter: the rate, where it is not the recipe's, and the multiple.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        recipe: Train,
        num_steps: int,
        adapter: Adapter = Adapter(),  # noqa: B008 (frozen)
    ) -> None:
        self.recipe, self.num_steps, self.step_number = recipe, num_steps, 0
        self._rate = recipe.lr if adapter.lr is None else adapter.lr
        self._parameters = dict(parameters)
        # A float32 parameter is its own master: `float` returns it as it is, over the same memory.
        self._masters = {name: p.detach().float() for name, p in self._parameters.items()}
        # Of an adapter the two factors are averaged apart; their product is near the average of the products, since
        # the factors of neighbouring steps are near each other.
        averaged = recipe.ema_decay > 0
        self._averages = {name: master.clone() for name, master in self._masters.items()} if averaged else {}
        groups: dict[tuple[float, float], list[torch.Tensor]] = {}
        for name, master in self._masters.items():
            ratio = adapter.loraplus_lr_ratio if ".lora_B." in name else 1.0
            decay = recipe.weight_decay if master.ndim > 1 else 0.0
            groups.setdefault((ratio, decay), []).append(master)
        self._adam = torch.optim.AdamW(
            [
                {"params": params, "ratio": ratio, "weight_decay": decay, "lr": ratio * self._rate}
                for (ratio, decay), params in groups.items()
            ],
            betas=(0.9, 0.99),
        )

    def step(self, scale: float, *, skip: bool = False, processes: ProcessGroup = SINGLE_PROCESS) -> float:
        """Take one step with the gradients as summed in the parameters, times `scale`; then clear them.

        Args:
            skip: change nothing, as where the gradient is not finite; the schedule goes on.
            ranks: who else has gradients; the sum over all is what counts, and all change alike.

        Returns:
            The gradient norm before clipping.
        """
        for name, parameter in self._parameters.items():
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            self._masters[name].grad = grad.detach().float() * scale
            parameter.grad = None
        if processes.world_size > 1:
            # Adapters are many small matrices: one sum of all.
            flat = processes.all_reduce(torch.cat([master.grad.flatten() for master in self._masters.values()]))
            sizes = [master.numel() for master in self._masters.values()]
            for master, part in zip(self._masters.values(), flat.split(sizes), strict=True):
                master.grad = part.view_as(master)
        norm = float(torch.nn.utils.clip_grad_norm_(self._masters.values(), self.recipe.max_grad_norm))
        if math.isfinite(norm) and not skip:
            rate = self._rate * lr_factor(self.recipe, self.step_number, self.num_steps)
            for group in self._adam.param_groups:
                group["lr"] = rate * group["ratio"]
            self._adam.step()
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(self._masters[name])
            self._average()
        for master in self._masters.values():
            master.grad = None
        self.step_number += 1
        return norm

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averages; early ones follow fast, so that what they began with is forgotten."""
        if self._averages:
            decay = min(self.recipe.ema_decay, (1 + self.step_number) / (10 + self.step_number))
            masters = [self._masters[name] for name in self._averages]
            torch._foreach_lerp_(list(self._averages.values()), masters, 1.0 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the parameters the average of their past for a while, where the recipe asks for one.

        Averages of iterates are nearer to the optimum than the last one (Polyak and Juditsky, 1992).
        """
        # A float32 parameter is its own master, so what it is now has to be kept aside.
        kept = {name: self._masters[name].clone() for name in self._averages}
        self._set(self._averages)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)

    @torch.no_grad()
    def copy_from(self, other: Optimizer) -> None:
        """Become what another one of a model of the same shape is, weights and moments and all."""
        self.restore(other.state(), other.step_number)

    def digest(self) -> str:
        """Return a hash of what was learnt."""
        found = hashlib.blake2b(digest_size=16)
        for master in self._masters.values():
            found.update(master.detach().cpu().contiguous().view(torch.uint8).numpy())
        return found.hexdigest()

    def zero_grad(self) -> None:
        """Drop all gradients, as if nothing had been learnt since the last step."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        """Return all tensors that a resume needs, masters included, by parameter name."""
        tensors = {f"master/{name}": master for name, master in self._masters.items()}
        tensors |= {f"average/{name}": value for name, value in self._averages.items()}
        for name, master in self._masters.items():
            tensors |= {f"{key}/{name}": value for key, value in self._adam.state.get(master, {}).items()}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor], step_number: int) -> None:
        """Continue from what `state` returned; the model's own parameters are set from the masters."""
        self.step_number = step_number
        for name, master in self._masters.items():
            master.copy_(tensors[f"master/{name}"])
            self._parameters[name].copy_(master)
            if name in self._averages:
                self._averages[name].copy_(tensors[f"average/{name}"])
            saved = {
                key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in tensors
            }
            if saved:
                self._adam.state[master] = {
                    key: value.clone() if key == "step" else value.to(master.device, copy=True)
                    for key, value in saved.items()
                }
