"""The log of a run: one JSON object a line in a file, and progress on the terminal."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich import progress
from rich.console import Console
from rich.text import Text

from roundtrip.runtime.disk_space import report_full_disk
from roundtrip.runtime.errors import printable

_QUIET_SECONDS = 30.0
# More bytes than any event has.
_LONGEST = 1 << 16


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print prose unbroken, without markup and control characters: a terminal wraps it, a file keeps it whole."""
    console.print(Text(printable(text), style), soft_wrap=True)


class EventLog:
    """Events of a run: for programs in the file `path`, for people on the console, live where it is a terminal."""

    def __init__(self, console: Console, path: Path | None = None) -> None:
        self.console, self.path = console, path
        self.seconds: dict[str, float] = {}

    def log(self, kind: str, **fields: object) -> None:
        """Append one event to the file."""
        if self.path is not None:
            line = json.dumps({"time": round(time.time(), 3), "event": kind, **fields}) + "\n"
            with report_full_disk(self.path):
                append_line(self.path, line.encode())

    def say(self, text: str) -> None:
        """Show one line."""
        print_line(self.console, text)

    def on_oom_split(self, rows: int) -> None:
        """Report that a batch did not fit into memory; a callback of `generate`."""
        self.log("memory", activity="generating", rows=rows)
        cure = "lower generate.max_tokens_per_batch"
        self.say(f"  memory ran out on {rows} rows at once; they continue in halves ({cure})")

    @contextmanager
    def task(self, activity: str, text: str, total: int) -> Iterator[ProgressHandle]:
        """Show a task of `total` rows or steps (0: unknown) while it runs, and add its time to that of its activity.

        Activities are `loading`, `reading`, `checking`, `probing`, `generating`, `training` and `scoring`.
        """
        columns = [
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}", markup=False),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}", markup=False),
        ]
        bar = progress.Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        bar.add_task(printable(text), total=total or None, rate="", note="")
        task = ProgressHandle(self, bar, text, total)
        try:
            with bar:
                yield task
        finally:
            self.seconds[activity] = self.seconds.get(activity, 0.0) + task.seconds
        summary = ", ".join(part for part in (f"{task.seconds:.1f} s", task.rate(), task.note) if part)
        self.say(f"{text}: {task.done or ''} {summary}".replace(":  ", ": "))


@dataclass
class ProgressHandle:
    """A running task: counts what is done and how long it takes, and shows it."""

    events: EventLog
    bar: progress.Progress
    text: str
    total: int
    done: int = 0
    tokens: int = 0
    note: str = ""
    started: float = field(default_factory=time.perf_counter)
    last_shown: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def rate(self) -> str:
        return f"{self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s" if self.tokens else ""

    def advance(self, number: int = 1, tokens: int = 0, note: str = "") -> None:
        """Add finished rows or steps and their tokens; the note, such as the loss, is shown until the next one."""
        self.done += number
        self.tokens += tokens
        self.note = note or self.note
        if not self.bar.disable:
            self.bar.update(self.bar.task_ids[0], completed=self.done, rate=self.rate(), note=self.note)
        elif time.perf_counter() - self.last_shown >= _QUIET_SECONDS:
            self.last_shown = time.perf_counter()
            left = self.seconds / self.done * (self.total - self.done) if self.done else 0.0
            parts = (self.rate(), self.note, f"{left / 60:.0f} min left" if left > 60 else "")
            self.events.say(" ".join([f"{self.text}: {self.done}/{self.total or '?'}", *filter(None, parts)]))


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file, or nothing; an incomplete last line of a killed process is removed."""
    # A link would lead to a file that is not of the run.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o666), "ab+", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a file", str(path))
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read(1) not in {b"", b"\n"}:
            file.seek(max(0, size - _LONGEST))
            tail = file.read()
            size -= len(tail) - (tail.rfind(b"\n") + 1)
            file.truncate(size)
        if file.write(line) != len(line):
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
