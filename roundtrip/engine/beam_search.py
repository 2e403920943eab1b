"""Beam search over our own decoding step.

Shapes: P prompts still in the batch, K beams, B = P * K rows, C candidates of a step, N new positions, V vocabulary.
"""

from typing import Any

import torch

from roundtrip.engine.decoding import KVCache, Rows
from roundtrip.engine.request import GenerationRequest
from roundtrip.models import attention
from roundtrip.tokens.batching import left_pad


@torch.inference_mode()
def beam_search(model: Any, request: GenerationRequest) -> torch.Tensor:
    """Continue one batch by the most likely hypotheses per token that a search with `settings.beams` finds.

    The rules are those of transformers: hypotheses that end among the best K of a step are kept, by their
    log-probability divided by their length with the stop id; a prompt is done where K are kept and no beam is better,
    by its present length, than the worst of them, or at its limit. A hypothesis that is cut there is taken only where
    none has ended.

    Returns:
        ids_BN of the best hypothesis of each prompt as `decode` returns them, int64.
    """
    device, num_beams = next(model.parameters()).device, request.settings.beams
    ids_BT, mask_BT = (tensor.to(device) for tensor in left_pad(request.prompts, request.stop.pad_id))
    rows, beams = Rows.of(ids_BT, mask_BT), _Beams(request, device)
    # Beams change places in every step, which a graph cannot do.
    cache = KVCache(model, request.settings.model_copy(update={"cuda_graphs": False}))
    with attention.decode_attention(model):
        for step in range(beams.output_PN.shape[1]):
            logits_BV = cache.step(rows)
            if step == 0:
                cache.repeat(num_beams)
                rows, logits_BV = rows.repeat(num_beams), logits_BV.repeat_interleave(num_beams, 0)
            parent_B, next_B = beams.advance(step, logits_BV)
            if not len(parent_B):
                break
            cache.select(parent_B)
            rows = rows.select(parent_B).append(next_B, torch.zeros_like(next_B, dtype=torch.bool))
    return beams.output_PN


class _Beams:
    """The beams of each prompt, the hypotheses that have ended, and the output, which has all prompts."""

    def __init__(self, request: GenerationRequest, device: torch.device) -> None:
        num_prompts, num_beams, num_new = len(request.prompts), request.settings.beams, max(request.limits) + 1
        self._stops = torch.tensor(request.stop.all_ids, device=device)
        # Of each beam as many can end, and K must be left.
        self._num_candidates = num_beams * (1 + max(1, len(self._stops)))
        self.output_PN = torch.full((num_prompts, num_new), request.stop.pad_id, dtype=torch.int64, device=device)
        self._index_P = torch.arange(num_prompts, device=device)
        self._limit_P = torch.tensor(request.limits, device=device)
        self._ids_PKN = self.output_PN[:, None].repeat(1, num_beams, 1)
        self._ended_ids_PKN = self._ids_PKN.clone()
        # All beams of a prompt are the same at first: one of them counts.
        self._score_PK = torch.full((num_prompts, num_beams), -torch.inf, device=device)
        self._ended_PK = self._score_PK.clone()
        self._score_PK[:, 0] = 0.0

    def advance(self, step: int, logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a step; return which row each new one continues, and its token, int64 (B,), without prompts that are
        done.
        """
        num_prompts, num_beams = self._score_PK.shape
        vocab_size = logits_BV.shape[1]
        logp_PKV = logits_BV.float().log_softmax(-1).view(num_prompts, num_beams, vocab_size)
        score_PX = (logp_PKV + self._score_PK[:, :, None]).flatten(1)
        score_PC, index_PC = score_PX.topk(min(self._num_candidates, score_PX.shape[1]))
        parent_PC, token_PC = index_PC // vocab_size, index_PC % vocab_size
        ids_PCN = _take(self._ids_PKN, parent_PC)
        ids_PCN[:, :, step] = token_PC
        stops_PC = torch.isin(token_PC, self._stops)
        self._keep_ended(ids_PCN, torch.where(stops_PC, score_PC / (step + 1), -torch.inf), num_beams)
        self._score_PK, chosen_PK = torch.where(stops_PC, -torch.inf, score_PC).topk(num_beams)
        self._ids_PKN = _take(ids_PCN, chosen_PK)
        parent_PK, token_PK = parent_PC.gather(1, chosen_PK), token_PC.gather(1, chosen_PK)
        # Where fewer than K have ended, the worst is minus infinity.
        done_P = self._score_PK[:, 0] / (step + 1) <= self._ended_PK[:, -1]
        done_P |= self._limit_P <= step
        first_P1 = num_beams * torch.arange(num_prompts, device=done_P.device)[:, None]
        left = self._remove(done_P)
        return (first_P1 + parent_PK)[left].flatten(), token_PK[left].flatten()

    def _keep_ended(self, ids_PCN: torch.Tensor, score_PC: torch.Tensor, num_beams: int) -> None:
        """Keep the best K hypotheses that have ended, of which only those among the best K candidates count."""
        scores = torch.cat([self._ended_PK, score_PC[:, :num_beams]], 1)
        self._ended_PK, chosen_PK = scores.topk(num_beams)
        self._ended_ids_PKN = _take(torch.cat([self._ended_ids_PKN, ids_PCN[:, :num_beams]], 1), chosen_PK)

    def _remove(self, done_P: torch.Tensor) -> torch.Tensor:
        """Write the best hypotheses of prompts that are done to the output; return the others, which are left."""
        has_ended_P1 = self._ended_PK[:, :1] > -torch.inf
        best_PN = torch.where(has_ended_P1, self._ended_ids_PKN[:, 0], self._ids_PKN[:, 0])
        self.output_PN[self._index_P[done_P]] = best_PN[done_P]
        left = (~done_P).nonzero()[:, 0]
        for name in ("_index_P", "_limit_P", "_ids_PKN", "_ended_ids_PKN", "_score_PK", "_ended_PK"):
            setattr(self, name, getattr(self, name)[left])
        return left


def _take(ids_PXN: torch.Tensor, index_PY: torch.Tensor) -> torch.Tensor:
    """Return rows of each prompt, (P, Y, N)."""
    return ids_PXN.gather(1, index_PY[:, :, None].expand(-1, -1, ids_PXN.shape[2]))
