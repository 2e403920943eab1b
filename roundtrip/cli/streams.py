"""Standard streams that never fail where they need not: closed, full, without a reader, or of a small character set."""

from __future__ import annotations

import io
import os
import select
import sys
import threading
from contextlib import suppress
from typing import Any

from roundtrip.runtime.errors import OutputError


def protect_streams() -> None:
    """Prepare the standard streams of this process.

    Standard output raises `OutputError` once where it cannot be written, and then takes all that follows; standard
    error never raises. Characters that their encoding does not have are written as `?`.
    """
    # A file that is opened later must not become standard output, where libraries would write into it.
    for number, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest free number; the wrong mode makes each use an error
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        # Without buffering (python -u) the buffer is the raw file itself.
        raw = getattr(old.buffer, "raw", old.buffer) if old else io.FileIO(number, "w", closefd=False)
        output: Any = _Output(raw, is_required=number == 1)
        buffer = output if old and raw is old.buffer else io.BufferedWriter(output)
        lines = number == 2 or (old and old.line_buffering)
        encoding = old.encoding if old else "utf-8"
        setattr(sys, name, io.TextIOWrapper(buffer, encoding, "replace", None, bool(lines), buffer is output))


def outlive_output() -> None:
    """Let the command go on where its standard output cannot be written any more."""
    output = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
    if isinstance(output, _Output):
        output.is_required = False


class _Output(io.RawIOBase):
    """A raw output stream: after its first error everything is dropped."""

    def __init__(self, file: Any, *, is_required: bool) -> None:
        self.file, self.is_required = file, is_required
        self.error: OSError | None = None

    def write(self, data: Any, /) -> int:
        if self.error is None:
            try:
                self._write_all(memoryview(data).cast("B"))
            except OSError as error:
                self.error = error
                if not self.is_required and self.fileno() == 1:
                    text = f"standard output cannot be written any more ({error.strerror}); the run continues\n"
                    with suppress(OSError):
                        os.write(2, text.encode())
        # Not in the thread that refreshes a progress bar, which would show a traceback.
        if self.error is not None and self.is_required and threading.current_thread() is threading.main_thread():
            self.is_required = False
            raise OutputError(self.error)
        return len(data)

    def _write_all(self, data: memoryview) -> None:
        while data:
            written = self.file.write(data)
            if written is None:  # not blocking, and full: another process has changed the terminal that it shares
                select.select([], [self], [])
            data = data[written or 0 :]

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.file.fileno())

    def isatty(self) -> bool:
        return bool(self.file.isatty())
