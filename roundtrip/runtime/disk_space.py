"""Writing to a disk that may be full: the error says how many bytes are missing."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from roundtrip.runtime.errors import DiskError

T = TypeVar("T")
# Beside the tensors a checkpoint holds some text.
_SLACK = 1 << 16
_FULL = {errno.ENOSPC, errno.EDQUOT}


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk or a quota has no room left."""
    return not _FULL.isdisjoint(error_numbers(error))


def error_numbers(error: BaseException) -> set[int]:
    """Return the system's error numbers; safetensors and the copying of folders have them in their text."""
    if isinstance(error, OSError) and error.errno is not None:
        return {error.errno}
    return {int(number) for number in re.findall(r"(?:os error |\[Errno )(\d+)", str(error))}


def write_checked(write: Callable[[], T], path: Path, num_bytes: int = 0) -> T:
    """Write something, and say what is missing where there is no room for it.

    Args:
        write: leaves nothing behind where it fails.
        path: what is written.
        num_bytes: how many bytes it needs, where that is known.

    Raises:
        DiskError: there is no room.
        OSError: any other error of the system.
    """
    try:
        return write()
    except Exception as error:
        if not is_full(error):
            raise
        cure = "free space, and continue with --resume"
        raise DiskError(_problem(path, num_bytes), place=str(path), cure=cure) from error


def _problem(path: Path, num_bytes: int) -> str:
    """Return how much room there is and how much is missing."""
    folder = next(part for part in path.parents if part.is_dir())
    free = shutil.disk_usage(folder).free
    if not num_bytes:
        return f"the disk is full ({free:,} bytes free)"
    needed = num_bytes + _SLACK
    if needed <= free:
        return f"no room for {needed:,} bytes, though {free:,} are free: a quota, or a limit of the file system"
    return f"the disk is full: {needed:,} bytes are needed, {free:,} are free, {needed - free:,} are missing"
