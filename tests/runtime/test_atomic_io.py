"""Files that are complete or absent, and whether one can be written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from roundtrip.runtime import atomic_io

# Without the rights of root, who may write everywhere.
IS_WRITABLE = """
import json, os, tempfile
from pathlib import Path
from roundtrip.runtime.atomic_io import is_writable
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
with tempfile.TemporaryDirectory(dir="/tmp") as work:
    folder = Path(work)
    for parent in (folder / "open", folder / "closed"):
        (parent / "folder").mkdir(parents=True)
        (parent / "closed").mkdir(mode=0o555)
        (parent / "file").touch()
        (parent / "closed file").touch(mode=0o444)
    (folder / "closed").chmod(0o555)
    names = ("", "/folder", "/closed", "/file", "/closed file", "/new", "/new/deep", "/closed/new", "/file/new")
    names = [parent + name for parent in ("open", "closed") for name in names]
    print(json.dumps([name for name in names if is_writable(folder / name)]))
    (folder / "closed").chmod(0o755)
"""


def test_what_can_be_written_by_a_user_other_than_root() -> None:
    """What is replaced needs a folder around it that can be written, and what is new needs only that."""
    done = subprocess.run([sys.executable, "-c", IS_WRITABLE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["open", "open/folder", "open/file", "open/new", "open/new/deep"]


def test_the_old_folder_is_restored_before_anything_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    with pytest.raises(OSError, match="Input/output"), atomic_io.atomic_path(tmp_path / "a") as temporary:
        temporary.mkdir()
        monkeypatch.setattr(Path, "replace", fail)
        monkeypatch.setattr(atomic_io.shutil, "rmtree", fail)
    assert (tmp_path / "a" / "old").exists()
