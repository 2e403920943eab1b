"""What is no file with an end is refused at once, wherever a path is read; and so is a glob without an end."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest

from roundtrip.data.text_files import read_text_lines
from roundtrip.models import adapters, base_model
from roundtrip.recipe import loader
from roundtrip.recipe.schema import Model
from roundtrip.runtime import downloads
from roundtrip.runtime.errors import RoundtripError, SourceError
from roundtrip.runtime.special_files import special_kind

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names special files of Linux")


@pytest.fixture(params=["pipe", "substitution", "zero", "socket", "proc", "sys"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A path whose reading may have no end."""
    path = tmp_path / "special"
    match request.param:
        case "pipe":
            os.mkfifo(path)
        case "substitution":
            reader, writer = os.pipe()
            request.addfinalizer(lambda: (os.close(reader), os.close(writer)))
            return Path(f"/dev/fd/{reader}")
        case "zero":
            path.symlink_to("/dev/zero")
        case "socket":
            # A path of a socket has at most 107 bytes.
            with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_UNIX) as unix:
                patch.chdir(tmp_path)
                unix.bind("special")
        case "proc":
            return Path("/proc/kmsg")
        case "sys":
            path.symlink_to("/sys/kernel/notes" if Path("/sys/kernel/notes").exists() else "/proc/version")
    return path


@pytest.mark.parametrize("gzipped", [False, True])
def test_text_is_not_read_from_a_special_file(special: Path, tmp_path: Path, gzipped: bool) -> None:
    path = special
    if gzipped:
        path = tmp_path / "a.gz"
        path.symlink_to(special)
    with pytest.raises(RoundtripError, match=r"a (pipe|socket|device|file of the kernel), not a file") as caught:
        list(read_text_lines(path))
    assert caught.value.place == str(path) and "COMMAND > FILE" in str(caught.value.cure)


def test_a_recipe_or_source_is_no_special_file(special: Path, tmp_path: Path) -> None:
    with pytest.raises(RoundtripError, match="not a file"):
        loader.load_recipe(str(special))
    with pytest.raises(SourceError, match="not a file"):
        downloads.resolve(str(special), tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_a_model_has_no_special_files(model_folder: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(RoundtripError, match=f"{name}.*a pipe, not a file"):
        base_model.load_tokenizer(Model(path=str(folder)), Path())
    os.mkfifo(folder / adapters.WEIGHTS)
    with pytest.raises(RoundtripError, match="a pipe, not a file"):
        adapters.read(folder)


def test_files_folders_and_standard_input_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    reader, writer = os.pipe()
    before = os.dup(0)
    os.dup2(reader, 0)
    try:
        os.write(writer, b"one\ntwo\n")
        os.close(writer)
        assert list(read_text_lines(Path("/dev/stdin"))) == ["one\n", "two\n"]
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(reader)
    assert special_kind(tmp_path / "a.txt") is special_kind(tmp_path) is special_kind(tmp_path / "none") is None
    assert special_kind(Path("\0")) is None


@pytest.mark.parametrize("pattern", ["**/**/**/**/**/x", "**/*/**/*/**/*/**/x", "**"])
def test_a_glob_that_does_not_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    folder = tmp_path
    for _ in range(60):
        folder = folder / "a"
        folder.mkdir()
    (folder / "loop").symlink_to(tmp_path)
    monkeypatch.setattr(downloads, "GLOB_SECONDS", 1.0)
    if pattern == "**":
        monkeypatch.setattr(downloads, "GLOB_SECONDS", 0.0)
    start = time.monotonic()
    with pytest.raises(SourceError, match=r"matching '\*\*.*more than . seconds"):
        downloads.resolve(pattern, tmp_path)
    assert time.monotonic() - start < 5


def test_names_in_any_bytes_are_matched(tmp_path: Path) -> None:
    name = os.fsdecode(b"line\xff\n.txt")
    (tmp_path / name).write_text("a")
    assert downloads.resolve("*.txt", tmp_path) == [tmp_path / name]
