"""Which engine generates with a model: found by trying both on a few tokens, against passes without cache and padding.

Shapes: B rows, T positions of a whole row, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from roundtrip.engine import decoding
from roundtrip.models import attention, forward
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.errors import ModelError, first_line
from roundtrip.tokens.batching import left_pad

# The rows that are tried, of `forward.probe_tokens`: their prompts, of different lengths, and three more.
_ROWS, _NUM_NEW = ((0, 2, 1), (3, 0, 4, 2, 5)), 3
# How much logits may differ, relative to the largest; and in low precision, where that says little, predictions in
# nats: SmolLM2 in bfloat16 differs by 0.008 from itself in another batch, and by 1.2 where it sees padding.
_ROUNDING, _LOW_PRECISION_NATS = 1e-3, 0.25


@dataclass(frozen=True)
class Backend:
    """How a model generates.

    Attributes:
        native: by our own loop; else by `generate` of transformers.
        mixes_lengths: prompts of different lengths may share a batch, which pads them.
        use_cache: keys and values, or states, of the tokens so far are kept.
        reasons: what of this is not as usual, and why.
    """

    native: bool
    mixes_lengths: bool = True
    use_cache: bool = True
    reasons: tuple[str, ...] = ()


_known: WeakKeyDictionary[nn.Module, dict[str, Backend]] = WeakKeyDictionary()


def choose_backend(model: nn.Module, settings: Generate, pad_id: int) -> Backend:
    """Return how a causal LM in eval mode generates: by the engine of the settings where that is right with it.

    Raises:
        ModelError: it is not causal, or transformers does not generate what its own forward pass predicts.
    """
    known = _known.setdefault(model, {})
    if settings.engine not in known:
        known[settings.engine] = _try(model, settings, pad_id)
    return known[settings.engine]


@torch.inference_mode()
def _try(model: Any, settings: Generate, pad_id: int) -> Backend:
    tokens = [token for token in forward.probe_tokens(model, 10) if token != pad_id]
    rows = [[tokens[index] for index in row] for row in _ROWS]
    whole = [[*row, *rows[0][:_NUM_NEW]] for row in rows]
    try:
        expected = [_logits(model, row) for row in whole]
        if not all(logits.isfinite().all() for logits in expected):
            raise ValueError("what it predicts is not finite")
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # with sizes or settings that do not fit each other
        problem = f"its code fails on a few tokens: {first_line(error)}"
        raise ModelError(problem, place="model.path", cure="check its config.json, or use another model") from error
    if _difference(model, _logits(model, rows[0]), expected[0][: len(rows[0])]) is not None:
        problem = "it is not a causal language model: what it predicts depends on the tokens that follow"
        raise ModelError(problem, place="model.path", cure="use a decoder-only model, not an encoder")

    def native() -> str | None:
        return _native_difference(model, rows, whole, expected, pad_id)

    reasons: list[str] = []
    if settings.engine == "native":
        if (fault := _fault(native)) is None:
            return Backend(native=True)
        reasons.append(f"our own decoding loop is not used: {fault}")
    fault = _fault(lambda: _library_difference(model, [rows], pad_id))
    if fault is None:
        return Backend(False, reasons=tuple(reasons))
    of_one_length, first_fault = [[row, row[::-1]] for row in rows], fault
    for batches, use_cache, how in (
        (of_one_length, True, "in batches of prompts of one length"),
        ([rows], False, "without a cache, slowly"),
        (of_one_length, False, "without a cache, slowly, in batches of prompts of one length"),
    ):
        fault = _fault(partial(_library_difference, model, batches, pad_id, use_cache))
        if fault is None:
            reasons.append(f"transformers generates {how}: {first_fault}")
            return Backend(False, len(batches) == 1, use_cache, tuple(reasons))
    problem = f"transformers cannot generate with this model: {fault}"
    raise ModelError(problem, place="model.path", cure="use another model")


def _fault(try_engine: Callable[[], str | None]) -> str | None:
    """Return what differs or fails; a model may fail in any way on an engine that it was not made for."""
    try:
        return try_engine()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"


def _logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Return the logits of one row without cache and padding, (T, V)."""
    ids_BT = torch.tensor([ids], device=next(model.parameters()).device)
    logits: torch.Tensor = model(input_ids=ids_BT, **forward.supported(model, use_cache=False)).logits[0]
    return logits


