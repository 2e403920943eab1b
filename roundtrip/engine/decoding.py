"""Our own decode loop: rows that ended leave the batch, each keeps to its own limit, stop flags are read seldom.

Shapes: B rows still alive, T prompt positions, S positions so far, N new positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from roundtrip.engine.cuda_graphs import GraphedSteps, supports_static_cache
from roundtrip.engine.request import GeneratedIds, GenerationRequest, repeated
from roundtrip.engine.sampling import sample_next
from roundtrip.models import attention
from roundtrip.recipe.schema import Generate
from roundtrip.tokens.batching import left_pad

# Rows that ended are taken out of the batch once so large a share of it is idle.
COMPACT_SHARE = 0.25
FIXED_COMPACT_SHARE = 0.5
# Elsewhere a setting that was made for training on a GPU does nothing.
GRAPHS_ON = ("cuda",)
# On a GPU a look at the stop flags waits for the device; on a CPU it is free.
CUDA_LOOK_EVERY = 8


@torch.inference_mode()
def decode(model: Any, work: GenerationRequest) -> GeneratedIds:
    """Continue one batch until every row has stopped or reached its limit; rows that ended leave the batch.

    Samples of one prompt share its forward pass.
    """
    with attention.decode_attention(model):
        return _decode(model, work)


def _decode(model: Any, work: GenerationRequest) -> GeneratedIds:
    device, recipe = next(model.parameters()).device, work.recipe
    random = torch.Generator(device).manual_seed(work.seed)
    ids_BT, mask_BS = (tensor.to(device) for tensor in left_pad(work.prompts, work.pad_id))
    limits = repeated(work.limits, recipe.num_candidates)
    stops, limits_B = torch.tensor(work.stop_ids, device=device), torch.tensor(limits, device=device)
    look_every = 1 if device.type == "cpu" else CUDA_LOOK_EVERY
    num_new = max(limits) + 1
    new_BN = torch.full((len(limits), num_new), work.pad_id, dtype=torch.int64, device=device)
    logprob_B = torch.zeros(len(limits), device=device) if work.return_logprobs else None
    alive_B = torch.arange(len(limits), device=device)
    done_B = torch.zeros_like(alive_B, dtype=torch.bool)
    seen_BV: torch.Tensor | None = None
    position_BT = (mask_BS.cumsum(-1) - 1).clamp(min=0)
    past = _Past(model, recipe)
    for number in range(num_new):
        logits_BV = past.step(ids_BT, position_BT, mask_BS)
        if number == 0 and recipe.num_candidates > 1:
            past.repeat(recipe.num_candidates)
            logits_BV, mask_BS, position_BT = (
                tensor.repeat_interleave(recipe.num_candidates, 0) for tensor in (logits_BV, mask_BS, position_BT)
            )
        if recipe.repetition_penalty != 1 and seen_BV is None:
            seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
        next_B = sample_next(logits_BV, recipe, random, seen_BV)
        if seen_BV is not None:
            seen_BV.scatter_(1, next_B[:, None], True)
        new_BN[alive_B, number] = next_B
        stops_B, over_B = torch.isin(next_B, stops), limits_B[alive_B] <= number
        if logprob_B is not None:
            # What stands at the limit and is no end is cut off.
            counts_B = ~done_B & (stops_B | ~over_B)
            logprob_B[alive_B] += torch.where(counts_B, _logprob(logits_BV, next_B), 0.0)
        done_B = done_B | stops_B | over_B
        # Rows that wait for others to end stand still: at their own limit the model may have no more positions.
        ids_BT, position_BT = next_B[:, None], position_BT[:, -1:] + ~done_B[:, None]
        mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(mask_BS), 1)], dim=1)
        if number % look_every == 0:
            num_done = int(done_B.sum())
            if num_done == len(done_B):
                break
            if num_done >= past.compact_share * len(done_B):
                keep = (~done_B).nonzero()[:, 0]
                past.keep(keep)
                alive_B, done_B, mask_BS = alive_B[keep], done_B[keep], mask_BS[keep]
                ids_BT, position_BT = ids_BT[keep], position_BT[keep]
                seen_BV = seen_BV[keep] if seen_BV is not None else None
    return GeneratedIds(new_BN, logprob_B)


class _Past:
    """Keys and values of all tokens so far, and the step that adds to them."""

    def __init__(self, model: Any, recipe: Generate) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache: Any = DynamicCache(config=model.config)
        self._steps: GraphedSteps | None = None
        self._device = next(model.parameters()).device
        self._fixed = recipe.cuda_graphs and self._device.type in GRAPHS_ON and supports_static_cache(model)
        # A graph is made anew for fewer rows, which a few steps of idle rows do not outweigh.
        self.compact_share = FIXED_COMPACT_SHARE if self._fixed else COMPACT_SHARE
        # By index, not by slice: of a view the output layer would copy its whole weight for each row.
        self._last = torch.tensor([-1], device=self._device)

    def step(self, ids_BT: torch.Tensor, position_BT: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """Return the logits behind new tokens, (B, V)."""
        if self._fixed and ids_BT.shape[1] == 1 and (self._steps is not None or self._cache.get_seq_length()):
            if self._steps is not None and not self._steps.room:
                self._cache, self._steps = self._steps.grown(), None
            if self._steps is None:
                before_BS = mask_BS[:, :-1]
                self._steps = GraphedSteps(self._model, self._cache, before_BS, replay=self._device.type == "cuda")
                self._cache = None  # it has a copy
            return self._steps.step(ids_BT, position_BT)
        logits_BV: torch.Tensor = self._model(
            input_ids=ids_BT,
            attention_mask=mask_BS,
            position_ids=position_BT,
            cache=self._cache,
            use_cache=True,
            logits_to_keep=self._last,
        ).logits[:, -1]
        return logits_BV

    def repeat(self, times: int) -> None:
        self._cache.batch_repeat_interleave(times)

    def keep(self, rows: torch.Tensor) -> None:
        """Let the other rows go."""
        if self._steps is None:
            self._cache.batch_select_indices(rows)
        else:
            self._cache, self._steps = self._steps.grown(rows), None


def _logprob(logits_BV: torch.Tensor, chosen_B: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of tokens by the model itself, whatever the sampling made of it; float32."""
    logits_BV = logits_BV.float()
    return logits_BV.gather(1, chosen_B[:, None])[:, 0] - logits_BV.logsumexp(-1)
