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
class Hypotheses:
    """Generated ids without prompt and end token, on the device that wrote them.

    Attributes:
        ids_BN: int64, left-aligned; what stands at and after `size_B` has no meaning. A stop id that holds text is
            the last of its row.
        size_B: int64.
        finished_B: bool, an end token came within the limit.
    """

    ids_BN: torch.Tensor
    size_B: torch.Tensor
    finished_B: torch.Tensor

    def lists(self) -> list[list[int]]:
        """Return the ids of each row; the host waits for the device."""
        return [ids[:size] for ids, size in zip(self.ids_BN.tolist(), self.size_B.tolist(), strict=True)]

    def pick(self, indices: Sequence[int]) -> Hypotheses:
        """Return some rows, in the given order."""
        at = torch.tensor(indices, dtype=torch.int64, device=self.ids_BN.device)
        return Hypotheses(self.ids_BN[at], self.size_B[at], self.finished_B[at])


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
    seen: Callable[[list[int], Hypotheses], None] = lambda rows, hypotheses: None,
) -> Hypotheses:
    """Continue each prompt.

    Args:
        model: a plain causal LM in eval mode (adapters merged).
        limits: most new tokens of each prompt, the end token not counted.
        recipe: sampling settings; temperature 0 is greedy.
        stop_ids: any of these ends a hypothesis; found by position, the first after the prompt.
        text_stop_ids: so do these, which stay in the hypothesis, being text in part (such as `.` + line break).
        seed: of sampling; each batch derives its own, so the result does not depend on what ran before.
        tell: called after each batch with its numbers of rows and new tokens; may raise to stop.
        seen: called before that with the places of the batch among the prompts, and its hypotheses.

    Returns:
        One hypothesis per prompt, in their order.
    """
    # A batch is as long as its longest prompt plus its longest limit; like goes with like.
    lengths = [len(prompt) + limit + 1 for prompt, limit in zip(prompts, limits, strict=True)]
    device = next(model.parameters()).device
    all_stops = sorted({*stop_ids, *text_stop_ids})
    stops, kept = (torch.tensor(ids, dtype=torch.int64, device=device) for ids in (all_stops, list(text_stop_ids)))
    order: list[int] = []
    written: list[Hypotheses] = []
    for number, group in enumerate(by_budget(range(len(prompts)), lengths, recipe.tokens_per_batch)):
        random = torch.Generator(device).manual_seed(derive(seed, number))
        some_limits = [limits[i] for i in group]
        new_BN = decode(model, [prompts[i] for i in group], some_limits, recipe, pad_id, all_stops, random)
        hypotheses = _cut(new_BN, torch.tensor(some_limits, device=device), stops, kept)
        order += group
        written.append(hypotheses)
        seen(group, hypotheses)
        tell(len(group), int((hypotheses.size_B + hypotheses.finished_B).sum()))
    return _in_order(written, order, pad_id, device)


def _cut(new_BN: torch.Tensor, limit_B: torch.Tensor, stops: torch.Tensor, kept: torch.Tensor) -> Hypotheses:
    """End each row at its first stop id by position, or at its limit."""
    num = new_BN.shape[1]
    place_B = torch.where(torch.isin(new_BN, stops), 0, 1).cumprod(1).sum(1)
    finished_B = (place_B < num) & (place_B <= limit_B)
    last_B = new_BN.gather(1, place_B.clamp(max=num - 1)[:, None])[:, 0]
    size_B = torch.where(finished_B, place_B + torch.isin(last_B, kept), torch.minimum(limit_B, place_B))
    return Hypotheses(new_BN, size_B, finished_B)


def _in_order(written: Sequence[Hypotheses], order: Sequence[int], pad_id: int, device: torch.device) -> Hypotheses:
    """Join batches, and bring their rows into the order of the prompts."""
    if not written:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return Hypotheses(empty[:, None], empty, empty.bool())
    width = max(one.ids_BN.shape[1] for one in written)
    wide = [torch.nn.functional.pad(one.ids_BN, (0, width - one.ids_BN.shape[1]), value=pad_id) for one in written]
    joined = Hypotheses(
        torch.cat(wide), torch.cat([one.size_B for one in written]), torch.cat([one.finished_B for one in written])
    )
    places = sorted(range(len(order)), key=lambda place: order[place])
    return joined.pick(places)


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
