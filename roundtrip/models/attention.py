"""Attentions of our own, which a loaded model takes by name: for packed rows without FlashAttention, and for decoding.

Both compute softmax(Q K^T) V as every attention does; they save what the library's do for nothing on short rows.

Shapes: B rows, T positions of the longest, N tokens of all rows one behind the other, S keys, H heads of the queries,
K heads of keys and values, G = H / K queries that share one, D numbers a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from roundtrip.runtime.errors import ModelError, first_line

# What a model is loaded with, and generates with.
GENERATING = "sdpa"
VARLEN = "varlen"
_DECODE = "roundtrip_decode"
# Under these names the library knows them.
_REGISTERED = {VARLEN: "roundtrip_varlen"}
# These know where one packed row ends and the next begins; others need a mask of all tokens by all tokens.
READ_BOUNDS = (VARLEN, "flash_attention_2")
# What an attention may be given beyond ours, and must not be passed over.
_EXTRAS = ("position_bias", "softcap", "s_aux", "sinks", "indices")

_CURE = "use 'auto', 'sdpa' or 'eager'"


def candidates(name: str, device: torch.device) -> tuple[str, ...]:
    """Return which attentions training may take in the recipe's words, the best first; the last takes padded rows.

    Of those that `auto` stands for a model need not have any.
    """
    if name != "auto":
        return (name,)
    return (VARLEN, "eager") if device.type == "cpu" else ("sdpa",)


def choose(model: Any, name: str) -> None:
    """Choose the attention of a loaded model.

    Raises:
        ModelError: it is not installed, or the model has no such attention.
    """
    inner = _REGISTERED.get(name, name)
    try:
        if name == VARLEN and getattr(model.config, "attention_chunk_size", None) is not None:
            raise ValueError("this model attends in chunks, which it does not know")
        model.set_attn_implementation(inner)
        if model.config._attn_implementation != inner:
            raise ValueError("this model does not change its attention once it is loaded")
    except (ValueError, ImportError) as error:
        raise ModelError(f"attention '{name}': {first_line(error)}", place="model.attention", cure=_CURE) from error


@contextmanager
def decode_attention(model: Any) -> Iterator[None]:
    """Let a model on a CPU decode by our attention in place of sdpa, whose kernel there is made for long queries."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not on_cpu or model.config._attn_implementation != GENERATING:
        yield
        return
    model.set_attn_implementation(_DECODE)
    try:
        yield
    finally:
        model.set_attn_implementation(GENERATING)


