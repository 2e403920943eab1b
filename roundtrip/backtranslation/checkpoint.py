"""Checkpoints for `--resume`: one JSON file and safetensors, complete or not there at all."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from roundtrip.backtranslation.context import RunContext
from roundtrip.backtranslation.run_folder import BEST
from roundtrip.data.sampler import Cursor
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe.plan import Phase
from roundtrip.runtime import atomic_io, integrity
from roundtrip.runtime.disk_space import report_full_disk
from roundtrip.runtime.errors import RunError, TrainingError

FORMAT = 5
STATE = "state.json"
# Written last: names every other file with its hash. A folder without it is no checkpoint.
MARKER = "complete.json"
# Part of a checkpoint: the pairs of tokens that a checker has settled.
_PAIRS = "pairs"
_NAME = re.compile(r"\d{4,}-\d{6,}")
# What may be raised where a checkpoint is not complete.
_INCOMPLETE = (OSError, KeyError, ValueError, TypeError, AttributeError, SafetensorError)

Tensors = dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class State:
    """How far a run is; with the tensors of both optimizers it is all that a resume needs.

    No random state is kept, since every random choice is derived from the seed and the phase.
    """

    phase: int = 0  # number of the one in progress
    step: int = 0  # steps taken in it
    # By direction, in all; once the control has begun, as if there had been no rounds.
    optimizer_steps: dict[str, int] = field(default_factory=dict)
    phase_steps: dict[int, int] = field(default_factory=dict)  # steps taken, by number of each phase that has ended
    # How far each stream is read: up to the phase, or past its examples once it has taken a step.
    cursors: dict[str, Cursor] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, int | float]]] = field(default_factory=dict)  # on dev, by stage and direction
    best: dict[str, str] = field(default_factory=dict)  # stage by direction; empty until the base is scored
    seconds: dict[str, float] = field(default_factory=dict)  # time spent, by activity
    # How many rows of synthetic examples were made in which way, by direction; see `build_token_rows`.
    token_rows: dict[str, dict[str, int]] = field(default_factory=dict)
    max_tokens_per_microbatch: int = 0  # reduced size after memory ran out; 0 before that
    # SHA-256, by path in the run folder, of the examples of the phase in progress and the weights of each stage.
    files: dict[str, str] = field(default_factory=dict)
    # Steps without effect, since their loss or gradient was not finite: by direction, and in the phase in progress.
    nonfinite_steps: dict[str, int] = field(default_factory=dict)
    nonfinite_in_phase: int = 0
    # Dev loss after each epoch of the stage in progress, in nats per label, by direction.
    dev_losses: dict[str, list[float]] = field(default_factory=dict)

    def total_steps(self) -> int:
        return sum(self.optimizer_steps.values())

    @property
    def name(self) -> str:
        """The name of its checkpoint."""
        return f"{self.phase:04d}-{self.step:06d}"


_STATE = TypeAdapter(State)


class CheckpointStore:
    """Writes and restores checkpoints, which hold the state, the optimizers and the checkers of the row builders."""

    def __init__(self, context: RunContext, optimizers: Mapping[str, Optimizer], phases: Sequence[Phase]) -> None:
        self.context, self.run, self.processes, self.optimizers = context, context.run, context.processes, optimizers
        # Directions that share a tokenizer share its checker.
        checkers = dict.fromkeys(b.checker for b in context.row_builders.values() if b.checker is not None)
        self._checkers = {f"{_PAIRS}-{i}" if i else _PAIRS: checker for i, checker in enumerate(checkers)}
        self._last: State | None = None
        # Names of the checkpoint that the control starts from, which is the last one before the rounds, and of the
        # first one of the control.
        starts = [(State(each.control_for.number).name, State(each.number).name) for each in phases if each.control_for]
        self._control = starts[0] if starts else None

    def steps_since_save(self, state: State) -> int:
        return state.total_steps() - (self._last.total_steps() if self._last is not None else 0)

    def save(self, state: State) -> None:
        """Write a checkpoint, unless the last one is of the same phase and step."""
        if self._last is not None and state.name == self._last.name:
            return
        for name, optimizer in self.optimizers.items():
            # All processes sum gradients and step alike to the last bit.
            if self.processes.world_size > 1 and len(set(self.processes.gather(optimizer.digest()))) > 1:
                cure = "use machines of one kind, or one process; the last checkpoint is valid"
                raise TrainingError(f"the weights of {name} differ between the processes", cure=cure)
        seconds = {activity: round(value, 3) for activity, value in self.context.events.seconds.items()}
        state = replace(state, seconds=seconds)
        tensors = {name: optimizer.state() for name, optimizer in self.optimizers.items()}
        tensors |= {part: checker.state() for part, checker in self._checkers.items()}
        num_bytes = sum(value.nbytes for part in tensors.values() for value in part.values())
        if self.processes.is_main:
            with report_full_disk(self.run.checkpoints, num_bytes):
                save(self.run.checkpoints, state, tensors, self.context.recipe.checkpoint.keep, self._control)
        self.processes.broadcast(None)
        self._last = state

    def begin_control(self, state: State) -> State:
        """Return to the weights and optimizers that the rounds began with; return the state that goes with them."""
        assert self._control is not None
        path = self.run.checkpoints / self._control[0]
        try:
            start, tensors = load(path)
        except _INCOMPLETE as error:
            problem = f"the control cannot start from it: {_reason(error)}"
            cure = "restore it and continue with --resume, or start a new run"
            raise RunError(problem, place=str(path), cure=cure) from error
        for direction, optimizer in self.optimizers.items():
            optimizer.restore(tensors[direction], start.optimizer_steps.get(direction, 0))
        return replace(state, optimizer_steps=start.optimizer_steps)

    def _warn_of_damaged_start(self, state: State) -> None:
        """Report where the checkpoint that the control will start from is damaged; what was trained since is not."""
        if self._control is None or not self._control[0] < state.name < self._control[1]:
            return
        path = self.run.checkpoints / self._control[0]
        try:
            _checked_files(path)
        except _INCOMPLETE as error:
            problem = f"the control cannot start from {path}: {_reason(error)}"
            self.context.events.say(f"warning: {problem}; restore it before the rounds end")

    def resume(self) -> State | None:
        """Restore the newest complete checkpoint, see `newest`; what is skipped or repaired is reported."""
        report, run = self.context.events.say, self.run
        # The main process decides which one, so that all restore the same.
        loaded = newest(run.checkpoints, report) if self.processes.is_main else None
        name = self.processes.broadcast(loaded[0].name if loaded else None)
        if name is None:
            if run.manifest().has_results:
                cure = "restore them, or start a new run with another --out; what it kept can be used as it is"
                raise RunError("its checkpoints were removed, so it cannot go on", place=str(run.path), cure=cure)
            return None
        state, tensors = loaded or load(run.checkpoints / name)
        for direction, optimizer in self.optimizers.items():
            optimizer.restore(tensors[direction], state.optimizer_steps.get(direction, 0))
        for part, checker in self._checkers.items():
            if part in tensors:
                checker.restore(tensors[part])
        self._last, self.context.events.seconds = state, dict(state.seconds)
        if self.processes.is_main:
            self._warn_of_damaged_start(state)
        if self.processes.broadcast(self.processes.is_main and not run.has_best(state.best)):
            stages = ", ".join(f"{stage} of {direction}" for direction, stage in state.best.items())
            report(f"adapters/{BEST} does not match its stages; {stages} is copied there again")
            self.context.write(lambda: run.keep_best(state.best), run.adapters / BEST)
        return state


def save(
    folder: Path,
    state: State,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    keep: int,
    needed: tuple[str, str] | None = None,
) -> Path:
    """Write a checkpoint, with a file for each part of the tensors, in one rename; delete all but the newest `keep`.

    Of the two names in `needed`, the first is kept as long as there is a checkpoint from before the second.
    """
    target = folder / state.name
    with atomic_io.atomic_path(target) as temporary:
        temporary.mkdir()
        for part, values in tensors.items():
            contiguous = {key: value.detach().cpu().contiguous() for key, value in values.items()}
            save_file(contiguous, temporary / f"{part}.safetensors")
        (temporary / STATE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        marker = {"format": FORMAT, "name": state.name, "files": integrity.file_hashes(temporary, temporary)}
        integrity.write_hashed_json(temporary / MARKER, marker)
    own = [name for name in names(folder) if _is_own(folder / name)]
    for old in own[:-keep]:
        if needed is None or old != needed[0] or own[-keep:][0] >= needed[1]:
            atomic_io.remove_path(folder / old)
    return target


def names(folder: Path) -> list[str]:
    """Return the names of all checkpoints, oldest first; folders with other names are not ours."""
    return sorted(path.name for path in folder.glob("*") if path.is_dir() and _NAME.fullmatch(path.name))


def _is_own(path: Path) -> bool:
    """Return whether a checkpoint was written under its name; others are neither counted nor deleted."""
    try:
        return bool(integrity.read_hashed_json(path / MARKER)["name"] == path.name)
    except (OSError, ValueError, KeyError):
        return False


def newest(folder: Path, report: Callable[[str], None]) -> tuple[State, Tensors] | None:
    """Load the newest complete checkpoint; None where there are none at all.

    Complete means: its files, and all files of the run that its state depends on, are as they were written. `report`
    is called with the name of each that is skipped, and the reason.
    """
    all_names = names(folder)
    for name in reversed(all_names):
        try:
            state, tensors = load(folder / name)
            if problem := integrity.first_damaged(state.files, folder.parent):
                raise ValueError(problem)
            return state, tensors
        except _INCOMPLETE as error:
            report(f"checkpoint {name} is skipped: {_reason(error)}")
    if all_names:
        cure = "restore the files named above, or start a new run with another --out"
        raise RunError("no checkpoint is complete", place=str(folder), cure=cure)
    return None


def _reason(error: Exception) -> str:
    """Return why a checkpoint is not complete."""
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename).name} is missing"
    return f"{error} is missing in its text" if isinstance(error, KeyError) else str(error)


def load(path: Path) -> tuple[State, Tensors]:
    """Load one checkpoint; where it is not complete, one of the errors `_INCOMPLETE` is raised."""
    files = _checked_files(path)
    tensors = {file.removesuffix(".safetensors"): load_file(path / file) for file in files if file != STATE}
    document = json.loads((path / STATE).read_text(encoding="utf-8"))
    return integrity.validated(_STATE, document, STATE), tensors


def _checked_files(path: Path) -> list[str]:
    """Return the names of the files of a checkpoint, which are as they were written; see `load`."""
    marker = integrity.read_hashed_json(path / MARKER)
    if marker["format"] != FORMAT:
        raise ValueError(f"it has format {marker['format']}, this version reads {FORMAT}")
    if marker["name"] != path.name:
        raise ValueError(f"it is a copy of {marker['name']}")
    if STATE not in marker["files"]:
        raise ValueError(f"its {MARKER} does not name {STATE}")
    if problem := integrity.first_damaged(marker["files"], path):
        raise ValueError(problem)
    return list(marker["files"])
