"""One optimizer step: the loss is summed over the labelled tokens of all its rows and divided once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from roundtrip.models.liger import fused_loss
from roundtrip.models.optimizer import Optimizer
from roundtrip.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from roundtrip.runtime.errors import TrainingError
from roundtrip.runtime.memory import free_after_failure, is_out_of_memory
from roundtrip.runtime.seeding import derive_seed
from roundtrip.tokens.batching import Batch, TokenDataset, collate, pack, token_budget_batches


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Attributes:
        loss: mean cross-entropy in nats per labelled token, each counted by the weight of its row, labels smoothed as
            asked; the distance to the base is no part of it.
        grad_norm: before clipping; where it or the loss is not finite the step was skipped: nothing has changed.
        num_labels, num_tokens: labelled and all real tokens.
        max_tokens_per_microbatch: that fitted; less than asked for where memory ran out.
    """

    loss: float
    grad_norm: float
    num_labels: int
    num_tokens: int
    max_tokens_per_microbatch: int

    @property
    def skipped(self) -> bool:
        return not (math.isfinite(self.loss) and math.isfinite(self.grad_norm))


def loss_sum(model: nn.Module, batch: Batch, *, fused: bool = False, smoothing: float = 0.0) -> torch.Tensor:
    """Return the summed cross-entropy of a batch, float32, shape ().

    The output layer is computed at the positions that predict a label and nowhere else; with a vocabulary of
    50,000 that is a fifth of the whole step on rows as short as sentences.

    Args:
        fused: by Liger's kernel, which holds no logits.
        smoothing: share of each label that goes to all tokens alike (https://arxiv.org/abs/1512.00567, section 7).
    """
    keep_BT, targets_N = batch.predictions()
    # With a cache the library does not keep packed rows apart.
    inputs = {"input_ids": batch.ids_BT, "use_cache": False, **batch.inputs}
    if fused:
        plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        hidden_ND = plain.get_decoder()(**inputs).last_hidden_state[keep_BT]
        return fused_loss(plain, hidden_ND, targets_N, smoothing)
    logits_NV = model(**inputs, logits_to_keep=keep_BT).logits
    return torch.nn.functional.cross_entropy(
        logits_NV.float().view(len(targets_N), -1), targets_N, reduction="sum", label_smoothing=smoothing
    )


@dataclass(frozen=True)
class KLPenalty:
    """What keeps an adapter near to its base: plain text on which the two should say the same.

    Attributes:
        table: rows of the target text by itself, in the order of the rows that are learnt.
        weight: of the mean distance of a token, in nats, beside the mean loss of a label.
    """

    table: TokenDataset
    weight: float


