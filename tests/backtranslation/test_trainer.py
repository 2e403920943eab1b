"""The train steps of a run: which rows each takes, in which order, and by which seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import roundtrip
from roundtrip.backtranslation import trainer
from roundtrip.backtranslation.filtering import Candidate
from roundtrip.models.optimizer import MIN_LR_FACTOR, lr_factor
from roundtrip.recipe.plan import num_steps
from roundtrip.recipe.schema import Train
from tests.conftest import WriteRecipe
from tests.runs import NAMES, go, read_events


def test_each_epoch_takes_all_rows_in_another_order_and_each_step_has_its_own_seed(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[Any, list[int], int]] = []
    train_step = trainer.train_step

    def spy(model: Any, optimizer: Any, dataset: Any, rows: Sequence[int], settings: Any, *, seed: int) -> Any:
        steps.append((optimizer, list(rows), seed))
        return train_step(model, optimizer, dataset, rows, settings, seed=seed)

    monkeypatch.setattr(trainer, "train_step", spy)
    go(write_recipe(), tmp_path / "run", overrides=("train.parallel_epochs=2", "rounds.count=0"))
    # 32 pairs in batches of 16: two steps an epoch, two epochs, then the other direction.
    assert [event["direction"] for event in read_events(tmp_path / "run", "step")] == ["en-es"] * 4 + ["es-en"] * 4
    assert len({id(optimizer) for optimizer, _, _ in steps[:4]}) == 1 and steps[0][0] is not steps[4][0]
    epochs = [[rows for _, rows, _ in steps[i : i + 2]] for i in (0, 2, 4, 6)]
    assert all(sorted(row for rows in epoch for row in rows) == list(range(32)) for epoch in epochs)
    assert all(a != b for i, a in enumerate(epochs) for b in epochs[i + 1 :])
    assert len({seed for _, _, seed in steps}) == 8


def reject_most(candidate: Candidate) -> str | None:
    return "rejected_by_test" if candidate.line % 4 else None


def test_the_learning_rate_ends_at_the_floor_where_sources_were_rejected(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    """Over the steps of the plan, of which fewer were taken, it would end far above it."""
    schedule = ["train.lr_warmup_steps=2", "rounds.count=2", "train.batch_size=4"]
    loaded = roundtrip.load_recipe(str(write_recipe()), schedule)
    train, num_pairs = loaded.recipe.train, 32
    run = roundtrip.train(loaded, tmp_path / "run", filters=[reject_most])
    taken, planned = json.loads(run.metrics.read_text())["steps"], num_steps(loaded.recipe, num_pairs)
    (event,) = read_events(run.path, "optimizer")
    assert event["planned_steps"] == dict.fromkeys(NAMES, planned) and event["min_lr_factor"] == MIN_LR_FACTOR
    for name in NAMES:
        rates = [step["lr"] for step in read_events(run.path, "step") if step["direction"] == name]
        assert len(rates) == taken[name] < planned - 6
        highest = rates.index(max(rates))
        assert rates[:highest] == sorted(rates[:highest]) and rates[highest:] == sorted(rates[highest:], reverse=True)
        # The last step stands for the last few of the plan.
        assert MIN_LR_FACTOR <= rates[-1] / train.lr < lr_factor(train, planned - 6, planned)


def test_the_schedule_falls_by_the_plan_and_rises_by_the_steps_taken() -> None:
    settings = Train(lr_warmup_steps=4)
    assert lr_factor(settings, 50, 104, planned_step=104.0) == pytest.approx(MIN_LR_FACTOR)
    assert lr_factor(settings, 50, 104, planned_step=54.0) == pytest.approx(0.55)
    assert lr_factor(settings, 1, 104, planned_step=2.5) == pytest.approx(0.4)
    assert all(lr_factor(settings, i, 104, planned_step=float(i)) == lr_factor(settings, i, 104) for i in range(104))
