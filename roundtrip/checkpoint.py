"""Checkpoints for `--resume`: one JSON and safetensors, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from roundtrip.errors import RunError
from roundtrip.text.stream import Cursor

FORMAT = 1
STATE = "state.json"


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
        tokens_per_forward: what fitted, once memory has run out; 0 before that.
        roads: of the synthetic rows, how many went by the splice and how many by strings for which reason.
    """

    phase: int = 0
    step: int = 0
    optimizer_steps: dict[str, int] = field(default_factory=dict)
    cursors: dict[str, Cursor] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    best: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    roads: dict[str, dict[str, int]] = field(default_factory=dict)
    tokens_per_forward: int = 0

    def total_steps(self) -> int:
        return sum(self.optimizer_steps.values())


def save(folder: Path, state: State, tensors: Mapping[str, Mapping[str, torch.Tensor]], keep: int) -> Path:
    """Write a checkpoint beside the others, make it whole in one rename, and drop the oldest.

    Args:
        tensors: by direction; each becomes one safetensors file.
        keep: how many checkpoints stay.
    """
    name = f"{state.phase:04d}-{state.step:06d}"
    beside = folder / f".{name}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    hashes = {}
    for part, values in tensors.items():
        path = beside / f"{part}.safetensors"
        save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, path)
        hashes[path.name] = _hash(path)
        _sync(path)
    document = {"format": FORMAT, "hashes": hashes, **asdict(state)}
    (beside / STATE).write_text(json.dumps(document, indent=1), encoding="utf-8")
    _sync(beside / STATE)
    target, aside = folder / name, folder / f".{name}.old"
    if target.exists():  # a broken one, that a resume passed over
        target.rename(aside)
    beside.rename(target)
    _sync(folder)
    shutil.rmtree(aside, ignore_errors=True)
    for old in names(folder)[:-keep]:
        shutil.rmtree(folder / old)
    return target


def names(folder: Path) -> list[str]:
    """Return the names of all checkpoints, oldest first."""
    return sorted(path.name for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))


def newest(folder: Path, tell: Callable[[str], None]) -> tuple[State, dict[str, dict[str, torch.Tensor]]] | None:
    """Load the newest whole checkpoint; broken ones are named and passed over. None where there is none.

    Raises:
        RunError: there are checkpoints and none is whole.
    """
    all_names = names(folder)
    for name in reversed(all_names):
        try:
            return _load(folder / name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            tell(f"checkpoint {name} is passed over: {error}")
    if all_names:
        raise RunError("no checkpoint is whole", place=str(folder), cure="start over with another --out")
    return None


def _load(path: Path) -> tuple[State, dict[str, dict[str, torch.Tensor]]]:
    document: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    if document.pop("format") != FORMAT:
        raise ValueError(f"{STATE} is of another format")
    tensors = {}
    for file, digest in document.pop("hashes").items():
        if _hash(path / file) != digest:
            raise ValueError(f"{file} is not what was written")
        tensors[file.removesuffix(".safetensors")] = load_file(path / file)
    document["cursors"] = {key: Cursor(**value) for key, value in document["cursors"].items()}
    return State(**document), tensors


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
