"""Generating hypotheses: token ids in, token ids out, in batches of similar length. Shapes: B rows, N new positions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from roundtrip.engine.backend import Backend, call_generate, choose_backend
from roundtrip.engine.beam_search import beam_search
from roundtrip.engine.decoding import decode
from roundtrip.engine.hypotheses import Hypotheses, join_hypotheses
from roundtrip.engine.likelihood import log_likelihood
from roundtrip.engine.request import Callbacks, GenerationRequest
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from roundtrip.runtime.errors import ModelError
from roundtrip.runtime.memory import run_in_halves, trim_heap
from roundtrip.runtime.seeding import derive_seed
from roundtrip.tokens.batching import TokenDataset, left_pad, token_budget_batches
from roundtrip.tokens.prompt_template import TokenRow

# Tokens that a hypothesis may have beyond `max_length_ratio` times its source.
MAX_LENGTH_OFFSET = 10
# The number of a batch, with a 0 or 1 for each time it was halved, for its seed; and the indices of its prompts.
_Batch = tuple[tuple[int, ...], list[int]]


def length_limit(num_source_tokens: int, settings: Generate) -> int:
    """Return the most tokens that the translation of so many may have."""
    return int(settings.max_length_ratio * num_source_tokens) + MAX_LENGTH_OFFSET


def generate(
    model: nn.Module,
    request: GenerationRequest,
    callbacks: Callbacks = Callbacks(),  # noqa: B008 (frozen)
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Hypotheses:
    """Continue each prompt, `request.settings.num_candidates` times, with a plain causal LM in eval mode.

    Each batch derives its own seed, so the result does not depend on what ran before; one that does not fit into memory
    continues in halves. Processes share the batches.

    Returns:
        The hypotheses in the order of their prompts, those of one prompt next to each other.
    """
    times = request.settings.num_candidates
    # A batch is as long as its longest prompt plus its longest limit, so similar lengths go together.
    num_rows = max(times, request.settings.beams)
    pairs = zip(request.prompts, request.limits, strict=True)
    lengths = [num_rows * (len(prompt) + limit + 1) for prompt, limit in pairs]
    device = next(model.parameters()).device
    groups = list(token_budget_batches(range(len(request.prompts)), lengths, request.settings.max_tokens_per_batch))
    backend = choose_backend(model, request.settings, request.stop.pad_id) if groups else Backend(native=True)
    if not backend.mixes_lengths:
        groups = [part for group in groups for part in _of_one_length(group, request.prompts)]
    batches: list[_Batch] = [((number,), group) for number, group in enumerate(groups)]

    def run(batch: _Batch) -> tuple[list[int], Hypotheses]:
        number, group = batch
        return group, _run_backend(model, request.select(group, derive_seed(request.seed, *number)), backend)

    def too_large(batch: _Batch) -> ModelError:
        problem = f"memory ran out on a single prompt of {len(request.prompts[batch[1][0]])} tokens"
        cure = "lower data.filter.max_chars, generate.max_length_ratio, generate.num_candidates, or use a smaller model"
        return ModelError(problem, place="generate", cure=cure)

    order: list[int] = []
    generated: list[Hypotheses] = []
    for group, hypotheses in run_in_halves(
        processes.shard(batches),
        run,
        _halves,
        size=lambda batch: len(batch[1]) * max(lengths[i] for i in batch[1]),
        too_large=too_large,
        on_split=lambda batch: callbacks.on_oom_split(len(batch[1])),
    ):
        indices = [times * i + candidate for i in group for candidate in range(times)]
        order += indices
        generated.append(hypotheses)
        callbacks.on_batch(indices, hypotheses)
        callbacks.on_progress(len(group), int(hypotheses.tokens_B.sum()))
    trim_heap()
    if processes.world_size > 1:
        parts = processes.gather((order, [hypotheses.to("cpu") for hypotheses in generated]))
        order = [index for indices, _ in parts for index in indices]
        generated = [hypotheses.to(device) for _, part in parts for hypotheses in part]
    return join_hypotheses(generated, order, request.stop.pad_id, device)


def _halves(batch: _Batch) -> list[_Batch]:
    number, group = batch
    half = len(group) // 2
    return [((*number, 0), group[:half]), ((*number, 1), group[half:])] if half else []


def _of_one_length(group: list[int], prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return a group of prompts in parts that need no padding."""
    parts: dict[int, list[int]] = {}
    for i in group:
        parts.setdefault(len(prompts[i]), []).append(i)
    return list(parts.values())


