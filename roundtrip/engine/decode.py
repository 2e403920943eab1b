"""Our own decode loop: rows that ended leave the batch, each keeps to its own limit, stop flags are read seldom.

Shapes: B rows still alive, T prompt positions, S positions so far, N new positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from roundtrip.engine.batch import left_pad
from roundtrip.engine.pick import pick
from roundtrip.recipe import Generate

# Rows that ended are taken out of the batch once so large a share of it is idle.
COMPACT_SHARE = 0.25
# On a GPU a look at the stop flags waits for the device; on a CPU it is free.
CUDA_LOOK_EVERY = 8


@torch.inference_mode()
def decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    recipe: Generate,
    pad_id: int,
    stop_ids: Sequence[int],
    seed: int,
) -> torch.Tensor:
    """Continue one batch until every row has stopped or reached its limit; rows that ended leave the batch.

    Returns:
        new_BN, int64, in the order of the prompts. What follows a stop id in a row has no meaning.
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    random = torch.Generator(device).manual_seed(seed)
    ids_BT, mask_BS = (tensor.to(device) for tensor in left_pad(prompts, pad_id))
    stops, limits_B = torch.tensor(stop_ids, device=device), torch.tensor(limits, device=device)
    look_every = 1 if device.type == "cpu" else CUDA_LOOK_EVERY
    num_new = max(limits) + 1
    new_BN = torch.full((len(prompts), num_new), pad_id, dtype=torch.int64, device=device)
    alive_B = torch.arange(len(prompts), device=device)
    done_B = torch.zeros_like(alive_B, dtype=torch.bool)
    seen_BV: torch.Tensor | None = None
    cache = DynamicCache(config=model.config)
    position_BT = (mask_BS.cumsum(-1) - 1).clamp(min=0)
    for number in range(num_new):
        logits_BV = model(
            input_ids=ids_BT,
            attention_mask=mask_BS,
            position_ids=position_BT,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if recipe.repetition_penalty != 1 and seen_BV is None:
            seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
        next_B = pick(logits_BV, recipe, random, seen_BV)
        if seen_BV is not None:
            seen_BV.scatter_(1, next_B[:, None], True)
        new_BN[alive_B, number] = next_B
        done_B = done_B | torch.isin(next_B, stops) | (limits_B[alive_B] <= number)
        ids_BT, position_BT = next_B[:, None], position_BT[:, -1:] + 1
        mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(mask_BS), 1)], dim=1)
        if number % look_every == 0:
            num_done = int(done_B.sum())
            if num_done == len(done_B):
                break
            if num_done >= COMPACT_SHARE * len(done_B):
                keep = (~done_B).nonzero()[:, 0]
                cache.batch_select_indices(keep)
                alive_B, done_B, mask_BS = alive_B[keep], done_B[keep], mask_BS[keep]
                ids_BT, position_BT = ids_BT[keep], position_BT[keep]
                seen_BV = seen_BV[keep] if seen_BV is not None else None
    return new_BN
