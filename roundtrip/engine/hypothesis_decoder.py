"""Decoding hypotheses to text in a thread, while the device generates the next batch."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from roundtrip.engine.hypotheses import Hypotheses
from roundtrip.runtime.distributed import ProcessGroup
from roundtrip.tokens.prompt_template import PromptTemplate


class HypothesisDecoder:
    """Decodes finished batches in a thread, and encodes the texts again where a template is given."""

    def __init__(self, template: PromptTemplate, reread_with: PromptTemplate | None) -> None:
        self._template, self._reread_with = template, reread_with
        self._thread = ThreadPoolExecutor(1)
        self._batches: list[tuple[list[int], Future[tuple[list[str], list[list[int]]]]]] = []

    def __enter__(self) -> HypothesisDecoder:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def submit(self, indices: list[int], hypotheses: Hypotheses) -> None:
        """Start to decode a batch; `indices` are those of its rows among all hypotheses."""
        if self._batches and self._batches[-1][1].done():
            self._batches[-1][1].result()  # raises an error of the thread now rather than at the end
        self._batches.append((indices, self._thread.submit(self._decode, hypotheses)))

    def _decode(self, hypotheses: Hypotheses) -> tuple[list[str], list[list[int]]]:
        texts = [self._template.hypothesis_text(ids) for ids in hypotheses.lists()]
        return texts, self._reread_with.row_starts(texts) if self._reread_with is not None else [[] for _ in texts]

    def collect(self, num_hypotheses: int, processes: ProcessGroup) -> tuple[list[str], list[list[int]]]:
        """Return texts and row starts of all batches of all processes; row starts are empty without a template."""
        texts, row_starts = [""] * num_hypotheses, [[0] * 0 for _ in range(num_hypotheses)]
        own = [(indices, *future.result()) for indices, future in self._batches]
        for batch in (batch for batches in processes.gather(own) for batch in batches):
            for index, text, row_start in zip(*batch, strict=True):
                texts[index], row_starts[index] = text, row_start
        return texts, row_starts
