"""One optimizer step: the loss is summed over the labels of all its rows and divided once by their number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from roundtrip.engine.kl_penalty import KLPenalty, kl_sum
from roundtrip.models.liger import liger_loss
from roundtrip.models.optimizer import Optimizer
from roundtrip.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from roundtrip.runtime.errors import TrainingError
from roundtrip.runtime.memory import run_in_halves
from roundtrip.runtime.seeding import derive_seed
from roundtrip.tokens.batching import Batch, TokenDataset, collate, pack, token_budget_batches


@dataclass(frozen=True)
class StepSettings:
    """How the steps of a phase are computed.

    Attributes:
        pad_id: fills up rows.
        max_tokens_per_microbatch: padded tokens of one forward pass, or all its tokens where rows are packed.
        fused_loss: compute the loss by Liger's kernel, which holds no logits.
        packed: rows stand one behind the other, instead of padded ones below each other.
        kl_penalty: adds the divergence from the base to the loss; adapters only.
        planned_step: the step of the plan that this one stands for, see `lr_factor`; None: the steps taken so far.
        processes: who else takes a part of the rows, perhaps none of them; gradients and losses are summed.
    """

    pad_id: int
    max_tokens_per_microbatch: int
    fused_loss: bool = False
    packed: bool = False
    kl_penalty: KLPenalty | None = None
    planned_step: float | None = None
    processes: ProcessGroup = SINGLE_PROCESS

    def batch(self, dataset: TokenDataset, rows: Sequence[int]) -> Batch:
        """Return some rows as one batch."""
        return pack(dataset, rows) if self.packed else collate(dataset, rows, self.pad_id)


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Attributes:
        loss: mean cross-entropy in nats per label, without the KL penalty.
        grad_norm: before clipping.
        num_labels, num_tokens: labels, and all tokens without padding.
        max_tokens_per_microbatch: what fitted into memory; less than asked for where it ran out.
    """

    loss: float
    grad_norm: float
    num_labels: int
    num_tokens: int
    max_tokens_per_microbatch: int

    @property
    def nonfinite(self) -> bool:
        """Whether loss or gradient is not finite; such a step has changed nothing."""
        return not (math.isfinite(self.loss) and math.isfinite(self.grad_norm))


def loss_sum(model: nn.Module, batch: Batch, *, fused: bool = False) -> torch.Tensor:
    """Return the summed cross-entropy of a batch, in nats; float32, shape ().

    The output layer is computed at the positions that predict a label and nowhere else; with a vocabulary of
    50,000 that is a fifth of the whole step on rows as short as sentences.

    Args:
        fused: by Liger's kernel, which holds no logits.
    """
    keep_BT, targets_N = batch.predictions()
    # With a cache transformers does not keep packed rows apart.
    inputs = {"input_ids": batch.ids_BT, "use_cache": False, **batch.inputs}
    if fused:
        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        hidden_ND = inner.get_decoder()(**inputs).last_hidden_state[keep_BT]
        return liger_loss(inner, hidden_ND, targets_N)
    logits_NV = model(**inputs, logits_to_keep=keep_BT).logits
    return torch.nn.functional.cross_entropy(logits_NV.float().view(len(targets_N), -1), targets_N, reduction="sum")


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    dataset: TokenDataset,
    rows: Sequence[int],
    settings: StepSettings,
    *,
    seed: int,
) -> StepResult:
    """Train on some rows: forward and backward in microbatches of bounded size, then one optimizer step.

    Where a microbatch does not fit into memory the step begins again with smaller ones, over the same rows.

    Args:
        model: with the adapter to train active, in train mode.
        dataset: on the device of the model.
        rows: indices into the dataset.
        seed: of dropout in this step, so that a resumed run drops the same units.

    Raises:
        TrainingError: not even a single row fits into memory.
    """
    processes = settings.processes
    num_labels = sum(dataset.sizes[i] - dataset.starts[i] for i in rows)
    kl_scale = settings.kl_penalty.scale(rows, num_labels) if settings.kl_penalty is not None else 0.0
    own = processes.shard(sorted(rows, key=lambda i: -dataset.sizes[i])) if processes.world_size > 1 else rows
    longest = max((dataset.sizes[i] for i in own), default=0)
    # Dropout of two processes must not drop the same units of their rows.
    seed = seed if processes.is_main else derive_seed(seed, processes.rank) % 2**32

    def microbatches(budget: int) -> list[list[int]]:
        return list(token_budget_batches(own, dataset.sizes, budget, packed=settings.packed))

    def run(budget: int) -> tuple[int, torch.Tensor]:
        # Gradients of an attempt that failed must not count.
        optimizer.zero_grad()
        torch.manual_seed(seed)
        total = torch.zeros((), dtype=torch.float64, device=dataset.ids_X.device)
        for group in microbatches(budget):
            total += _backward(model, dataset, group, settings, kl_scale)
        return budget, total

    def halve(budget: int) -> list[int]:
        largest = max((len(group) * max(dataset.sizes[i] for i in group) for group in microbatches(budget)), default=0)
        return [max(longest, min(budget, largest) // 2)] if budget > longest else []

    ((budget, total),) = run_in_halves(
        [settings.max_tokens_per_microbatch],
        run,
        halve,
        size=lambda budget: budget,
        too_large=lambda budget: _too_large(longest),
    )
    loss = float(processes.all_reduce(total)) / num_labels
    grad_norm = optimizer.step(
        1.0 / num_labels, planned_step=settings.planned_step, skip=not math.isfinite(loss), processes=processes
    )
    num_tokens = sum(dataset.sizes[i] for i in rows)
    return StepResult(loss, grad_norm, num_labels, num_tokens, min(processes.gather(budget)))


def _too_large(num_tokens: int) -> TrainingError:
    return TrainingError(
        f"memory ran out on a single row of {num_tokens} tokens",
        cure="lower train.max_length, set model.gradient_checkpointing = true, or use a smaller model",
    )


def _backward(
    model: nn.Module, dataset: TokenDataset, group: Sequence[int], settings: StepSettings, kl_scale: float
) -> torch.Tensor:
    """Add the gradients of a microbatch, and return its summed loss without the KL penalty."""
    loss = loss_sum(model, settings.batch(dataset, group), fused=settings.fused_loss)
    loss.backward()
    if settings.kl_penalty is not None:
        (kl_scale * kl_sum(model, settings.batch(settings.kl_penalty.dataset, group))).backward()
    return loss.detach()


@torch.no_grad()
def row_losses(model: nn.Module, dataset: TokenDataset, rows: Sequence[int], settings: StepSettings) -> list[float]:
    """Return the mean loss of each row by itself, in nats per label: to find those that made a loss non-finite."""
    return [
        float(loss_sum(model, settings.batch(dataset, [row]), fused=settings.fused_loss))
        / (dataset.sizes[row] - dataset.starts[row])
        for row in rows
    ]
