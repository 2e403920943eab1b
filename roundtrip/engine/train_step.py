"""One optimizer step: the loss is summed over the labels of all its rows and divided once by their number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from roundtrip.engine.kl_penalty import KLPenalty, kl_sum
from roundtrip.engine.likelihood import label_logits
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
        processes: each trains on a part of the rows, perhaps none of them; gradients and losses are summed.

    Example:
        >>> from roundtrip import load_translators
        >>> translator = load_translators(recipe)["en-es"]
        >>> model, rows = translator.direction_model, translator.template.rows([("a cat", "un gato")])
        >>> dataset = TokenDataset.of(rows, translator.base.device)
        >>> optimizer = Optimizer(model.parameters(), recipe.recipe.train, num_steps=100)
        >>> with model.training() as packed:
        ...     settings = StepSettings(translator.base.pad_id, max_tokens_per_microbatch=512, packed=packed)
        ...     result = train_step(model.model, optimizer, dataset, [0], settings, seed=1)
        >>> result.num_labels == dataset.sizes[0] - dataset.starts[0], result.nonfinite
        (True, False)
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
    """What one step did."""

    loss: float  # mean cross-entropy in nats per label, without the KL penalty
    grad_norm: float  # before clipping
    num_labels: int
    num_tokens: int  # without padding
    max_tokens_per_microbatch: int  # what fitted into memory; less than asked for where it ran out

    @property
    def nonfinite(self) -> bool:
        """Whether loss or gradient is not finite; such a step has changed nothing."""
        return not (math.isfinite(self.loss) and math.isfinite(self.grad_norm))


def loss_sum(model: nn.Module, batch: Batch, *, fused: bool = False) -> torch.Tensor:
    """Return the summed cross-entropy of a batch, in nats; float32, shape (); `fused` computes it by Liger's kernel."""
    keep_BT, targets_N = batch.predictions()
    if not fused:
        return torch.nn.functional.cross_entropy(label_logits(model, batch, keep_BT), targets_N, reduction="sum")
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    decoded = inner.get_decoder()(input_ids=batch.ids_BT, use_cache=False, **batch.inputs)
    return liger_loss(inner, decoded.last_hidden_state[keep_BT], targets_N)


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    dataset: TokenDataset,
    rows: Sequence[int],
    settings: StepSettings,
    seed: int,
) -> StepResult:
    """Train on some rows: forward and backward in microbatches of bounded size, then one optimizer step.

    Where a microbatch does not fit into memory the step begins again with smaller ones, over the same rows.

    Args:
        model: with the adapter to train active, in train mode.
        dataset, rows: on the device of the model, and indices into it.
        seed: of dropout in this step, so that a resumed run drops the same units.

    Raises:
        TrainingError: not even a single row fits into memory.

    Example:
        >>> with model.training():  # all as for `StepSettings`
        ...     train_step(model.model, optimizer, dataset, [0], settings, seed=1).num_labels
        8
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

    def too_large(budget: int) -> TrainingError:
        cure = "lower train.max_length, set model.gradient_checkpointing = true, or use a smaller model"
        return TrainingError(f"memory ran out on a single row of {longest} tokens", cure=cure)

    def run(budget: int) -> tuple[int, torch.Tensor]:
        # Gradients of an attempt that failed must not count.
        optimizer.zero_grad()
        torch.manual_seed(seed)
        total = torch.zeros((), dtype=torch.float64, device=dataset.ids_X.device)
        for group in microbatches(budget):
            total += _backward(model, dataset, group, settings, kl_scale)
        return budget, total

    ((budget, total),) = run_in_halves(
        [settings.max_tokens_per_microbatch],
        run,
        lambda budget: _halve(microbatches(budget), dataset.sizes, budget),
        size=lambda budget: budget,
        too_large=too_large,
    )
    loss = float(processes.all_reduce(total)) / num_labels
    scale, skip = 1.0 / num_labels, not math.isfinite(loss)
    grad_norm = optimizer.step(scale, planned_step=settings.planned_step, skip=skip, processes=processes)
    return StepResult(loss, grad_norm, num_labels, sum(dataset.sizes[i] for i in rows), min(processes.gather(budget)))


def _halve(groups: Sequence[Sequence[int]], sizes: Sequence[int], budget: int) -> list[int]:
    """Return half of what the largest microbatch took; nothing where all are single rows. Longest rows come first."""
    longest = max((sizes[group[0]] for group in groups), default=0)
    largest = max((len(group) * sizes[group[0]] for group in groups), default=0)
    return [max(longest, min(budget, largest) // 2)] if budget > longest else []


def _backward(
    model: nn.Module, dataset: TokenDataset, group: Sequence[int], settings: StepSettings, kl_scale: float
) -> torch.Tensor:
    """Add the gradients of a microbatch; return its summed loss without the KL penalty."""
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
