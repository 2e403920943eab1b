"""Our own decoding loop: rows that have ended leave the batch, each row has its own limit, stop flags are read rarely.
Shapes: B rows still in the batch, T prompt positions, S positions so far, N new positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from roundtrip.engine.cuda_graphs import GraphedSteps, supports_static_cache
from roundtrip.engine.request import GenerationRequest, repeat_each
from roundtrip.models import attention, forward
from roundtrip.recipe.schema import Generate
from roundtrip.tokens.batching import left_pad

# Rows that have ended are removed once they are so large a share of the batch; later with a graph, since to capture it
# for fewer rows costs more than a few steps of idle rows.
COMPACT_SHARE, STATIC_COMPACT_SHARE = 0.25, 0.5
# Elsewhere `generate.cuda_graphs` has no effect.
GRAPHS_ON = ("cuda",)
# Reading the stop flags of a GPU waits for the device; on a CPU it is free.
CUDA_CHECK_EVERY = 8


@torch.inference_mode()
def decode(model: Any, request: GenerationRequest) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Continue one batch until every row has stopped or reached its limit; candidates share the pass over their prompt.

    Returns:
        ids_BN, int64, without meaning after a stop id and beyond the limit of a row; logprob_B, float32, of each
        hypothesis with its stop id, None where it is not asked for.
    """
    device, settings = next(model.parameters()).device, request.settings
    generator = torch.Generator(device).manual_seed(request.seed)
    output = _Output(request, device)
    ids_BT, mask_BT = (tensor.to(device) for tensor in left_pad(request.prompts, request.stop.pad_id))
    rows = Rows.of(ids_BT, mask_BT)
    cache = KVCache(model, settings)
    check_every = 1 if device.type == "cpu" else CUDA_CHECK_EVERY
    with attention.decode_attention(model):
        for step in range(output.ids_BN.shape[1]):
            logits_BV = cache.step(rows)
            if step == 0 and settings.num_candidates > 1:
                cache.repeat(settings.num_candidates)
                rows = rows.repeat(settings.num_candidates)
                logits_BV = logits_BV.repeat_interleave(settings.num_candidates, 0)
            next_B = sample_next(logits_BV, settings, generator)
            rows = rows.append(next_B, output.write(step, rows, logits_BV, next_B))
            if step % check_every == 0:
                num_done = int(rows.done_B.sum())
                if num_done == len(rows.done_B):
                    break
                if num_done >= cache.compact_share * len(rows.done_B):
                    keep = (~rows.done_B).nonzero()[:, 0]
                    cache.select(keep)
                    rows = rows.select(keep)
    return output.ids_BN, output.logprob_B