def decode(
    module: nn.Module,
    query_BHTD: torch.Tensor,
    key_BKSD: torch.Tensor,
    value_BKSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from one new token of each row to all before it; longer queries go to the library's sdpa.

    Heads that share keys are rows of one matrix product, so that no key is copied.
    """
    num_rows, num_heads, num_new, size = query_BHTD.shape
    if num_new != 1 or any(settings.get(name) is not None for name in _EXTRAS):
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query_BHTD, key_BKSD, value_BKSD, attention_mask, scaling=scaling, **settings
        )
        return found
    num_keys = key_BKSD.shape[1]
    query_BKGD = query_BHTD.view(num_rows, num_keys, num_heads // num_keys, size)
    score_BKGS = torch.matmul(query_BKGD, key_BKSD.transpose(2, 3)).float() * (scaling or size**-0.5)
    if attention_mask is not None:
        score_BKGS = _masked(score_BKGS, attention_mask)
    mixed_BKGD = torch.matmul(score_BKGS.softmax(-1).to(value_BKSD.dtype), value_BKSD)
    return mixed_BKGD.reshape(num_rows, 1, num_heads, -1), None


def _masked(score_BKGS: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Take out what a mask forbids, of one query for all heads or for each: False in a bool one, added in others."""
    if mask.shape[1] != 1:
        mask = mask.reshape(*score_BKGS.shape[:3], -1)
    if mask.dtype == torch.bool:
        return score_BKGS.masked_fill(~mask, torch.finfo(torch.float32).min)
    return score_BKGS + mask


def varlen(
    module: nn.Module,
    query_1HND: torch.Tensor,
    key_1KND: torch.Tensor,
    value_1KND: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within packed rows: they are laid below each other here and nowhere else in the model.

    So all that is a product with weights, nine tenths of the work, is done without padding.

    Args:
        attention_mask: of padded rows, which go to the library's sdpa; where rows are packed None, or the window of a
            layer that has one, of shape ().
        sliding_window: how many tokens one may look back to, itself included; None is no limit.
        cu_seq_lens_q: int32, (B + 1,), where rows begin, and the end.
        max_length_q: T.

    Raises:
        ValueError: the model asks for something that this attention does not have.
    """
    if any(settings.get(name) is not None for name in _EXTRAS):
        raise ValueError(f"'{VARLEN}' knows none of {', '.join(_EXTRAS)}, which this model uses")
    if cu_seq_lens_q is None or max_length_q is None:
        if attention_mask is not None and not attention_mask.ndim:
            # Rows without padding and without bounds, in a layer that has a window.
            attention_mask = ~_hidden(query_1HND.shape[2], int(attention_mask), query_1HND.device)[None, None]
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query_1HND, key_1KND, value_1KND, attention_mask, dropout=dropout, scaling=scaling, **settings
        )
        return found
    if attention_mask is not None:
        if attention_mask.ndim:
            raise ValueError(f"'{VARLEN}' takes packed rows by their bounds, and this model masks them otherwise")
        sliding_window = int(attention_mask)
    num_heads, num_tokens, size = query_1HND.shape[1:]
    num_keys, longest = key_1KND.shape[1], max_length_q
    start_B, num_rows = cu_seq_lens_q[:-1].long(), len(cu_seq_lens_q) - 1
    row_N = torch.searchsorted(cu_seq_lens_q[1:], torch.arange(num_tokens, device=start_B.device), right=True)
    at_N = row_N * longest + torch.arange(num_tokens, device=start_B.device) - start_B[row_N]
    query, key, value = (
        _Spread.apply(one[0].transpose(0, 1).reshape(num_tokens, -1), at_N, num_rows * longest)
        .view(num_rows, longest, one.shape[1], -1)
        .transpose(1, 2)
        for one in (query_1HND, key_1KND, value_1KND)
    )
    # Queries that share keys stand below each other, (B, K, G * T, D).
    query = query.reshape(num_rows, num_keys, -1, size)
    score = torch.matmul(query, key.transpose(2, 3)) * (scaling or size**-0.5)
    # Padding stands behind its row, so that who looks back never meets it.
    hidden_TT = _hidden(longest, sliding_window or longest, start_B.device)
    score = score + torch.zeros_like(hidden_TT, dtype=score.dtype).masked_fill(
        hidden_TT, torch.finfo(score.dtype).min
    ).repeat(num_heads // num_keys, 1)
    share = torch.nn.functional.softmax(score, -1, dtype=torch.float32).to(value.dtype)
    share = torch.nn.functional.dropout(share, dropout, module.training)
    mixed = torch.matmul(share, value).view(num_rows, num_heads, longest, -1).transpose(1, 2)
    together = _Gather.apply(mixed.reshape(num_rows * longest, -1), at_N)
    return together.view(1, num_tokens, num_heads, -1), None


def _hidden(size: int, window: int, device: torch.device) -> torch.Tensor:
    """Return which of the tokens of a row, (T, T), each one may not look at: those to come and those too far back."""
    place_T = torch.arange(size, device=device)
    back_TT = place_T[:, None] - place_T
    return (back_TT < 0) | (back_TT >= window)


class _Spread(torch.autograd.Function):
    """Lay rows of a matrix at places of a larger one, zeros elsewhere; no two have the same place."""

    @staticmethod
    def forward(context: Any, rows_NX: torch.Tensor, at_N: torch.Tensor, num_places: int) -> torch.Tensor:
        context.save_for_backward(at_N)
        return rows_NX.new_zeros(num_places, rows_NX.shape[1]).index_copy_(0, at_N, rows_NX)

    @staticmethod
    def backward(context: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (at_N,) = context.saved_tensors
        return grads[0].index_select(0, at_N), None, None


class _Gather(torch.autograd.Function):
    """Take rows of a matrix from places, each from another: the reverse of `_Spread`."""

    @staticmethod
    def forward(context: Any, rows_PX: torch.Tensor, at_N: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(at_N)
        context.num_places = len(rows_PX)
        return rows_PX.index_select(0, at_N)

    @staticmethod
    def backward(context: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (at_N,) = context.saved_tensors
        return grads[0].new_zeros(context.num_places, grads[0].shape[1]).index_copy_(0, at_N, grads[0]), None


def _mask_of_padded_rows(
    *arguments: Any, attention_mask: torch.Tensor | None = None, local_size: int | None = None, **settings: Any
) -> Any:
    """Make the mask that padded rows need; packed ones need no more than the window of a layer, on the host."""
    if attention_mask is None:
        return None if local_size is None else torch.tensor(local_size)
    return sdpa_mask(*arguments, attention_mask=attention_mask, local_size=local_size, **settings)


AttentionInterface.register(_DECODE, decode)
AttentionMaskInterface.register(_DECODE, sdpa_mask)
AttentionInterface.register(_REGISTERED[VARLEN], varlen)
AttentionMaskInterface.register(_REGISTERED[VARLEN], _mask_of_padded_rows)
