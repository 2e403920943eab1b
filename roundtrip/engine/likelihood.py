"""Log-probabilities of given targets: forward passes over rows, nothing is generated."""

from collections.abc import Callable
from typing import Any

import torch

from roundtrip.models import forward
from roundtrip.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from roundtrip.runtime.errors import ModelError
from roundtrip.runtime.memory import run_in_halves
from roundtrip.tokens.batching import Batch, TokenDataset, collate, token_budget_batches


@torch.inference_mode()
def log_likelihood(
    model: Any,
    dataset: TokenDataset,
    pad_id: int,
    max_tokens_per_microbatch: int,
    on_progress: Callable[[int, int], None] = lambda rows, tokens: None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> torch.Tensor:
    """Return the summed log-probability of each row's labels, in nats; float32, (R,).

    A forward pass takes so many padded tokens, or half where memory runs out. `on_progress` is called after each one,
    with no new rows and tokens, and may raise to stop.
    """
    logprob_R = torch.zeros(len(dataset), device=dataset.ids_X.device)
    groups = list(token_budget_batches(range(len(dataset)), dataset.sizes, max_tokens_per_microbatch))

    def score(group: list[int]) -> tuple[list[int], torch.Tensor]:
        batch = collate(dataset, group, pad_id)
        keep_BT, targets_N = batch.predictions()
        loss_N = torch.nn.functional.cross_entropy(label_logits(model, batch, keep_BT), targets_N, reduction="none")
        logprob_B = torch.zeros(len(group), device=loss_N.device)
        return group, logprob_B.index_add_(0, keep_BT.nonzero()[:, 0], loss_N, alpha=-1)

    for group, logprob_B in run_in_halves(
        processes.shard(groups),
        score,
        lambda group: [group[: len(group) // 2], group[len(group) // 2 :]] if len(group) > 1 else [],
        size=lambda group: len(group) * max(dataset.sizes[i] for i in group),
        too_large=lambda group: ModelError(
            f"memory ran out on a single row of {dataset.sizes[group[0]]} tokens",
            place="train.max_tokens_per_microbatch",
            cure="lower data.filter.max_chars, or leave out generate.num_candidates and train.patience",
        ),
        on_split=lambda group: on_progress(0, 0),
    ):
        logprob_R[torch.tensor(group, device=logprob_R.device)] = logprob_B
        on_progress(0, 0)
    return processes.all_reduce(logprob_R)


def label_logits(model: Any, batch: Batch, keep_BT: torch.Tensor) -> torch.Tensor:
    """Return the logits at the positions that predict a label, float32, (N, V); few models compute others too."""
    # With a cache transformers does not keep packed rows apart.
    inputs = forward.supported(model, use_cache=False, **batch.inputs)
    if forward.takes(model, "logits_to_keep"):
        logits = model(input_ids=batch.ids_BT, logits_to_keep=keep_BT, **inputs).logits
    else:
        logits = model(input_ids=batch.ids_BT, **inputs).logits[keep_BT]
    return logits.float().view(-1, logits.shape[-1])
