"""Writing hypotheses: token ids in, token ids out, in batches of like length.

Shapes: B rows still alive, T prompt positions, S positions so far, N new positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from roundtrip.engine.batch import by_budget, left_pad
from roundtrip.recipe import Generate
from roundtrip.text.stream import derive

# Rows that ended are taken out of the batch once so large a share of it is idle.
COMPACT_SHARE = 0.25
# On a GPU a look at the stop flags waits for the device; on a CPU it is free.
CUDA_LOOK_EVERY = 8


@dataclass(frozen=True)
class Hypothesis:
    """Generated ids without prompt, end token and padding; a stop id that holds text is their last.

    Attributes:
        finished: an end token came within the limit.
    """

    ids: list[int]
    finished: bool


def length_limit(num_source_tokens: int, recipe: Generate) -> int:
    """Return how many tokens a translation of so many source tokens may have."""
    return int(recipe.length_ratio * num_source_tokens) + recipe.length_extra


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    recipe: Generate,
    *,
    pad_id: int,
    stop_ids: Sequence[int],
    text_stop_ids: Sequence[int] = (),
    seed: int,
    tell: Callable[[int, int], None] = lambda rows, tokens: None,
) -> list[Hypothesis]:
    """Continue each prompt.

    Args:
        model: a plain causal LM in eval mode (adapters merged).
        limits: most new tokens of each prompt, the end token not counted.
        recipe: sampling settings; temperature 0 is greedy.
        stop_ids: any of these ends a hypothesis; found by position, the first after the prompt.
        text_stop_ids: so do these, which stay in the hypothesis, being text in part (such as `.` + line break).
        seed: of sampling; each batch derives its own, so the result does not depend on what ran before.
        tell: called after each batch with its numbers of rows and new tokens; may raise to stop.

    Returns:
        One hypothesis per prompt, in their order.
    """
    # A batch is as long as its longest prompt plus its longest limit; like goes with like.
    lengths = [len(prompt) + limit + 1 for prompt, limit in zip(prompts, limits, strict=True)]
    found: dict[int, Hypothesis] = {}
    all_stops, kept = {*stop_ids, *text_stop_ids}, set(text_stop_ids)
    for number, group in enumerate(by_budget(range(len(prompts)), lengths, recipe.tokens_per_batch)):
        random = torch.Generator(next(model.parameters()).device).manual_seed(derive(seed, number))
        new_BN = decode(
            model, [prompts[i] for i in group], [limits[i] for i in group], recipe, pad_id, sorted(all_stops), random
        )
        for index, ids in zip(group, new_BN.tolist(), strict=True):
            found[index] = _cut(ids, limits[index], all_stops, kept)
        tell(len(group), sum(len(found[i].ids) + found[i].finished for i in group))
    return [found[index] for index in range(len(prompts))]


def _cut(ids: list[int], limit: int, stop_ids: set[int], kept: set[int]) -> Hypothesis:
    end = next((place for place, token in enumerate(ids) if token in stop_ids), None)
    if end is not None and end <= limit:
        return Hypothesis(ids[: end + (ids[end] in kept)], True)
    return Hypothesis(ids[:limit], False)


@torch.inference_mode()
def decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    recipe: Generate,
    pad_id: int,
    stop_ids: Sequence[int],
    random: torch.Generator,
) -> torch.Tensor:
    """Continue one batch until every row has stopped or reached its limit; rows that ended leave the batch.

    Returns:
        new_BN, int64, in the order of the prompts. What follows a stop id in a row has no meaning.
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    ids_BT, mask_BS = (tensor.to(device) for tensor in left_pad(prompts, pad_id))
    stops, limits_B = torch.tensor(stop_ids, device=device), torch.tensor(limits, device=device)
    look_every = 1 if device.type == "cpu" else CUDA_LOOK_EVERY
    num_new = max(limits) + 1
    new_BN = torch.full((len(prompts), num_new), pad_id, dtype=torch.int64, device=device)
    alive_B = torch.arange(len(prompts), device=device)
    done_B = torch.zeros_like(alive_B, dtype=torch.bool)
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
        next_B = pick(logits_BV, recipe, random)
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
    return new_BN


def pick(logits_BV: torch.Tensor, recipe: Generate, random: torch.Generator) -> torch.Tensor:
    """Choose the next token of each row: the likeliest, or one sampled at a temperature within top-k and top-p.

    Top-p (https://arxiv.org/abs/1904.09751) keeps the smallest set of tokens whose probability reaches p.

    Returns:
        next_B, int64.
    """
    if recipe.temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV.float() / recipe.temperature
    if 0 < recipe.top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(recipe.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    if recipe.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(descending=True)
        share_BV = sorted_BV.softmax(-1)
        # A token goes when those before it reach p already; the first one always stays.
        gone_BV = share_BV.cumsum(-1) - share_BV >= recipe.top_p
        logits_BV = logits_BV.masked_fill(gone_BV.gather(-1, order_BV.argsort(-1)), -torch.inf)
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=random)[:, 0]
