"""One optimizer step: the loss is summed over the labelled tokens of all its rows and divided once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from roundtrip.engine.batch import IGNORE, Batch, Table, by_budget, collate
from roundtrip.models.kernels import fused_loss
from roundtrip.models.optimizer import Optimizer


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Attributes:
        loss: mean cross-entropy in nats per labelled token.
        grad_norm: before clipping; not finite where the step was skipped.
        num_labels, num_tokens: labelled and all real tokens.
    """

    loss: float
    grad_norm: float
    num_labels: int
    num_tokens: int


def loss_sum(model: nn.Module, batch: Batch, *, fused: bool = False) -> torch.Tensor:
    """Return the summed cross-entropy of a batch, float32, shape ().

    The output layer is computed at the positions that predict a label and nowhere else; with a vocabulary of
    50,000 that is a fifth of the whole step on rows as short as sentences.

    Args:
        fused: by Liger's kernel, which holds no logits.
    """
    targets_BT = batch.labels_BT[:, 1:]
    keep_BT = torch.zeros_like(batch.labels_BT, dtype=torch.bool)
    keep_BT[:, :-1] = targets_BT != IGNORE
    targets_N = targets_BT[targets_BT != IGNORE]
    inputs = {"input_ids": batch.ids_BT, "attention_mask": batch.mask_BT, "use_cache": False}
    if fused:
        plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        return fused_loss(plain, plain.get_decoder()(**inputs).last_hidden_state[keep_BT], targets_N)
    logits_NV = model(**inputs, logits_to_keep=keep_BT).logits
    return torch.nn.functional.cross_entropy(logits_NV.float().view(len(targets_N), -1), targets_N, reduction="sum")


def step(
    model: nn.Module,
    optimizer: Optimizer,
    table: Table,
    rows: Sequence[int],
    pad_id: int,
    tokens_per_forward: int,
    seed: int,
    *,
    fused: bool = False,
) -> StepResult:
    """Learn from rows: forward and backward in pieces of bounded size, then one optimizer step.

    Args:
        table, rows: which rows of which table; on the device of the model.
        model: with the adapter to train active, in train mode.
        seed: of dropout in this step, so that a resumed run drops the same units.
        fused: see `loss_sum`.
    """
    device = next(model.parameters()).device
    torch.manual_seed(seed)
    num_labels = sum(table.sizes[i] - table.starts[i] for i in rows)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for group in by_budget(rows, table.sizes, tokens_per_forward):
        loss = loss_sum(model, collate(table, group, pad_id), fused=fused)
        loss.backward()
        total += loss.detach()
    grad_norm = optimizer.step(1.0 / num_labels)
    return StepResult(float(total) / num_labels, grad_norm, num_labels, sum(table.sizes[i] for i in rows))
