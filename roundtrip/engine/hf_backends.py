"""`generate` of transformers, the reference for our own decoding loop."""

from __future__ import annotations

from typing import Any

import torch

from roundtrip.engine.request import GenerationRequest
from roundtrip.tokens.batching import left_pad


def generate_hf(model: Any, request: GenerationRequest) -> tuple[torch.Tensor, None]:
    """Continue one batch by `generate`, until its last row has ended; return ids as `decode` does, and None."""
    from transformers import GenerationConfig

    request = request.repeat_per_candidate()
    device = next(model.parameters()).device
    ids_BT, mask_BT = (tensor.to(device) for tensor in left_pad(request.prompts, request.stop.pad_id))
    settings = request.settings
    sampling: dict[str, Any] = {}
    if settings.temperature_value > 0:
        # The library's own default of top_k is 50.
        sampling = {"temperature": settings.temperature_value, "top_k": 0, "top_p": settings.top_p}
    config = GenerationConfig(
        max_new_tokens=max(request.limits) + 1,
        do_sample=bool(sampling),
        eos_token_id=request.stop.all_ids or None,
        pad_token_id=request.stop.pad_id,
        **sampling,
    )
    # What the model's author ships (a temperature, a penalty) must not change the recipe's settings.
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
            torch.manual_seed(request.seed)
            ids_BS: torch.Tensor = model.generate(ids_BT, attention_mask=mask_BT, generation_config=config)
    finally:
        model.generation_config = own
    return ids_BS[:, ids_BT.shape[1] :], None
