"""A disk without room: how much is missing, and whether to wait for it or to end."""

from __future__ import annotations

import errno
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from roundtrip.runtime.errors import DiskError

T = TypeVar("T")
# Seconds between two tries.
PAUSE = 10.0
# Beside the tensors a checkpoint holds some text.
_SLACK = 1 << 16
_FULL = {errno.ENOSPC, errno.EDQUOT}
_WAIT = "make room and go on with --resume, with --set checkpoint.full_disk=wait to wait for it"


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk or a quota has no room left."""
    return not _FULL.isdisjoint(error_numbers(error))


def error_numbers(error: BaseException) -> set[int]:
    """Return the system's numbers of an error; safetensors and the copying of folders have them in their text."""
    if isinstance(error, OSError) and error.errno is not None:
        return {error.errno}
    return {int(number) for number in re.findall(r"(?:os error |\[Errno )(\d+)", str(error))}


@dataclass(frozen=True)
class Disk:
    """How to write where there may be no room.

    Attributes:
        wait: try again until there is, instead of ending.
        say: shows a line to a person.
        leave_if_asked: raises where a signal asked us to stop.
    """

    wait: bool = False
    say: Callable[[str], None] = print
    leave_if_asked: Callable[[], None] = lambda: None

    def keep(self, write: Callable[[], T], place: Path, num_bytes: int = 0) -> T:
        """Write something, again if need be.

        Args:
            write: leaves nothing behind where it fails.
            place: what is written.
            num_bytes: how many it takes, where that is known.

        Raises:
            DiskError: there is no room, and the recipe ends a run then.
            OSError: something else is in the way.
        """
        told = False
        while True:
            try:
                return write()
            except Exception as error:
                if not is_full(error):
                    raise
                problem = _problem(place, num_bytes)
                if not self.wait:
                    raise DiskError(problem, place=str(place), cure=_WAIT) from error
            if not told:
                self.say(f"  {place}: {problem}; waiting for it")
                told = True
            for _ in range(10):
                self.leave_if_asked()
                time.sleep(PAUSE / 10)


def _problem(place: Path, num_bytes: int) -> str:
    """Return how much room there is and how much is missing."""
    folder = next(part for part in place.parents if part.is_dir())
    free = shutil.disk_usage(folder).free
    if not num_bytes:
        return f"the disk is full ({free:,} bytes free)"
    needed = num_bytes + _SLACK
    if needed <= free:
        return f"no room for {needed:,} bytes, though {free:,} are free: a quota, or a limit of the file system"
    return f"the disk is full: {needed:,} bytes are needed, {free:,} are free, {needed - free:,} are missing"
