"""How likely a model holds given targets: one forward pass over rows, nothing is generated."""

from __future__ import annotations

from typing import Any

import torch

from roundtrip.engine.batch import IGNORE, Table, by_budget, collate


@torch.inference_mode()
def log_likelihood(model: Any, table: Table, pad_id: int, tokens_per_forward: int) -> torch.Tensor:
    """Return the summed log-probability of each row's labels, in nats; float32, (R,).

    Args:
        model: in eval mode.
        table: on the device of the model.
        tokens_per_forward: padded tokens of one forward pass.
    """
    found_R = torch.zeros(len(table), device=table.ids_X.device)
    for group in by_budget(range(len(table)), table.sizes, tokens_per_forward):
        batch = collate(table, group, pad_id)
        keep_BT = torch.zeros_like(batch.labels_BT, dtype=torch.bool)
        keep_BT[:, :-1] = batch.labels_BT[:, 1:] != IGNORE
        targets_N = batch.labels_BT[:, 1:][keep_BT[:, :-1]]
        logits_NV = model(input_ids=batch.ids_BT, use_cache=False, logits_to_keep=keep_BT, **batch.inputs).logits
        loss_N = torch.nn.functional.cross_entropy(
            logits_NV.float().reshape(len(targets_N), logits_NV.shape[-1]), targets_N, reduction="none"
        )
        at = torch.tensor(group, device=found_R.device)
        found_R.index_add_(0, at[keep_BT.nonzero()[:, 0]], loss_N, alpha=-1)
    return found_R