def _difference(model: Any, actual: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Return how far logits are from what they should be, None where it is rounding."""
    # Of the model: `generate` of transformers returns logits in float32 whatever that is.
    if next(model.parameters()).dtype == torch.float32 and not getattr(model, "is_quantized", False):
        difference, limit = float((actual - expected).abs().max() / expected.abs().max()), _ROUNDING
        what = f"logits differ by {difference:.1%} from those"
    else:
        log_p, log_q = (logits.float().log_softmax(-1) for logits in (expected, actual))
        difference, limit = float((log_p.exp() * (log_p - log_q)).sum(-1).max()), _LOW_PRECISION_NATS
        what = f"predictions differ by {difference:.2f} nats from those"
    return None if difference <= limit else f"its {what} of a pass without cache and padding"


def _native_difference(
    model: Any, rows: list[list[int]], whole: list[list[int]], expected: list[torch.Tensor], pad_id: int
) -> str | None:
    """Decode given tokens as `decode` does: padded prompts, repeated rows, and one that leaves the batch."""
    device = next(model.parameters()).device
    state = decoding.Rows.of(*(tensor.to(device) for tensor in left_pad(rows, pad_id)))
    cache = decoding.KVCache(model, Generate())
    if (fixed := cache.fixed_layer) is not None:
        return f"rows cannot leave its cache (a {fixed})"
    index_B = list(range(len(rows)))  # which of the rows each one of the batch is
    with attention.decode_attention(model):
        for step in range(_NUM_NEW):
            logits_BV = cache.step(state)
            ends = [len(rows[i]) + step for i in index_B]
            right = torch.stack([expected[i][end - 1] for i, end in zip(index_B, ends, strict=True)])
            if (fault := _difference(model, logits_BV, right)) is not None:
                return fault
            if step == 0:
                cache.repeat(2)
                state, index_B = state.repeat(2), [i for i in index_B for _ in range(2)]
            else:
                keep = torch.arange(1, len(index_B), device=device)
                cache.select(keep)
                state, index_B = state.select(keep), index_B[1:]
            next_B = torch.tensor([whole[i][len(rows[i]) + step] for i in index_B], device=device)
            state = state.append(next_B, torch.zeros_like(next_B, dtype=torch.bool))
    return None


def _library_difference(
    model: Any, batches: Sequence[list[list[int]]], pad_id: int, use_cache: bool = True
) -> str | None:
    """Compare what `generate` of transformers predicts with passes over what it has generated."""
    settings = {"do_sample": False, "pad_token_id": pad_id, "return_dict_in_generate": True, "output_logits": True}
    for rows in batches:
        ids_BT, mask_BT = left_pad(rows, pad_id)
        output = call_generate(model, ids_BT, mask_BT, max_new_tokens=_NUM_NEW, use_cache=use_cache, **settings)
        logits_BTV, new_BT = torch.stack(output.logits, 1), output.sequences[:, ids_BT.shape[1] :]
        for row, new, logits in zip(rows, new_BT.tolist(), logits_BTV, strict=True):
            right = _logits(model, [*row, *new[:-1]])[len(row) - 1 :]
            if (fault := _difference(model, logits, right.to(logits))) is not None:
                return fault
    return None


def call_generate(model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor, **settings: Any) -> Any:
    """Call `generate` of transformers with these settings and none that the author of a model ships."""
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        config = GenerationConfig(**settings)
        return model.generate(ids_BT.to(device), attention_mask=mask_BT.to(device), generation_config=config)
    finally:
        model.generation_config = own
