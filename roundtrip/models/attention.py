"""Our own attentions, which a loaded model selects by name: for packed rows without FlashAttention, and for decoding.
Shapes: B rows, T positions of the longest, N tokens of all rows one behind the other, S keys, H query heads, K heads of
keys and values, G = H / K query heads that share one, D numbers a head.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations import hub_kernels
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available

from roundtrip.runtime.errors import ModelError, first_line

# Models are loaded with the first that transformers has for them, and generate with it.
_SDPA, _EAGER = "sdpa", "eager"
# The names of ours.
VARLEN, _DECODE = "varlen", "roundtrip_decode"
# These read the bounds of packed rows; others need a mask of all tokens by all tokens.
READ_BOUNDS = (VARLEN, "flash_attention_2")
# Arguments that ours do not support, and must not ignore.
_EXTRAS = ("position_bias", "softcap", "s_aux", "sinks", "indices")


def generating(model_class: Any) -> str:
    """Return the attention that models of a class generate with: eager where transformers has no sdpa for them."""
    return _SDPA if getattr(model_class, "_supports_sdpa", True) else _EAGER


def candidates(name: str, device: torch.device, generating: str) -> tuple[str, ...]:
    """Return the attentions for training by their names in a recipe, the best first; the last takes padded rows."""
    if name != "auto":
        return (name,)
    if device.type == "cpu":
        return VARLEN, _EAGER
    return (VARLEN, *(("flash_attention_2",) if is_flash_attn_2_available() else ()), generating)


def forbid_hub_kernels() -> None:
    """Keep transformers, in this process, from fetching kernels from the hub, which are programs.

    A configuration may name one, FlashAttention is replaced by one where it is not installed, and some models ask for
    one when they are built.
    """
    hub_kernels.get_kernel = hub_kernels.get_kernel_hub = _refuse_kernel
    hub_kernels._kernels_enabled = False
    with suppress(ImportError):
        package: Any = importlib.import_module("kernels")
        package.get_kernel = _refuse_kernel


def _refuse_kernel(name: str, *_: Any, **settings: Any) -> Any:
    raise ImportError(f"the kernel '{name}' of the hub is a program, which is not fetched")


def choose(model: Any, name: str) -> None:
    """Choose the attention of a loaded model; an error says that it has none of that name, or it is not installed."""
    try:
        if name == VARLEN and getattr(model.config, "attention_chunk_size", None) is not None:
            raise ValueError("it does not support the chunked attention of this model")
        model.set_attn_implementation(name)
        if model.config._attn_implementation != name:
            raise ValueError("this model cannot change its attention once it is loaded")
    except (ValueError, ImportError) as error:
        raise unusable(name, error) from error


def unusable(name: str, error: Exception) -> ModelError:
    """Return the error of an attention that the recipe names and this model or machine does not support."""
    problem = f"attention '{name}' cannot be used with this model: {first_line(error)}"
    others = " or ".join(f"'{other}'" for other in ("auto", _SDPA, _EAGER) if other != name)
    return ModelError(problem, place="model.attention", cure=f"use {others}")


def require_flash_attention() -> None:
    """Refuse a machine without the package that the attention `flash_attention_2` needs."""
    if not is_flash_attn_2_available():
        problem = "flash-attn is not installed, or does not support this machine"
        cure = 'pip install "roundtrip-mt[flash]", or set model.attention = "auto"'
        raise ModelError(problem, place="model.attention", cure=cure)


@contextmanager
def decode_attention(model: Any) -> Iterator[None]:
    """Let a model on a CPU decode with our attention instead of sdpa, whose kernel there is made for long queries."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not on_cpu or model.config._attn_implementation != _SDPA:
        yield
        return
    model.set_attn_implementation(_DECODE)
    try:
        yield
    finally:
        model.set_attn_implementation(_SDPA)