def kl_sum(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the summed KL divergence of the adapted model from its base over the predicted tokens of a batch.

    KL(base || adapted), as in learning without forgetting (https://arxiv.org/abs/1606.09282); float32, shape ().
    """
    assert isinstance(model, PeftModel)
    keep_BT, targets_N = batch.predictions()
    inputs = {"input_ids": batch.ids_BT, "use_cache": False, "logits_to_keep": keep_BT, **batch.inputs}
    with torch.no_grad(), model.disable_adapter():
        base_NV = model(**inputs).logits.float().view(len(targets_N), -1).log_softmax(-1)
    own_NV = model(**inputs).logits.float().view(len(targets_N), -1).log_softmax(-1)
    return torch.nn.functional.kl_div(own_NV, base_NV, log_target=True, reduction="sum")


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    table: TokenDataset,
    rows: Sequence[int],
    pad_id: int,
    max_tokens_per_microbatch: int,
    seed: int,
    *,
    fused: bool = False,
    packed: bool = False,
    smoothing: float = 0.0,
    kl_penalty: KLPenalty | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> StepResult:
    """Learn from rows: forward and backward in pieces of bounded size, then one optimizer step.

    Where a piece does not fit into memory the step begins again with pieces of half the size, over the same rows.

    Args:
        table, rows: which rows of which table; on the device of the model.
        model: with the adapter to train active, in train mode.
        seed: of dropout in this step, so that a resumed run drops the same units.
        fused, smoothing: see `loss_sum`.
        packed: rows stand one behind the other instead of padded ones below each other.
        near: adds the distance to the base to the loss; of adapters alone.
        ranks: who else takes a part of the rows, perhaps none of them; gradients and losses are summed.

    Raises:
        TrainingError: not even a single row fits into memory.
    """
    num_labels = sum(table.sizes[i] - table.starts[i] for i in rows)
    num_counted = sum(table.weights[i] * (table.sizes[i] - table.starts[i]) for i in rows)
    # The distance is a mean over its own tokens, and all is divided by the number of labels in the end.
    share = (
        num_labels / sum(kl_penalty.table.sizes[i] - kl_penalty.table.starts[i] for i in rows)
        if kl_penalty is not None
        else 0.0
    )
    own = processes.shard(sorted(rows, key=lambda i: -table.sizes[i])) if processes.world_size > 1 else rows
    longest = max((table.sizes[i] for i in own), default=0)
    # Dropout of two processes must not fall on the same places of their rows.
    seed = seed if processes.is_main else derive_seed(seed, processes.rank) % 2**32
    while True:
        # A forward pass has rows of one weight, so that its loss is weighted as a whole, by whatever kernel.
        groups = [
            group
            for weight in sorted({table.weights[i] for i in own})
            for group in token_budget_batches(
                [i for i in own if table.weights[i] == weight], table.sizes, max_tokens_per_microbatch, packed=packed
            )
        ]
        try:
            total = _backward(
                model, table, groups, pad_id, seed, fused=fused, packed=packed, smoothing=smoothing,
                kl_penalty=kl_penalty,
                share=share,
            )  # fmt: skip
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if max_tokens_per_microbatch <= longest:
                raise TrainingError(
                    f"memory ran out on a single row of {longest} tokens",
                    cure="lower train.max_length, set model.gradient_checkpointing = true, or take a smaller model",
                ) from error
        # What a failed backward has left in the gradients must not count.
        optimizer.zero_grad()
        free_after_failure()
        tried = max(len(group) * max(table.sizes[i] for i in group) for group in groups)
        max_tokens_per_microbatch = max(longest, min(max_tokens_per_microbatch, tried) // 2)
    loss = float(processes.all_reduce(total)) / num_counted
    # By all labels, so that a step of light rows alone is a light one.
    grad_norm = optimizer.step(1.0 / num_labels, skip=not math.isfinite(loss), processes=processes)
    max_tokens_per_microbatch = min(processes.gather(max_tokens_per_microbatch))
    num_tokens = sum(table.sizes[i] for i in rows)
    return StepResult(loss, grad_norm, num_labels, num_tokens, max_tokens_per_microbatch)


@torch.no_grad()
def row_losses(
    model: nn.Module,
    table: TokenDataset,
    rows: Sequence[int],
    pad_id: int,
    *,
    fused: bool = False,
    packed: bool = False,
) -> list[float]:
    """Return the mean loss of each row by itself, in nats per label: which of them a step was skipped for."""
    found = []
    for row in rows:
        batch = pack(table, [row]) if packed else collate(table, [row], pad_id)
        found.append(float(loss_sum(model, batch, fused=fused)) / (table.sizes[row] - table.starts[row]))
    return found


def _backward(
    model: nn.Module,
    table: TokenDataset,
    groups: Sequence[Sequence[int]],
    pad_id: int,
    seed: int,
    *,
    fused: bool,
    packed: bool,
    smoothing: float,
    kl_penalty: KLPenalty | None,
    share: float,
) -> torch.Tensor:
    """Add the gradients of all rows, and return their summed loss, float64, shape ().

    A function of its own, so that nothing of a piece that failed is held when the next one is tried.
    """
    torch.manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64, device=table.ids_X.device)
    for group in groups:
        batch = pack(table, group) if packed else collate(table, group, pad_id)
        weight = table.weights[group[0]]
        loss = loss_sum(model, batch, fused=fused, smoothing=smoothing)
        if weight != 1:
            loss = loss * weight
        loss.backward()
        total += loss.detach()
        if kl_penalty is not None:
            plain = pack(kl_penalty.table, group) if packed else collate(kl_penalty.table, group, pad_id)
            (kl_penalty.weight * share * kl_sum(model, plain)).backward()
    return total
