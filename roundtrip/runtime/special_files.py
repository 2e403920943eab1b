"""Paths whose reading might wait or have no end: pipes, devices, and files of the kernel."""

import stat
from pathlib import Path

_STANDARD_INPUT = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
SPECIAL_CURE = "write it to a file first (COMMAND > FILE), and name that"


def special_kind(path: Path) -> str | None:
    """Return what a path is whose reading might wait or have no end: a pipe, a device, or a file of the kernel.

    None for files, folders, what is not there, and standard input by its name (`/dev/stdin`).
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(status.st_mode) or str(path) in _STANDARD_INPUT:
        return None
    if stat.S_ISREG(status.st_mode):
        return "a file of the kernel" if path.resolve().parts[1:2] in {("proc",), ("sys",)} else None
    return "a pipe" if stat.S_ISFIFO(status.st_mode) else "a socket" if stat.S_ISSOCK(status.st_mode) else "a device"
