"""The library's own ways to generate: `generate` of transformers, the reference, and its continuous batching.

Shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from roundtrip.engine.request import GeneratedIds, GenerationRequest
from roundtrip.runtime.errors import ModelError
from roundtrip.runtime.memory import is_out_of_memory
from roundtrip.tokens.batching import left_pad

# Positions in a page of the cache of continuous batching.
_PAGE = 16


def generate_hf(model: Any, work: GenerationRequest) -> GeneratedIds:
    """Continue one batch by `generate`; every row goes on until the last one has ended."""
    from transformers.generation.logits_process import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    work = work.one_each()
    device, recipe = next(model.parameters()).device, work.recipe
    ids_BT, mask_BT = (tensor.to(device) for tensor in left_pad(work.prompts, work.pad_id))
    width = ids_BT.shape[1]
    processors = LogitsProcessorList()
    if recipe.repetition_penalty != 1:
        processors.append(
            RepetitionPenaltyLogitsProcessor(penalty=recipe.repetition_penalty, prompt_ignore_length=width)
        )
    with _plainly(model), _own_random(device), torch.inference_mode():
        torch.manual_seed(work.seed)
        found: torch.Tensor = model.generate(
            ids_BT,
            attention_mask=mask_BT,
            generation_config=_settings(work),
            logits_processor=processors,
        )
    return GeneratedIds(found[:, width:])


def generate_continuous(model: Any, work: GenerationRequest) -> GeneratedIds:
    """Continue one batch by continuous batching; a row that has ended gives its place to one that waits.

    The cache is sized for the batch: left to itself the library takes most of the free memory.

    Returns:
        Rows that ended early are filled with `pad_id`.

    Raises:
        OutOfMemoryError: the batch does not fit.
        ModelError: the library has dropped a row, which it logs and does not raise.
    """
    from transformers import ContinuousBatchingConfig

    work = work.one_each()
    prompts, limits = work.prompts, work.limits
    longest = max(map(len, prompts)) + max(limits) + 1
    sizes = ContinuousBatchingConfig(
        page_size=_PAGE,
        num_blocks=(longest // _PAGE + 2) * len(prompts),
        # All prompts in a few forward passes, and a mask of tokens by cache that stays small.
        max_batch_tokens=max(256, longest, min(2048, sum(map(len, prompts)))),
        auto_switch_to_flash=False,
        seed=work.seed % 2**31,
    )
    device = next(model.parameters()).device
    with _plainly(model), _own_random(device):
        found = model.generate_batch(
            inputs=[list(prompt) for prompt in prompts],
            generation_config=_settings(work),
            continuous_batching_config=sizes,
            progress_bar=False,
            warmup=False,
        )
    written = [one for _, one in sorted(found.items(), key=lambda item: int(item[0].rpartition("_")[2]))]
    broken = next((one for one in written if one.error), None)
    if len(written) != len(prompts) or broken is not None:
        said = broken.error if broken is not None else f"{len(prompts) - len(written)} rows are missing"
        if is_out_of_memory(RuntimeError(said)):
            raise torch.OutOfMemoryError(said)
        raise ModelError(
            f"continuous batching failed: {said}", place="generate.engine", cure='use "native" or "transformers"'
        )
    width = max(len(one.generated_tokens) for one in written)
    rows = [[*one.generated_tokens, *(width - len(one.generated_tokens)) * [work.pad_id]] for one in written]
    return GeneratedIds(torch.tensor(rows, dtype=torch.int64, device=device))


def _settings(work: GenerationRequest) -> Any:
    from transformers import GenerationConfig

    recipe = work.recipe
    sampling: dict[str, Any] = {}
    if recipe.heat > 0:
        sampling = {"temperature": recipe.heat, "top_k": recipe.top_k, "top_p": recipe.top_p}
        sampling |= {"min_p": recipe.min_p} if recipe.min_p else {}
    return GenerationConfig(
        max_new_tokens=max(work.limits) + 1,
        do_sample=bool(sampling),
        eos_token_id=list(work.stop_ids) or None,
        pad_token_id=work.pad_id,
        **sampling,
    )


@contextmanager
def _own_random(device: torch.device) -> Iterator[None]:
    """Leave the random state of the process as it is."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def _plainly(model: Any) -> Iterator[None]:
    """Keep what the model's author ships (a temperature, a penalty) out of the recipe's settings."""
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
