"""Errors of the system: which are reported as such, and what to do about them."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from roundtrip.runtime.disk_space import report_full_disk, report_system_errors
from roundtrip.runtime.errors import DiskError


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
        PermissionError(errno.EACCES, "Permission denied", "a"),
        shutil.Error([("a", "b", "[Errno 13] Permission denied: 'b'")]),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        OSError(errno.EIO, "Input/output error"),
    ],
)
def test_errors_of_files_and_disks_are_reported(error: Exception) -> None:
    with pytest.raises(DiskError) as caught, report_system_errors():
        raise error
    assert caught.value.cure and caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("see [Errno 2] docs"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        TimeoutError(errno.ETIMEDOUT, "timed out"),
        ValueError("bad"),
    ],
)
def test_other_errors_are_passed_on(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, report_system_errors():
        raise error
    assert caught.value is error


def test_the_cure_of_a_full_disk_is_one_that_the_caller_has(tmp_path: Path) -> None:
    with pytest.raises(DiskError) as caught, report_full_disk(tmp_path / "a", cure="repeat the command"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.cure == "repeat the command"
    with pytest.raises(DiskError) as caught, report_full_disk(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "--resume" in str(caught.value.cure)
