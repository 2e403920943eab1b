"""`generate` of transformers, the reference for our own decoding loop.

Shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from roundtrip.engine.request import GeneratedIds, GenerationRequest
from roundtrip.tokens.batching import left_pad


def generate_hf(model: Any, request: GenerationRequest) -> GeneratedIds:
    """Continue one batch by `generate`; every row goes on until the last one has ended."""
    request = request.repeat_per_candidate()
    device = next(model.parameters()).device
    ids_BT, mask_BT = (tensor.to(device) for tensor in left_pad(request.prompts, request.stop.pad_id))
    with _default_generation_config(model), _fork_rng(device), torch.inference_mode():
        torch.manual_seed(request.seed)
        ids_BS: torch.Tensor = model.generate(ids_BT, attention_mask=mask_BT, generation_config=_config(request))
    return GeneratedIds(ids_BS[:, ids_BT.shape[1] :])


def _config(request: GenerationRequest) -> Any:
    from transformers import GenerationConfig

    settings = request.settings
    sampling: dict[str, Any] = {}
    if settings.temperature_value > 0:
        # The library's own default of top_k is 50.
        sampling = {"temperature": settings.temperature_value, "top_k": 0, "top_p": settings.top_p}
    return GenerationConfig(
        max_new_tokens=max(request.limits) + 1,
        do_sample=bool(sampling),
        eos_token_id=request.stop.all_ids or None,
        pad_token_id=request.stop.pad_id,
        **sampling,
    )


@contextmanager
def _fork_rng(device: torch.device) -> Iterator[None]:
    """Leave the random state of the process as it is."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def _default_generation_config(model: Any) -> Iterator[None]:
    """Keep what the model's author ships (a temperature, a penalty) out of the recipe's settings."""
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
