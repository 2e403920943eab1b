"""The next token of each row: the likeliest, or one sampled within what the recipe leaves.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch

from roundtrip.recipe.schema import Generate


def sample_next(
    logits_BV: torch.Tensor, recipe: Generate, random: torch.Generator, seen_BV: torch.Tensor | None = None
) -> torch.Tensor:
    """Choose the next token of each row.

    Temperature 0 takes the likeliest. Else the logits are divided by it, and what top-k, top-p
    (https://arxiv.org/abs/1904.09751) and min-p (https://arxiv.org/abs/2407.01082) leave, in this order, is sampled.
    Before all that the repetition penalty (https://arxiv.org/abs/1909.05858) makes what the hypothesis already has less
    likely; the prompt does not count, since names and numbers of the source belong into a translation.

    Args:
        seen_BV: bool, the tokens that each hypothesis has so far; None where nothing is penalized.

    Returns:
        next_B, int64.
    """
    if seen_BV is not None:
        logits_BV = logits_BV.float()
        penalized_BV = torch.where(
            logits_BV < 0, logits_BV * recipe.repetition_penalty, logits_BV / recipe.repetition_penalty
        )
        logits_BV = torch.where(seen_BV, penalized_BV, logits_BV)
    if recipe.heat == 0:
        # On a CPU argmax of bfloat16 takes four times as long.
        return (logits_BV.float() if logits_BV.device.type == "cpu" else logits_BV).argmax(-1)
    logits_BV = logits_BV.float() / recipe.heat
    if 0 < recipe.top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(recipe.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    if recipe.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(descending=True)
        share_BV = sorted_BV.softmax(-1)
        # A token goes when those before it reach p already; the first one always stays.
        gone_BV = share_BV.cumsum(-1) - share_BV >= recipe.top_p
        logits_BV = logits_BV.masked_fill(gone_BV.gather(-1, order_BV.argsort(-1)), -torch.inf)
    share_BV = logits_BV.softmax(-1)
    if recipe.min_p > 0:
        share_BV = share_BV.masked_fill(share_BV < recipe.min_p * share_BV.amax(-1, keepdim=True), 0.0)
    return torch.multinomial(share_BV, 1, generator=random)[:, 0]
