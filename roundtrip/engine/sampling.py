"""The next token of each row: the most likely one, or one sampled by temperature and top-p.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch

from roundtrip.recipe.schema import Generate


def sample_next(logits_BV: torch.Tensor, settings: Generate, generator: torch.Generator) -> torch.Tensor:
    """Return the next token of each row, next_B, int64.

    Temperature 0 takes the most likely one. Otherwise the logits are divided by it, and one of the tokens that top-p
    (https://arxiv.org/abs/1904.09751) leaves is sampled.
    """
    if settings.temperature_value == 0:
        # On a CPU argmax of bfloat16 takes four times as long.
        return (logits_BV.float() if logits_BV.device.type == "cpu" else logits_BV).argmax(-1)
    logits_BV = logits_BV.float() / settings.temperature_value
    if settings.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(descending=True)
        probability_BV = sorted_BV.softmax(-1)
        # A token is dropped where those before it reach p already; the first one always stays.
        dropped_BV = probability_BV.cumsum(-1) - probability_BV >= settings.top_p
        logits_BV = logits_BV.masked_fill(dropped_BV.gather(-1, order_BV.argsort(-1)), -torch.inf)
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]
