"""What every part of a run works with: one value, loaded once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roundtrip.backtranslation.examples import oriented_pairs
from roundtrip.backtranslation.filtering import RejectionRule
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.data.corpora import Corpora
from roundtrip.engine.request import Callbacks
from roundtrip.engine.translator import Translator
from roundtrip.recipe.plan import Direction
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime.disk_space import report_full_disk
from roundtrip.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from roundtrip.runtime.event_log import EventLog, ProgressHandle
from roundtrip.runtime.integrity import file_hashes
from roundtrip.runtime.interrupts import StopRequest
from roundtrip.tokens.row_builder import RowBuilder


@dataclass(frozen=True)
class RunContext:
    """A run with its text and models loaded; what is a mapping is by direction."""

    run: RunFolder
    recipe: Recipe
    corpora: Corpora
    translators: Mapping[str, Translator]
    events: EventLog
    stop: StopRequest
    row_builders: Mapping[str, RowBuilder] = field(default_factory=dict)  # empty where the recipe has no rounds
    filters: Mapping[str, Sequence[RejectionRule]] = field(default_factory=dict)  # besides those of `[filter]`
    processes: ProcessGroup = SINGLE_PROCESS
    resume_command: str = ""  # what to type to continue this run
    on_evaluation: Callable[[RunFolder], object] | None = None  # of `session.train`

    def callbacks(self, task: ProgressHandle | None = None) -> Callbacks:
        """Return what counts rows and tokens of a task, and raises where a signal asked the run to stop."""

        def on_progress(rows: int, tokens: int) -> None:
            if task is not None:
                task.advance(rows, tokens)
            # Only what the task has made is lost: a checkpoint was written before it began.
            self.stop.raise_if_requested()

        return Callbacks(on_progress=on_progress, on_oom_split=self.events.on_oom_split)

    def write(self, write: Callable[[], object], *paths: Path) -> dict[str, str]:
        """Write something once, while the other processes wait; return its hashes, which the manifest has then."""
        hashes: dict[str, str] = {}
        if self.processes.is_main:
            with report_full_disk(paths[0]):
                write()
                for path in paths:
                    hashes |= file_hashes(path, self.run.path)
                self.run.record(hashes)
        return self.processes.broadcast(hashes)

    def report_evaluation(self) -> None:
        """Call `on_evaluation`, in the first process, once everything that was scored is in the files of the run."""
        if self.on_evaluation is not None and self.processes.is_main:
            self.on_evaluation(self.run)

    def parallel_texts(self, part: str, direction: Direction) -> tuple[list[str], list[str]]:
        """Return sources and references of `dev` or `test` for a direction."""
        pairs = oriented_pairs(self.corpora.dev if part == "dev" else self.corpora.test, direction, self.recipe)
        return [source for source, _ in pairs], [reference for _, reference in pairs]
