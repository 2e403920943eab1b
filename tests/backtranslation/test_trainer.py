"""The train steps of a run: which rows each takes, in which order, and by which seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from roundtrip.backtranslation import trainer
from tests.conftest import WriteRecipe
from tests.runs import go, read_events


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
