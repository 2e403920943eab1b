"""A batch that does not fit into memory is taken in halves: the same result, said aloud; a single row is fatal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from roundtrip.engine import generate as generating
from roundtrip.engine import train_step as stepping
from roundtrip.engine.generate import generate
from roundtrip.engine.request import Callbacks, GenerationRequest, StopRule
from roundtrip.engine.train_step import StepSettings, train_step
from roundtrip.models import adapters
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe.schema import Adapter, Generate, Train
from roundtrip.runtime.errors import ModelError, TrainingError
from roundtrip.runtime.memory import is_out_of_memory
from roundtrip.tokens.batching import TokenDataset
from tests.conftest import WriteRecipe
from tests.engine.test_train_step import MODELS, rows
from tests.models.test_adapters import fresh
from tests.runs import end_state, go

CPU_ERROR = "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."
STOP = StopRule([1])
ERRORS = {"GPU": torch.OutOfMemoryError("CUDA out of memory"), "CPU": RuntimeError(CPU_ERROR), "host": MemoryError()}


@pytest.mark.parametrize("error", ERRORS.values(), ids=list(ERRORS))
def test_a_step_learns_the_same_in_smaller_pieces(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    table = TokenDataset.of(rows(12))
    loss_sum = stepping.loss_sum

    def small(model: Any, batch: Any, **settings: Any) -> torch.Tensor:
        loss = loss_sum(model, batch, **settings)
        if batch.ids_BT.numel() > 60:
            loss.backward()  # fails when half of the gradients are there
            raise error
        return loss

    found = []
    for room in ("enough", "little"):
        model = adapters.add_adapters(fresh(model_folder), {"en-es": Adapter(rank=4, dropout=0.0)}, 1)
        own = adapters.parameters(model, "en-es")
        for parameter in own.values():
            parameter.data += 0.03
        optimizer = Optimizer(own, Train(lr=1e-2, lr_warmup_steps=0), 10)
        adapters.activate(model, "en-es", train=True)
        if room == "little":
            monkeypatch.setattr(stepping, "loss_sum", small)
        result = train_step(model, optimizer, table, range(12), StepSettings(3, 250), seed=7)
        found.append((result, [parameter.detach().clone() for parameter in own.values()]))
    (plain, moved), (on_oom_split, also) = found
    assert plain.max_tokens_per_microbatch == 250 and 19 <= on_oom_split.max_tokens_per_microbatch <= 60
    assert on_oom_split.loss == pytest.approx(plain.loss, rel=1e-5) and on_oom_split.num_labels == plain.num_labels
    assert on_oom_split.grad_norm == pytest.approx(plain.grad_norm, rel=1e-4)
    for one, other in zip(moved, also, strict=True):
        assert torch.allclose(one, other, atol=2e-4)


def test_a_single_row_that_does_not_fit_ends_the_run_with_a_cure(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapters.add_adapters(fresh(model_folder), {"en-es": Adapter(rank=4)}, 1)
    adapters.activate(model, "en-es", train=True)
    optimizer = Optimizer(adapters.parameters(model, "en-es"), Train(), 10)

    def never(*arguments: Any, **settings: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stepping, "loss_sum", never)
    with pytest.raises(TrainingError, match="memory ran out on a single row"):
        train_step(model, optimizer, TokenDataset.of(rows(4)), range(4), StepSettings(3, 250), seed=7)
    monkeypatch.setattr(generating, "decode", never)
    with pytest.raises(ModelError, match="memory ran out on a single prompt of 3 tokens"):
        generate(model, GenerationRequest([[5, 6, 7]], [4], Generate(), STOP, 0))


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(generating, "decode", wrong)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        generate(MODELS["RoPE, tied head"](), GenerationRequest([[5]] * 3, [4] * 3, Generate(), STOP, 0))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_generation_in_halves_writes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    model = MODELS["RoPE, tied head"]().eval()
    prompts, limits = [row.ids for row in rows(11)], [9] * 11
    request = GenerationRequest(prompts, limits, Generate(), STOP, 0)
    plain = generate(model, request).lists()
    decode, split = generating.decode, []

    def small(model: Any, request: GenerationRequest) -> Any:
        if len(request.prompts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(model, request)

    monkeypatch.setattr(generating, "decode", small)
    halves = generate(model, request, callbacks=Callbacks(on_oom_split=split.append))
    assert halves.lists() == plain
    assert split[0] == 11 and min(split) > 3
    # Batches that are as large as one that failed are not tried.
    tried: list[int] = []

    def counting(model: Any, request: GenerationRequest) -> Any:
        tried.append(len(request.prompts))
        return small(model, request)

    monkeypatch.setattr(generating, "decode", counting)
    many, few = [prompts[0]] * 40, Generate(max_tokens_per_batch=10 * (len(prompts[0]) + 10))
    generate(model, GenerationRequest(many, [9] * 40, few, STOP, 0))
    assert sum(size > 3 for size in tried) == 2, "10 and 5, once each"


def test_a_run_goes_on_and_says_so(write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recipe(("dropout = 0.1", "dropout = 0.0"))
    greedy = ("generate.temperature=0.0",)  # what is sampled depends on the rows beside it
    go(path, tmp_path / "plain", overrides=greedy)
    decode, loss_sum, failed = generating.decode, stepping.loss_sum, []

    def small(model: Any, request: GenerationRequest) -> Any:
        if len(request.prompts) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(model, request)

    def once(*arguments: Any, **settings: Any) -> torch.Tensor:
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss_sum(*arguments, **settings)

    monkeypatch.setattr(generating, "decode", small)
    monkeypatch.setattr(stepping, "loss_sum", once)
    shown = go(path, tmp_path / "run", overrides=greedy)
    assert "they continue in halves" in shown and re.search(
        r"from here on microbatches have at most \d{2,3} tokens", shown
    )
    one, other = end_state(tmp_path / "run"), end_state(tmp_path / "plain")
    assert one["examples"] == other["examples"] and one["steps"] == other["steps"]
    for name, tensors in one["tensors"].items():
        for key, value in tensors.items():
            # The same gradients, summed in another order.
            assert torch.allclose(value, other["tensors"][name][key], atol=1e-4), f"{name} {key}"
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert {event["activity"] for event in events if event["event"] == "memory"} == {"generating", "training"}
