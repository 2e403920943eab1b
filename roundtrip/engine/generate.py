"""Writing hypotheses: token ids in, token ids out, in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from roundtrip.engine.batch import by_budget, left_pad
from roundtrip.recipe import Generate


@dataclass(frozen=True)
class Hypothesis:
    """Generated ids without prompt, end token and padding.

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
    seed: int,
    tell: Callable[[int, int], None] = lambda rows, tokens: None,
) -> list[Hypothesis]:
    """Continue each prompt.

    Args:
        model: a plain causal LM in eval mode (adapters merged).
        limits: most new tokens of each prompt.
        recipe: sampling settings; temperature 0 is greedy.
        stop_ids: any of these ends a hypothesis; found by position, the first after the prompt.
        seed: of sampling; each batch derives its own, so the result does not depend on what ran before.
        tell: called after each batch with its numbers of rows and new tokens; may raise to stop.

    Returns:
        One hypothesis per prompt, in their order.
    """
    # A batch is as long as its longest prompt plus its longest limit; like goes with like.
    lengths = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)]
    found: dict[int, Hypothesis] = {}
    for number, group in enumerate(by_budget(range(len(prompts)), lengths, recipe.tokens_per_batch)):
        new_BT = _continue(
            model, [prompts[i] for i in group], max(limits[i] for i in group), recipe, pad_id, stop_ids, seed + number
        )
        rows = new_BT.tolist()
        for index, ids in zip(group, rows, strict=True):
            found[index] = _cut(ids, limits[index], set(stop_ids))
        tell(len(group), sum(len(found[i].ids) for i in group))
    return [found[index] for index in range(len(prompts))]


def _cut(ids: list[int], limit: int, stop_ids: set[int]) -> Hypothesis:
    end = next((place for place, token in enumerate(ids) if token in stop_ids), None)
    if end is not None and end <= limit:
        return Hypothesis(ids[:end], True)
    return Hypothesis(ids[:limit], False)


@torch.inference_mode()
def _continue(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    recipe: Generate,
    pad_id: int,
    stop_ids: Sequence[int],
    seed: int,
) -> torch.Tensor:
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    ids_BT, mask_BT = left_pad(prompts, pad_id)
    sampling = recipe.temperature > 0
    settings = (
        {"temperature": recipe.temperature, "top_p": recipe.top_p, "top_k": recipe.top_k} if sampling else {}
    )
    config = GenerationConfig(
        max_new_tokens=max_new_tokens + 1,  # one more for the end token
        do_sample=sampling,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        use_cache=True,
        **settings,
    )
    torch.manual_seed(seed)
    out_BT = model.generate(
        input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), generation_config=config
    )
    new_BT: torch.Tensor = out_BT[:, ids_BT.shape[1] :]
    return new_BT
