"""Checkpoints on disk: what is read back, how many are kept, and which are skipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from roundtrip.backtranslation import checkpoint
from roundtrip.backtranslation.checkpoint import FORMAT, MARKER, STATE, State
from roundtrip.data.sampler import Cursor
from roundtrip.runtime.errors import RunError
from roundtrip.runtime.integrity import read_hashed_json, write_hashed_json

STATE_OF_A_ROUND = State(
    phase=2,
    step=1,
    optimizer_steps={"en-es": 3, "es-en": 2},
    phase_steps={0: 2, 1: 2},
    cursors={"mono.es": Cursor(1, 5), "train.en-es": Cursor(0, 16)},
    scores={"base": {"en-es": {"chrf": 3.5}}},
    best={"en-es": "base", "es-en": "base"},
    token_rows={"en-es": {"splice": 24}},
    nonfinite_steps={"en-es": 1},
    nonfinite_in_phase=1,
    dev_losses={"en-es": [3.0, 2.5]},
)
TENSORS = {"en-es": {"w": torch.arange(4.0)}, "pairs": {"good": torch.arange(3)}}


def test_a_checkpoint_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, STATE_OF_A_ROUND, TENSORS, keep=2)
    state, tensors = checkpoint.load(path)
    assert path.name == "0002-000001" and state == STATE_OF_A_ROUND and state.total_steps() == 5
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[part][key], value) for part in TENSORS for key, value in TENSORS[part].items())


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(4):
        checkpoint.save(tmp_path, replace(STATE_OF_A_ROUND, step=step), TENSORS, keep=2)
    assert checkpoint.names(tmp_path) == ["0002-000002", "0002-000003"]
    newest = checkpoint.newest(tmp_path, pytest.fail)
    assert newest is not None and newest[0].step == 3
    assert checkpoint.newest(tmp_path / "none", pytest.fail) is None


def test_a_checkpoint_is_kept_while_one_before_another_is_left(tmp_path: Path) -> None:
    kept = []
    for phase, step in [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]:
        state = replace(STATE_OF_A_ROUND, phase=phase, step=step)
        checkpoint.save(tmp_path, state, TENSORS, keep=2, needed=("0001-000000", "0003-000000"))
        kept.append(len(checkpoint.names(tmp_path)))
    assert kept == [1, 2, 3, 3, 3, 2, 2] and checkpoint.names(tmp_path) == ["0003-000001", "0003-000002"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("format", f"it has format {FORMAT - 1}, this version reads {FORMAT}"),
        ("no marker", f"{MARKER} is missing"),
        ("no state", f"its {MARKER} does not name {STATE}"),
        ("no files", "'files' is missing in its text"),
        ("changed", "en-es.safetensors"),
    ],
)
def test_an_incomplete_checkpoint_is_skipped_with_the_reason(tmp_path: Path, damage: str, reason: str) -> None:
    checkpoint.save(tmp_path, STATE_OF_A_ROUND, TENSORS, keep=2)
    path = checkpoint.save(tmp_path, replace(STATE_OF_A_ROUND, step=2), TENSORS, keep=2)
    marker = read_hashed_json(path / MARKER)
    match damage:
        case "format":
            marker["format"] = FORMAT - 1
        case "no state":
            del marker["files"][STATE]
        case "no files":
            del marker["files"]
        case "changed":
            (path / "en-es.safetensors").write_bytes(b"\0")
    write_hashed_json(path / MARKER, marker)
    if damage == "no marker":
        (path / MARKER).unlink()
    reports: list[str] = []
    newest = checkpoint.newest(tmp_path, reports.append)
    assert newest is not None and newest[0] == STATE_OF_A_ROUND
    assert len(reports) == 1 and reports[0].startswith("checkpoint 0002-000002 is skipped: ") and reason in reports[0]
    (tmp_path / "0002-000001" / MARKER).unlink()
    with pytest.raises(RunError, match="no checkpoint is complete"):
        checkpoint.newest(tmp_path, reports.append)


def test_a_checkpoint_depends_on_other_files_of_its_run(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (tmp_path / "examples.jsonl").write_text("[]")
    checkpoint.save(folder, replace(STATE_OF_A_ROUND, files={"examples.jsonl": "0" * 64}), TENSORS, keep=2)
    with pytest.raises(RunError, match="no checkpoint is complete"):
        checkpoint.newest(folder, lambda text: None)
