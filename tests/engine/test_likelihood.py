"""Log-probabilities of given targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from roundtrip.engine.likelihood import log_likelihood
from roundtrip.runtime.errors import ModelError
from roundtrip.tokens.batching import TokenDataset
from roundtrip.tokens.prompt_template import TokenRow
from tests.engine.test_decoding import model_of
from tests.engine.test_train_step import rows


def test_scoring_continues_in_halves_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("RoPE, tied head")
    dataset = TokenDataset.of([TokenRow(row.ids, max(1, row.start)) for row in rows(12)])
    expected, passes = log_likelihood(model, dataset, 0, 10_000), []
    forward = type(model).forward

    def small(self: Any, *, input_ids: torch.Tensor, **inputs: Any) -> Any:
        if len(input_ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(model), "forward", small)
    logprob_R = log_likelihood(model, dataset, 0, 10_000, lambda rows, tokens: passes.append(1))
    assert torch.allclose(logprob_R, expected, atol=1e-4) and len(passes) > 3
    monkeypatch.setattr(type(model), "forward", lambda self, **inputs: small(self, input_ids=torch.zeros(9)))
    with pytest.raises(ModelError, match="single row"):
        log_likelihood(model, dataset, 0, 10_000)
