"""How likely a model holds given targets: one forward pass over rows, nothing is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from roundtrip.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from roundtrip.runtime.errors import ModelError
from roundtrip.runtime.memory import free_after_failure, is_out_of_memory
from roundtrip.tokens.batching import TokenDataset, collate, token_budget_batches


@torch.inference_mode()
def log_likelihood(
    model: Any,
    table: TokenDataset,
    pad_id: int,
    max_tokens_per_microbatch: int,
    on_progress: Callable[[int, int], None] = lambda rows, tokens: None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> torch.Tensor:
    """Return the summed log-probability of each row's labels, in nats; float32, (R,).

    Rows that do not fit into memory together go on in halves.

    Args:
        model: in eval mode.
        table: on the device of the model.
        max_tokens_per_microbatch: padded tokens of one forward pass.
        tell: called after each pass with no new rows and tokens; may raise to stop.
        ranks: who else takes a part of the passes.

    Raises:
        ModelError: not even a single row fits into memory.
    """
    found_R = torch.zeros(len(table), device=table.ids_X.device)
    waiting = processes.shard(list(token_budget_batches(range(len(table)), table.sizes, max_tokens_per_microbatch)))[
        ::-1
    ]
    while waiting:
        group = waiting.pop()
        if not _pass(model, table, group, pad_id, found_R):
            if len(group) == 1:
                raise ModelError(
                    f"memory ran out on a single row of {table.sizes[group[0]]} tokens",
                    place="train.max_tokens_per_microbatch",
                    cure="lower data.filter.max_chars, or leave out generate.num_candidates and train.patience",
                )
            free_after_failure()
            half = len(group) // 2
            waiting += [group[half:], group[:half]]
        on_progress(0, 0)
    return processes.all_reduce(found_R)


def _pass(model: Any, table: TokenDataset, group: Sequence[int], pad_id: int, found_R: torch.Tensor) -> bool:
    """Write the values of some rows; return False where memory runs out."""
    batch = collate(table, group, pad_id)
    keep_BT, targets_N = batch.predictions()
    try:
        logits_NV = model(input_ids=batch.ids_BT, use_cache=False, logits_to_keep=keep_BT, **batch.inputs).logits
        loss_N = torch.nn.functional.cross_entropy(
            logits_NV.float().reshape(len(targets_N), logits_NV.shape[-1]), targets_N, reduction="none"
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    at = torch.tensor(group, device=found_R.device)
    found_R[at] = 0.0
    found_R.index_add_(0, at[keep_BT.nonzero()[:, 0]], loss_N, alpha=-1)
    return True
