"""Errors of the system: what to do about them, and how much space is missing on a full disk."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from roundtrip.runtime.errors import DiskError, RoundtripError, first_line

# Beside its tensors a checkpoint holds some text.
_SLACK = 1 << 16


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk or a quota has no space left, or that a file may not become so large."""
    return not error_numbers(error).isdisjoint({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def error_numbers(error: BaseException) -> set[int]:
    """Return the errno values of an error; safetensors and shutil.copytree have them in their text."""
    if isinstance(error, OSError) and error.errno is not None:
        return {error.errno}
    return {int(number) for number in re.findall(r"(?:os error |\[Errno )(\d+)", str(error))}


def cure_of(error: BaseException) -> str | None:
    """Return what to do about an error of the system, as of a file that cannot be read or written; None for others."""
    if is_full(error):
        cure = "free disk space, or raise the limit of file sizes (ulimit -f), and repeat the command; "
        return cure + "add --resume to continue a run that has a checkpoint"
    if errno.EIO in error_numbers(error):
        return "check the disk; add --resume to continue a run that has a checkpoint"
    if isinstance(error, PermissionError):
        return "name another folder, or change its permissions"
    return "check the path, and the limits of this process (ulimit -a)" if error_numbers(error) else None


@contextmanager
def report_system_errors() -> Iterator[None]:
    """Turn errors of the system about files and disks into `DiskError`; also a decorator.

    Others are passed on, as those of a filter of the user that asks a server.
    """
    try:
        yield
    except RoundtripError:
        raise
    except Exception as error:
        of_file = isinstance(error, shutil.Error) or (isinstance(error, OSError) and error.filename is not None)
        of_disk = is_full(error) or errno.EIO in error_numbers(error)
        if (of_file or of_disk) and (cure := cure_of(error)):
            raise DiskError(first_line(error), cure=cure) from error
        raise


@contextmanager
def report_full_disk(
    path: Path, num_bytes: int = 0, cure: str = "free disk space and continue with --resume"
) -> Iterator[None]:
    """Turn the error of a full disk into a `DiskError` that says how many bytes are missing.

    The block writes `path`, of `num_bytes` where that is known, and leaves nothing behind where it fails.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        free = shutil.disk_usage(next(part for part in path.parents if part.is_dir())).free
        needed = num_bytes + _SLACK
        problem = f"the disk is full: {needed:,} bytes are needed, {free:,} are free, {needed - free:,} are missing"
        if errno.EFBIG in error_numbers(error):
            problem = "the file becomes larger than this process may make files (ulimit -f)"
        elif not num_bytes:
            problem = f"the disk is full ({free:,} bytes free)"
        elif needed <= free:
            problem = f"no space for {needed:,} bytes, although {free:,} are free: a quota or limit of the file system"
        raise DiskError(problem, place=str(path), cure=cure) from error
