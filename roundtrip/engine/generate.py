"""Writing hypotheses: token ids in, token ids out, in batches of like length.

Shapes: B rows, N new positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from roundtrip.engine.decoding import decode
from roundtrip.engine.hf_backends import generate_continuous, generate_hf
from roundtrip.engine.likelihood import log_likelihood
from roundtrip.engine.request import GeneratedIds, GenerationRequest
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from roundtrip.runtime.errors import ModelError
from roundtrip.runtime.memory import free_after_failure, is_out_of_memory, trim_heap
from roundtrip.runtime.seeding import derive_seed
from roundtrip.tokens.batching import TokenDataset, token_budget_batches
from roundtrip.tokens.prompt_template import TokenRow

# Tokens that a hypothesis may have beyond `max_length_ratio` times its source.
MAX_LENGTH_OFFSET = 10

# A batch that waits: its place, of which its seed is derived, and which prompts it holds.
_Entry = tuple[tuple[int, ...], list[int]]
_Engine = Callable[[nn.Module, GenerationRequest], GeneratedIds]


@dataclass(frozen=True)
class Hypotheses:
    """Generated ids without prompt and end token, on the device that wrote them.

    Attributes:
        ids_BN: int64, left-aligned; what stands at and after `size_B` has no meaning. A stop id that holds text is
            the last of its row.
        size_B: int64.
        finished_B: bool, an end token came within the limit.
        tokens_B: int64, tokens with the end token, where it came and is none of the hypothesis.
        logprob_B: float32, the sum over these, in nats, by the model itself (temperature 1, no filter, no penalty);
            None where nobody asked.
    """

    ids_BN: torch.Tensor
    size_B: torch.Tensor
    finished_B: torch.Tensor
    tokens_B: torch.Tensor
    logprob_B: torch.Tensor | None = None

    def per_token(self) -> list[float]:
        """Return the mean log-probability of a token of each row; 0 for one without tokens."""
        assert self.logprob_B is not None, "log-probabilities are there where they were asked for"
        return (self.logprob_B / self.tokens_B.clamp(min=1)).tolist()  # type: ignore[no-any-return]

    def lists(self) -> list[list[int]]:
        """Return the ids of each row; the host waits for the device."""
        return [ids[:size] for ids, size in zip(self.ids_BN.tolist(), self.size_B.tolist(), strict=True)]

    def to(self, device: torch.device | str) -> Hypotheses:
        """Return the same on another device."""
        logprob_B = None if self.logprob_B is None else self.logprob_B.to(device)
        ids_BN, size_B = self.ids_BN.to(device), self.size_B.to(device)
        return Hypotheses(ids_BN, size_B, self.finished_B.to(device), self.tokens_B.to(device), logprob_B)

    def pick(self, indices: Sequence[int]) -> Hypotheses:
        """Return some rows, in the given order."""
        at = torch.tensor(indices, dtype=torch.int64, device=self.ids_BN.device)
        logprob_B = None if self.logprob_B is None else self.logprob_B[at]
        return Hypotheses(self.ids_BN[at], self.size_B[at], self.finished_B[at], self.tokens_B[at], logprob_B)


def length_limit(num_source_tokens: int, recipe: Generate) -> int:
    """Return how many tokens a translation of so many source tokens may have."""
    return int(recipe.max_length_ratio * num_source_tokens) + MAX_LENGTH_OFFSET


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    recipe: Generate,
    *,
    pad_id: int,
    stop_ids: Sequence[int],
    text_stop_ids: Sequence[int] = (),
    seed: int,
    return_logprobs: bool = False,
    processes: ProcessGroup = SINGLE_PROCESS,
    on_progress: Callable[[int, int], None] = lambda rows, tokens: None,
    on_batch: Callable[[list[int], Hypotheses], None] = lambda rows, hypotheses: None,
    on_oom_split: Callable[[int], None] = lambda rows: None,
) -> Hypotheses:
    """Continue each prompt, `recipe.num_candidates` times.

    Args:
        model: a plain causal LM in eval mode (adapters merged).
        limits: most new tokens of each prompt, the end token not counted.
        recipe: engine, and sampling settings; temperature 0 is greedy.
        scored: whether the log-probability of each hypothesis is wanted.
        stop_ids: any of these ends a hypothesis; found by position, the first after the prompt.
        text_stop_ids: so do these, which stay in the hypothesis, being text in part (such as `.` + line break).
        seed: of sampling; each batch derives its own, so the result does not depend on what ran before.
        ranks: who else writes; each a part of the batches, which are those of a single process.
        tell: called after each batch of this process with its numbers of rows and new tokens; may raise to stop.
        seen: called before that with the places of the batch among all hypotheses, and these.
        halved: called with the rows of a batch that did not fit into memory and goes on in halves.

    Returns:
        The hypotheses in the order of their prompts, those of one prompt next to each other.

    Raises:
        ModelError: not even a single row fits into memory.
    """
    times = recipe.num_candidates
    # A batch is as long as its longest prompt plus its longest limit; like goes with like.
    lengths = [times * (len(prompt) + limit + 1) for prompt, limit in zip(prompts, limits, strict=True)]
    device = next(model.parameters()).device
    all_stops = sorted({*stop_ids, *text_stop_ids})
    stops, kept = (torch.tensor(ids, dtype=torch.int64, device=device) for ids in (all_stops, list(text_stop_ids)))
    engine = _engine(recipe.engine)
    order: list[int] = []
    written: list[Hypotheses] = []
    batches: list[_Entry] = [
        ((number,), group)
        for number, group in enumerate(token_budget_batches(range(len(prompts)), lengths, recipe.max_tokens_per_batch))
    ]
    # The next one stands last.
    waiting = processes.shard(batches)[::-1]
    while waiting:
        place, group = waiting.pop()
        work = GenerationRequest(
            [prompts[i] for i in group],
            [limits[i] for i in group],
            recipe,
            pad_id,
            all_stops,
            derive_seed(seed, *place),
            return_logprobs,
        )
        new = _if_it_fits(engine, model, work)
        if new is None:
            free_after_failure()
            size = _size(group, lengths)
            waiting = [part for entry in [*waiting, (place, group)] for part in _parts(entry, lengths, size)]
            on_oom_split(len(group))
            continue
        hypotheses = _cut(new, torch.tensor(work.one_each().limits, device=device), stops, kept)
        if return_logprobs and hypotheses.logprob_B is None:
            hypotheses = _scored(model, hypotheses, work)
        places = [times * i + sample for i in group for sample in range(times)]
        order += places
        written.append(hypotheses)
        on_batch(places, hypotheses)
        on_progress(len(group), int(hypotheses.tokens_B.sum()))
    trim_heap()
    if processes.world_size > 1:
        parts = processes.gather((order, [one.to("cpu") for one in written]))
        order = [place for places, _ in parts for place in places]
        written = [one.to(device) for _, some in parts for one in some]
    return _in_order(written, order, pad_id, device)


def _size(group: Sequence[int], lengths: Sequence[int]) -> int:
    return len(group) * max(lengths[i] for i in group)


def _parts(entry: _Entry, lengths: Sequence[int], too_large: int) -> list[_Entry]:
    """Return a batch in halves, the second first, where it is as large as one that did not fit."""
    place, group = entry
    if len(group) == 1 or _size(group, lengths) < too_large:
        return [entry]
    half = len(group) // 2
    return [((*place, 1), group[half:]), ((*place, 0), group[:half])]


def _if_it_fits(engine: _Engine, model: nn.Module, work: GenerationRequest) -> GeneratedIds | None:
    """Return what a batch comes to, None where memory runs out on it.

    Raises:
        ModelError: it is a single text.
    """
    try:
        return engine(model, work)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(work.prompts) > 1:
            return None
        raise ModelError(
            f"memory ran out on a single text of {len(work.prompts[0])} tokens",
            place="generate",
            cure="lower data.filter.max_chars, generate.max_length_ratio and generate.num_candidates, or use a "
            "smaller model",
        ) from error


def _engine(name: str) -> _Engine:
    match name:
        case "transformers":
            return generate_hf
        case "continuous":
            return generate_continuous
        case _:
            native: _Engine = decode
            return native


def _cut(new: GeneratedIds, limit_B: torch.Tensor, stops: torch.Tensor, kept: torch.Tensor) -> Hypotheses:
    """End each row at its first stop id by position, or at its limit."""
    new_BN, num = new.ids_BN, new.ids_BN.shape[1]
    place_B = torch.where(torch.isin(new_BN, stops), 0, 1).cumprod(1).sum(1)
    finished_B = (place_B < num) & (place_B <= limit_B)
    last_B = new_BN.gather(1, place_B.clamp(max=num - 1)[:, None])[:, 0]
    size_B = torch.where(finished_B, place_B + torch.isin(last_B, kept), torch.minimum(limit_B, place_B))
    tokens_B = torch.where(finished_B, place_B + 1, size_B)
    return Hypotheses(new_BN, size_B, finished_B, tokens_B, new.logprob_B)


def _scored(model: nn.Module, hypotheses: Hypotheses, work: GenerationRequest) -> Hypotheses:
    """Add the log-probabilities that an engine has not given, by another pass over what it wrote."""
    rows = [
        TokenRow([*prompt, *ids[:size]], len(prompt))
        for prompt, ids, size in zip(
            work.one_each().prompts, hypotheses.ids_BN.tolist(), hypotheses.tokens_B.tolist(), strict=True
        )
    ]
    table = TokenDataset.of(rows, hypotheses.ids_BN.device)
    return replace(
        hypotheses, logprob_B=log_likelihood(model, table, work.pad_id, work.recipe.max_tokens_per_batch // 4)
    )


def _in_order(written: Sequence[Hypotheses], order: Sequence[int], pad_id: int, device: torch.device) -> Hypotheses:
    """Join batches, and bring their rows into the order of the prompts."""
    if not written:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return Hypotheses(empty[:, None], empty, empty.bool(), empty)
    width = max(one.ids_BN.shape[1] for one in written)
    wide = [torch.nn.functional.pad(one.ids_BN, (0, width - one.ids_BN.shape[1]), value=pad_id) for one in written]
    logprobs = [one.logprob_B for one in written if one.logprob_B is not None]
    joined = Hypotheses(
        torch.cat(wide),
        torch.cat([one.size_B for one in written]),
        torch.cat([one.finished_B for one in written]),
        torch.cat([one.tokens_B for one in written]),
        torch.cat(logprobs) if logprobs else None,
    )
    places = sorted(range(len(order)), key=lambda place: order[place])
    return joined.pick(places)