def decode(
    module: nn.Module,
    query_BHTD: torch.Tensor,
    key_BKSD: torch.Tensor,
    value_BKSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from one new token of each row to all before it; longer queries are computed by transformers' sdpa."""
    num_rows, num_heads, num_new, size = query_BHTD.shape
    if num_new != 1 or any(settings.get(name) is not None for name in _EXTRAS):
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query_BHTD, key_BKSD, value_BKSD, attention_mask, scaling=scaling, **settings
        )
    # Heads that share keys are rows of one matrix product, so that no key is copied.
    num_keys = key_BKSD.shape[1]
    query_BKGD = query_BHTD.view(num_rows, num_keys, num_heads // num_keys, size)
    score_BKGS = torch.matmul(query_BKGD, key_BKSD.transpose(2, 3)).float() * (scaling or size**-0.5)
    if attention_mask is not None:
        score_BKGS = _masked(score_BKGS, attention_mask)
    mixed_BKGD = torch.matmul(score_BKGS.softmax(-1).to(value_BKSD.dtype), value_BKSD)
    return mixed_BKGD.reshape(num_rows, 1, num_heads, -1), None


def _masked(score_BKGS: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Apply the mask of a query, for all heads or for each: a bool one hides where it is False, others are added."""
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
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within packed rows, which are padded here and nowhere else: products with weights are without padding.

    Packed rows come with `cu_seq_lens_q`, int32, (B + 1,), their bounds, and `max_length_q`, T; their mask is None, or
    the window of a layer that has one, of shape (). Padded rows are computed by transformers' sdpa.
    """
    if any(settings.get(name) is not None for name in _EXTRAS):
        raise ValueError(f"'{VARLEN}' supports none of {', '.join(_EXTRAS)}, which this model uses")
    bounds, longest, window = (settings.pop(name, None) for name in ("cu_seq_lens_q", "max_length_q", "sliding_window"))
    if bounds is None or longest is None:
        if attention_mask is not None and not attention_mask.ndim:
            # Rows without padding and without bounds, in a layer that has a window.
            attention_mask = ~_hidden(query_1HND.shape[2], int(attention_mask), query_1HND.device)[None, None]
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query_1HND, key_1KND, value_1KND, attention_mask, **settings
        )
    if attention_mask is not None:
        if attention_mask.ndim:
            raise ValueError(f"'{VARLEN}' takes packed rows by their bounds, and this model masks them otherwise")
        window = int(attention_mask)
    if query_1HND.device.type == "cuda":
        heads = tuple(tensor[0].transpose(0, 1) for tensor in (query_1HND, key_1KND, value_1KND))
        return _flash_varlen(module, heads, (bounds, longest), window, settings), None
    num_heads, num_tokens, size = query_1HND.shape[1:]
    num_rows, num_keys = len(bounds) - 1, key_1KND.shape[1]
    token_N = torch.arange(num_tokens, device=bounds.device)
    row_N = torch.searchsorted(bounds[1:], token_N, right=True)
    # The index of each packed token among the positions of padded rows.
    index_N = row_N * longest + token_N - bounds[:-1].long()[row_N]
    query, key, value = (
        tensor.new_zeros(num_rows * longest, tensor.shape[1] * tensor.shape[3])
        .index_copy_(0, index_N, tensor[0].transpose(0, 1).reshape(num_tokens, -1))
        .view(num_rows, longest, tensor.shape[1], -1)
        .transpose(1, 2)
        for tensor in (query_1HND, key_1KND, value_1KND)
    )
    # Queries that share keys stand below each other, (B, K, G * T, D).
    query = query.reshape(num_rows, num_keys, -1, size)
    score = torch.matmul(query, key.transpose(2, 3)) * (settings.get("scaling") or size**-0.5)
    # Padding stands behind its row, so a causal mask hides it.
    hidden_TT = _hidden(longest, window or longest, bounds.device)
    bias_TT = torch.zeros_like(hidden_TT, dtype=score.dtype).masked_fill(hidden_TT, torch.finfo(score.dtype).min)
    score = score + bias_TT.repeat(num_heads // num_keys, 1)
    weight = torch.nn.functional.softmax(score, -1, dtype=torch.float32).to(value.dtype)
    weight = torch.nn.functional.dropout(weight, settings.get("dropout", 0.0), module.training)
    mixed = torch.matmul(weight, value).view(num_rows, num_heads, longest, -1).transpose(1, 2)
    packed = mixed.reshape(num_rows * longest, -1).index_select(0, index_N)
    return packed.view(1, num_tokens, num_heads, -1), None


def _flash_varlen(
    module: nn.Module,
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    rows: tuple[torch.Tensor, int],
    window: int | None,
    settings: dict[str, Any],
) -> torch.Tensor:
    """Attend within packed rows by torch's own FlashAttention kernels (https://arxiv.org/abs/2307.08691).

    Args:
        heads: queries (N, H, D), keys and values (N, K, D), in float16 or bfloat16.
        rows: the bounds of rows, int32, (B + 1,), and T.
        window: how many tokens one attends to, itself included; None is all before it.

    Returns: shape (1, N, H, D).

    Raises:
        ValueError: what these kernels do not compute; torch says itself which sizes of heads and which devices.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise ValueError(f"'{VARLEN}' on a GPU needs torch 2.10, this is {torch.__version__}") from error
    if heads[0].dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"'{VARLEN}' on a GPU computes in float16 or bfloat16, not in {heads[0].dtype}")
    if module.training and settings.get("dropout"):
        raise ValueError(f"'{VARLEN}' on a GPU has no dropout of attention weights, and this model asks for it")
    bounds, longest = rows
    mixed_NHD = varlen_attn(
        *heads,
        bounds,
        bounds,
        longest,
        longest,
        scale=settings.get("scaling"),
        # Before a token are window - 1 others; -1 is no limit.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=heads[0].shape[1] != heads[1].shape[1],
    )
    assert isinstance(mixed_NHD, torch.Tensor)
    return mixed_NHD[None]


def _hidden(size: int, window: int, device: torch.device) -> torch.Tensor:
    """Return which tokens of a row each one may not attend to, (T, T): later ones, and those outside of the window."""
    position_T = torch.arange(size, device=device)
    back_TT = position_T[:, None] - position_T
    return (back_TT < 0) | (back_TT >= window)


def _mask_of_padded_rows(
    *arguments: Any, attention_mask: torch.Tensor | None = None, local_size: int | None = None, **settings: Any
) -> Any:
    """Make the mask of padded rows; packed ones need only the window of a layer, on the host."""
    if attention_mask is None:
        return None if local_size is None else torch.tensor(local_size)
    return sdpa_mask(*arguments, attention_mask=attention_mask, local_size=local_size, **settings)


AttentionInterface.register(_DECODE, decode)
AttentionMaskInterface.register(_DECODE, sdpa_mask)
AttentionInterface.register(VARLEN, varlen)
AttentionMaskInterface.register(VARLEN, _mask_of_padded_rows)