def sample_next(logits_BV: torch.Tensor, settings: Generate, generator: torch.Generator) -> torch.Tensor:
    """Return the next token of each row, int64, (B,): the most likely one at temperature 0, else one that is sampled
    from the tokens that top-p (https://arxiv.org/abs/1904.09751) leaves.
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


@dataclass(frozen=True)
class Rows:
    """The rows that are still in the batch, and the input of their next step; int64 except `done_B`."""

    index_B: torch.Tensor  # which row of the output each one is
    ids_BT: torch.Tensor  # the whole prompts at the first step, then one token each
    position_BT: torch.Tensor
    mask_BS: torch.Tensor  # 1 where a position so far holds a token
    done_B: torch.Tensor  # bool, rows that have ended and are not removed yet

    @classmethod
    def of(cls, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> Rows:
        index_B = torch.arange(len(ids_BT), device=ids_BT.device)
        position_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        return cls(index_B, ids_BT, position_BT, mask_BT, torch.zeros_like(index_B, dtype=torch.bool))

    def repeat(self, times: int) -> Rows:
        """Return each row `times` times, each with its own row of the output."""
        rows = Rows(*(tensor.repeat_interleave(times, 0) for tensor in vars(self).values()))
        return replace(rows, index_B=torch.arange(len(rows.ids_BT), device=rows.ids_BT.device))

    def append(self, next_B: torch.Tensor, ended_B: torch.Tensor) -> Rows:
        done_B = self.done_B | ended_B
        # The position of a row that waits for others does not advance: at its own limit the model may have no more.
        position_B1 = self.position_BT[:, -1:] + ~done_B[:, None]
        mask_BS = torch.cat([self.mask_BS, self.mask_BS.new_ones(len(self.mask_BS), 1)], dim=1)
        return Rows(self.index_B, next_B[:, None], position_B1, mask_BS, done_B)

    def select(self, keep: torch.Tensor) -> Rows:
        return Rows(*(tensor[keep] for tensor in vars(self).values()))


class _Output:
    """What has been generated, written in place; here B counts all hypotheses."""

    def __init__(self, request: GenerationRequest, device: torch.device) -> None:
        limits = repeat_each(request.limits, request.settings.num_candidates)
        shape = (len(limits), max(limits) + 1)
        self.ids_BN = torch.full(shape, request.stop.pad_id, dtype=torch.int64, device=device)
        self.logprob_B = torch.zeros(len(limits), device=device) if request.return_logprobs else None
        self._limit_B = torch.tensor(limits, device=device)
        self._stops = torch.tensor(request.stop.all_ids, device=device)

    def write(self, step: int, rows: Rows, logits_BV: torch.Tensor, next_B: torch.Tensor) -> torch.Tensor:
        """Write the token that each row still in the batch gets in a step; return which rows end with it, bool (B,)."""
        self.ids_BN[rows.index_B, step] = next_B
        stops_B, over_B = torch.isin(next_B, self._stops), self._limit_B[rows.index_B] <= step
        if self.logprob_B is not None:
            # A token at the limit that is no stop id is cut off.
            counts_B = ~rows.done_B & (stops_B | ~over_B)
            # By the model itself, without temperature or filter.
            logits_BV = logits_BV.float()
            new_B = logits_BV.gather(1, next_B[:, None])[:, 0] - logits_BV.logsumexp(-1)
            self.logprob_B[rows.index_B] += torch.where(counts_B, new_B, 0.0)
        return stops_B | over_B


class KVCache:
    """Keys and values of all tokens so far, and the step that adds to them."""

    def __init__(self, model: Any, settings: Generate) -> None:
        from transformers import DynamicCache

        device = next(model.parameters()).device
        self._model, self._cache = model, DynamicCache(config=model.config)
        self._steps: GraphedSteps | None = None
        self._static = settings.cuda_graphs and device.type in GRAPHS_ON and supports_static_cache(model)
        self.compact_share = STATIC_COMPACT_SHARE if self._static else COMPACT_SHARE
        # An index, not a slice: of a view the output layer would copy its whole weight for each row.
        self._last = torch.tensor([-1], device=device)

    def step(self, rows: Rows) -> torch.Tensor:
        """Return the logits after the next input of each row, (B, V)."""
        if self._static and rows.ids_BT.shape[1] == 1 and (self._steps is not None or self._cache.get_seq_length()):
            if self._steps is not None and not self._steps.room:
                self._cache, self._steps = self._steps.dynamic_cache(), None
            if self._steps is None:
                self._steps = GraphedSteps(self._model, self._cache, rows.mask_BS[:, :-1])
                self._cache = None  # the steps have a copy
            return self._steps.step(rows.ids_BT, rows.position_BT)
        inputs = {"input_ids": rows.ids_BT, "attention_mask": rows.mask_BS, "cache": self._cache, "use_cache": True}
        # Models without learned or rotary positions (ALiBi, recurrent states) take neither.
        for name, value in (("position_ids", rows.position_BT), ("logits_to_keep", self._last)):
            if forward.takes(self._model, name):
                inputs[name] = value
        return self._model(**inputs).logits[:, -1]

    @property
    def fixed_layer(self) -> str | None:
        """The kind of a layer whose rows cannot be selected, as recurrent states; None where all can."""
        kinds = (type(layer) for layer in self._cache.layers)
        return next((kind.__name__ for kind in kinds if not hasattr(kind, "batch_select_indices")), None)

    def repeat(self, times: int) -> None:
        self._cache.batch_repeat_interleave(times)

    def select(self, keep: torch.Tensor) -> None:
        if self._steps is None:
            self._cache.batch_select_indices(keep)
        else:
            self._cache, self._steps = self._steps.dynamic_cache(keep), None
