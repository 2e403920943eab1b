"""Generated hypotheses as tensors, and their text. Shapes: B hypotheses, N new positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from roundtrip.runtime.distributed import ProcessGroup
from roundtrip.tokens.prompt_template import PromptTemplate


@dataclass(frozen=True)
class Hypotheses:
    """Generated ids without prompt and end token, on the device that generated them; int64 where nothing is said."""

    ids_BN: torch.Tensor  # what stands at and after `size_B` has no meaning; a stop id that holds text is the last
    size_B: torch.Tensor  # tokens of each hypothesis
    finished_B: torch.Tensor  # bool, an end token came within the limit
    tokens_B: torch.Tensor  # tokens including an end token that is no part of the hypothesis
    # float32, the sum over these tokens in nats, at temperature 1 without a filter; None where it was not asked for.
    logprob_B: torch.Tensor | None = None

    def per_token(self) -> list[float]:
        """Return the mean log-probability of a token of each row; 0 for one without tokens."""
        assert self.logprob_B is not None, "log-probabilities exist only where they were asked for"
        return (self.logprob_B / self.tokens_B.clamp(min=1)).tolist()  # type: ignore[no-any-return]

    def lists(self) -> list[list[int]]:
        """Return the ids of each row; the host waits for the device."""
        return [ids[:size] for ids, size in zip(self.ids_BN.tolist(), self.size_B.tolist(), strict=True)]

    def to(self, device: torch.device | str) -> Hypotheses:
        return self._map(lambda tensor: tensor.to(device))

    def select(self, indices: Sequence[int]) -> Hypotheses:
        """Return some rows, in the given order."""
        index_R = torch.tensor(indices, dtype=torch.int64, device=self.ids_BN.device)
        return self._map(lambda tensor: tensor[index_R])

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Hypotheses:
        return Hypotheses(*(None if tensor is None else change(tensor) for tensor in vars(self).values()))


def join_hypotheses(
    batches: Sequence[Hypotheses], order: Sequence[int], pad_id: int, device: torch.device
) -> Hypotheses:
    """Join batches, and sort their rows by `order`, the index of each among all hypotheses."""
    if not batches:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return Hypotheses(empty[:, None], empty, empty.bool(), empty)
    width = max(batch.ids_BN.shape[1] for batch in batches)
    pad = torch.nn.functional.pad
    wide = [replace(b, ids_BN=pad(b.ids_BN, (0, width - b.ids_BN.shape[1]), value=pad_id)) for b in batches]
    columns = zip(*(vars(batch).values() for batch in wide), strict=True)
    joined = Hypotheses(*(None if column[0] is None else torch.cat(column) for column in columns))
    return joined.select(sorted(range(len(order)), key=lambda row: order[row]))


class HypothesisDecoder:
    """Decodes finished batches in a thread while the device generates; `reread_with` encodes the texts again."""

    def __init__(self, template: PromptTemplate, reread_with: PromptTemplate | None) -> None:
        self._template, self._reread_with = template, reread_with
        self._thread = ThreadPoolExecutor(1)
        self._batches: list[tuple[list[int], Future[tuple[list[str], list[list[int]]]]]] = []

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def submit(self, indices: list[int], hypotheses: Hypotheses) -> None:
        """Start to decode a batch; `indices` are those of its rows among all hypotheses."""
        if self._batches and self._batches[-1][1].done():
            self._batches[-1][1].result()  # raises an error of the thread now rather than at the end
        self._batches.append((indices, self._thread.submit(self._decode, hypotheses)))

    def _decode(self, hypotheses: Hypotheses) -> tuple[list[str], list[list[int]]]:
        texts = [self._template.hypothesis_text(ids) for ids in hypotheses.lists()]
        return texts, self._reread_with.row_starts(texts) if self._reread_with is not None else [[] for _ in texts]

    def collect(self, num_hypotheses: int, processes: ProcessGroup) -> tuple[list[str], list[list[int]] | None]:
        """Return texts and row starts (None without a template) of all batches of all processes."""
        texts, row_starts = [""] * num_hypotheses, [[0] * 0 for _ in range(num_hypotheses)]
        own = [(indices, *future.result()) for indices, future in self._batches]
        for batch in (batch for batches in processes.gather(own) for batch in batches):
            for index, text, row_start in zip(*batch, strict=True):
                texts[index], row_starts[index] = text, row_start
        return texts, row_starts if self._reread_with is not None else None
