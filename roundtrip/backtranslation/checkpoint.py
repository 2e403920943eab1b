"""Checkpoints for `--resume`: one JSON and safetensors, whole or not there at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from roundtrip.data.sampler import Cursor
from roundtrip.runtime import atomic_io
from roundtrip.runtime.errors import RunError

FORMAT = 2
STATE = "state.json"
# Written last: names every other file with its hash. A folder without it is no checkpoint.
MARKER = "whole.json"
_NONE_WHOLE = "bring back what is named above, or start over with another --out"


@dataclass(frozen=True)
class State:
    """How far a run is; with the tensors of both optimizers it is all that a resume needs.

    No random state is kept, since every random choice is derived from the seed and its own place in the run.

    Attributes:
        phase: number of the phase under way.
        step: optimizer steps taken in it.
        optimizer_steps: steps taken in all, by direction.
        cursors: how far each stream is read: up to the phase, or behind its block once it has taken a step.
        scores: dev scores by stage and direction.
        best: the stage with the best mean dev chrF++ so far.
        seconds: time spent, by activity.
        max_tokens_per_microbatch: what fitted, once memory has run out; 0 before that.
        roads: of the synthetic rows, how many went by the splice and how many by strings for which reason.
        files: hashes of what else in the run folder this state stands on, by path: the rows of the phase under way,
            the weights of each stage.
        skipped: steps that changed nothing, since their loss or gradient was not finite, by direction.
        skipped_here: such steps in the phase under way.
        losses: by direction, what dev cost after each pass over pairs of the stage under way, in nats per label.
    """

    phase: int = 0
    step: int = 0
    optimizer_steps: dict[str, int] = field(default_factory=dict)
    cursors: dict[str, Cursor] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    best: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    row_builders: dict[str, dict[str, int]] = field(default_factory=dict)
    max_tokens_per_microbatch: int = 0
    files: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    skipped_here: int = 0
    losses: dict[str, list[float]] = field(default_factory=dict)

    def total_steps(self) -> int:
        return sum(self.optimizer_steps.values())


def save(folder: Path, state: State, tensors: Mapping[str, Mapping[str, torch.Tensor]], keep: int) -> Path:
    """Write a checkpoint beside the others, make it whole in one rename, and drop the oldest.

    Args:
        tensors: by direction; each becomes one safetensors file.
        keep: how many checkpoints stay.
    """
    target = folder / name_of(state)
    with atomic_io.atomic_path(target) as beside:
        beside.mkdir()
        for part, values in tensors.items():
            whole = {key: value.detach().cpu().contiguous() for key, value in values.items()}
            save_file(whole, beside / f"{part}.safetensors")
        (beside / STATE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        marker = {"format": FORMAT, "files": atomic_io.file_hashes(beside, beside)}
        (beside / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")
    for old in names(folder)[:-keep]:
        atomic_io.remove_path(folder / old)
    return target


def name_of(state: State) -> str:
    """Return the name of the checkpoint of a state."""
    return f"{state.phase:04d}-{state.step:06d}"


def num_bytes(tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> int:
    """Return how many bytes a checkpoint of these takes, its few texts left out."""
    return sum(value.numel() * value.element_size() for values in tensors.values() for value in values.values())


def names(folder: Path) -> list[str]:
    """Return the names of all checkpoints, oldest first."""
    return sorted(path.name for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))


def newest(folder: Path, report: Callable[[str], None]) -> tuple[State, dict[str, dict[str, torch.Tensor]]] | None:
    """Load the newest whole checkpoint; others are named and passed over. None where there is none.

    Whole is one whose files, and all that its state stands on in the folder of the run, are as they were written.

    Args:
        folder: `checkpoints` of a run.
        tell: gets the name of each that is passed over, with the reason.

    Raises:
        RunError: there are checkpoints and none is whole.
    """
    all_names = names(folder)
    for name in reversed(all_names):
        try:
            state, tensors = load(folder / name)
            if problem := atomic_io.first_damaged(state.files, folder.parent):
                raise ValueError(problem)
            return state, tensors
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            report(f"checkpoint {name} is passed over: {_reason(error)}")
    if all_names:
        raise RunError("no checkpoint is whole", place=str(folder), cure=_NONE_WHOLE)
    return None


def _reason(error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return f"{Path(error.filename).name} is gone"
        case KeyError():
            return f"{error} is missing in its text"
        case _:
            return str(error)


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
    return document


def load(path: Path) -> tuple[State, dict[str, dict[str, torch.Tensor]]]:
    """Load one checkpoint.

    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError: it is not whole.
    """
    marker = _read(path / MARKER)
    if marker["format"] != FORMAT:
        raise ValueError(f"it is of format {marker['format']}, this version reads {FORMAT}")
    if STATE not in marker["files"]:
        raise ValueError(f"its {MARKER} does not name {STATE}")
    if problem := atomic_io.first_damaged(marker["files"], path):
        raise ValueError(problem)
    tensors = {file.removesuffix(".safetensors"): load_file(path / file) for file in marker["files"] if file != STATE}
    document = _read(path / STATE)
    document["cursors"] = {key: Cursor(**value) for key, value in document["cursors"].items()}
    return State(**document), tensors