def _run_backend(model: nn.Module, request: GenerationRequest, backend: Backend) -> Hypotheses:
    """Generate one batch, and end each row."""
    if backend.native:
        beams = request.settings.beams
        new_BN, logprob_B = (beam_search(model, request), None) if beams > 1 else decode(model, request)
        return _end_rows(new_BN, logprob_B, request)
    hypotheses = _end_rows(generate_hf(model, request, backend.use_cache), None, request)
    return _add_logprobs(model, hypotheses, request) if request.return_logprobs else hypotheses


def generate_hf(model: Any, request: GenerationRequest, use_cache: bool = True) -> torch.Tensor:
    """Continue one batch by `generate` of transformers, the reference for `decode` and `beam_search`, as these do."""
    num_beams, request = request.settings.beams, request.repeat_per_candidate()
    settings, device = request.settings, next(model.parameters()).device
    ids_BT, mask_BT = left_pad(request.prompts, request.stop.pad_id)
    sampling: dict[str, Any] = {"num_beams": num_beams} if num_beams > 1 else {}
    if settings.temperature_value > 0:
        # The library's own default of top_k is 50.
        sampling = {"do_sample": True, "temperature": settings.temperature_value, "top_k": 0, "top_p": settings.top_p}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
        torch.manual_seed(request.seed)
        ids_BS: torch.Tensor = call_generate(
            model,
            ids_BT,
            mask_BT,
            max_new_tokens=max(request.limits) + 1,
            eos_token_id=request.stop.all_ids or None,
            pad_token_id=request.stop.pad_id,
            use_cache=use_cache,
            **sampling,
        )
    return ids_BS[:, ids_BT.shape[1] :]


def _end_rows(new_BN: torch.Tensor, logprob_B: torch.Tensor | None, request: GenerationRequest) -> Hypotheses:
    """End each row at its first stop id by position, or at its limit."""
    num_new, device = new_BN.shape[1], new_BN.device
    limit_B = torch.tensor(request.repeat_per_candidate().limits, device=device)
    stops = torch.tensor(request.stop.all_ids, dtype=torch.int64, device=device)
    text_stops = torch.tensor(list(request.stop.text_stop_ids), dtype=torch.int64, device=device)
    end_B = torch.where(torch.isin(new_BN, stops), 0, 1).cumprod(1).sum(1)
    finished_B = (end_B < num_new) & (end_B <= limit_B)
    last_B = new_BN.gather(1, end_B.clamp(max=num_new - 1)[:, None])[:, 0]
    size_B = torch.where(finished_B, end_B + torch.isin(last_B, text_stops), torch.minimum(limit_B, end_B))
    tokens_B = torch.where(finished_B, end_B + 1, size_B)
    return Hypotheses(new_BN, size_B, finished_B, tokens_B, logprob_B)


def _add_logprobs(model: nn.Module, hypotheses: Hypotheses, request: GenerationRequest) -> Hypotheses:
    """Add log-probabilities by another pass over what was generated."""
    prompts = request.repeat_per_candidate().prompts
    rows = [
        TokenRow([*prompt, *ids[:size]], len(prompt))
        for prompt, ids, size in zip(prompts, hypotheses.ids_BN.tolist(), hypotheses.tokens_B.tolist(), strict=True)
    ]
    dataset = TokenDataset.of(rows, hypotheses.ids_BN.device)
    budget = request.settings.max_tokens_per_batch // 4
    return replace(hypotheses, logprob_B=log_likelihood(model, dataset, request.stop.pad_id, budget))
