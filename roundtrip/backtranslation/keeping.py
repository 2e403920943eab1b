"""What a run keeps on disk of where it is: checkpoints, and the weights of its stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from roundtrip.backtranslation import checkpoint
from roundtrip.backtranslation.checkpoint import State
from roundtrip.backtranslation.run_folder import BEST, RunFolder
from roundtrip.engine.translator import Translator
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe.plan import BASE
from roundtrip.runtime.atomic_io import atomic_path, file_hashes
from roundtrip.runtime.disk_space import report_full_disk
from roundtrip.runtime.distributed import ProcessGroup
from roundtrip.runtime.errors import TrainingError
from roundtrip.tokens.row_builder import RowBuilder
from roundtrip.tokens.splice.canonicality import CanonicalityChecker

# Part of a checkpoint: the pairs of tokens that the guard knows.
_PAIRS = "pairs"


class CheckpointStore:
    """Writes into the folder of a run, as one of all the processes that share it.

    Args:
        optimizers, roads: by direction; with the state, all that a checkpoint holds.
        keep: how many checkpoints stay.
    """

    def __init__(
        self,
        run: RunFolder,
        optimizers: Mapping[str, Optimizer],
        row_builders: Mapping[str, RowBuilder],
        keep: int,
        processes: ProcessGroup,
    ) -> None:
        self.run, self.optimizers, self.row_builders, self.num_kept, self.processes = (
            run,
            optimizers,
            row_builders,
            keep,
            processes,
        )
        self._at: tuple[int, int] | None = None
        self._steps = 0

    def write(self, write: Callable[[], object], place: Path, num_bytes: int = 0) -> None:
        """Write something once; the other processes go on, or end, when it is there.

        Args:
            write, place, num_bytes: see `report_full_disk`.
        """
        if self.processes.is_main:
            with report_full_disk(place, num_bytes):
                write()
        self.processes.broadcast(None)

    def seen(self, path: Path) -> dict[str, str]:
        """Return the hashes of what was written, for `State.files`."""
        return self.processes.broadcast(file_hashes(path, self.run.path) if self.processes.is_main else {})

    def steps_since(self, state: State) -> int:
        """Return how many steps a state is past the last checkpoint."""
        return state.total_steps() - self._steps

    def save(self, state: State) -> None:
        """Write a checkpoint, unless the last one stands at this very place.

        Raises:
            TrainingError: the processes have come apart.
            DiskError: see `report_full_disk`.
        """
        place = (state.phase, state.step)
        if place == self._at:
            return
        self._refuse_drift()
        self._at, self._steps = place, state.total_steps()
        tensors = {name: optimizer.state() for name, optimizer in self.optimizers.items()}
        tensors |= {part: guard.state() for part, guard in self._guards().items()}
        folder = self.run.checkpoints
        self.write(
            lambda: checkpoint.save(folder, state, tensors, self.num_kept), folder, checkpoint.num_bytes(tensors)
        )

    def resume(self, report: Callable[[str], None]) -> State | None:
        """Go back to the newest whole checkpoint; None where there is none yet.

        Args:
            tell: shows what is passed over or mended, and why.

        Raises:
            RunError: there are checkpoints, and none is whole.
        """
        # One looks which is whole, so that all take the same.
        found = checkpoint.newest(self.run.checkpoints, report) if self.processes.is_main else None
        chosen = self.processes.broadcast(None if found is None else checkpoint.name_of(found[0]))
        if chosen is None:
            return None
        state, tensors = found or checkpoint.load(self.run.checkpoints / chosen)
        for name, optimizer in self.optimizers.items():
            optimizer.restore(tensors[name], state.optimizer_steps.get(name, 0))
        for part, guard in self._guards().items():
            if part in tensors:
                guard.restore(tensors[part])
        self._at, self._steps = (state.phase, state.step), state.total_steps()
        if self.processes.is_main and state.best not in {None, BASE} and not self.run.has_best(str(state.best)):
            report(f"adapters/{BEST} is not as it was written; {state.best} is copied there again")
            with report_full_disk(self.run.adapters / BEST):
                self.run.keep_best(str(state.best))
        return state

    def stage(self, name: str, translators: Mapping[str, Translator]) -> dict[str, str]:
        """Keep both directions as they are now: adapters in PEFT's own format, or whole models.

        Returns:
            Their hashes, for `State.files`.
        """
        path = self.run.adapters / name

        def write() -> None:
            with atomic_path(path) as beside:
                for direction, one in translators.items():
                    one.direction_model.export(beside / direction)

        self.write(write, path)
        return self.seen(path)

    def best(self, stage: str) -> None:
        """Make `adapters/best` a copy of a stage."""
        self.write(lambda: self.run.keep_best(stage), self.run.adapters / BEST)

    def _refuse_drift(self) -> None:
        """Compare what was learnt with the other processes: it is summed and stepped alike, to the last bit."""
        if self.processes.world_size > 1:
            for name, optimizer in self.optimizers.items():
                if len(set(self.processes.gather(optimizer.digest()))) > 1:
                    raise TrainingError(
                        f"the weights of {name} are not the same in all processes",
                        cure="use machines of one kind, or one process; the last checkpoint is sound",
                    )

    def _guards(self) -> dict[str, CanonicalityChecker]:
        """Return the guards of the roads by their part of a checkpoint: one, where both make rows on one device."""
        guards = {
            id(row_builder.guard): row_builder.guard
            for row_builder in self.row_builders.values()
            if row_builder.guard is not None
        }
        return {f"{_PAIRS}-{number}" if number else _PAIRS: guard for number, guard in enumerate(guards.values())}
