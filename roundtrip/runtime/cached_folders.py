"""Folders of the cache: each is made from one source under a lock, whole or absent, and verified at every use.

Beside a folder lies a record of the size and the hash of each of its files. Every use compares the sizes of all files,
and hashes those that it reads: so a bit that the disk itself has flipped, which changes neither size nor time, is
noticed too, and times need not be kept. For the files of a wheel this takes less than hashing the wheel, which is read
only to make the folder. The weights of a converted model are hashed when a base is loaded in any case, and compared
with the record there (`recorded_hashes`), not twice. What is damaged is made again, with a warning.
"""

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from roundtrip.runtime import atomic_io, integrity
from roundtrip.runtime.errors import SourceError, first_line

logger = logging.getLogger(__name__)


def ensure(
    folder: Path, source: str, make: Callable[[Path], None], used: Callable[[Path], Iterable[Path]]
) -> list[Path]:
    """Make a folder `CACHE/KIND/NAME` unless it is there and undamaged; return the paths in it that are used.

    Args:
        source: hash of what the folder is made from.
        make: writes the files into an empty folder; the only caller at a time in this cache, over all processes.
        used: the files, or folders of files, whose content is verified; of others only the size is.

    Raises:
        SourceError: the folder has to be made, and the cache cannot be written.
    """
    with suppress(OSError, ValueError):  # a cache that is complete need not be writable
        return _verified(folder, source, used)
    cache = folder.parent.parent
    try:
        with locked(cache):
            try:
                return _verified(folder, source, used)  # another process has made it meanwhile
            except (OSError, ValueError) as error:
                if os.path.lexists(folder):
                    logger.warning("%s: made again: %s", folder, first_line(error))
            _write(folder, source, make)
    except OSError as error:
        cure = "make room or set ROUNDTRIP_CACHE to a folder that can be written"
        raise SourceError(f"the cache cannot be used: {error}", place=str(cache), cure=cure) from error
    return list(used(folder))


def recorded_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder as it was made, by name; nothing for folders of another origin."""
    with suppress(OSError, ValueError):
        return {name: digest for name, (_, digest) in _read_record(folder).items()}
    return {}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made, against other processes; the lock ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    # Without a mode only its owner can hold it, though others of a group may share the cache.
    lock = FileLock(folder / ".lock", mode=0o666 & ~atomic_io.umask())
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.warning("%s: waiting for another process that writes there", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def prepare(folder: Path) -> None:
    """Make a folder in a cache that is held, without what killed processes have left there."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink():  # to a folder of which we do not know what it holds
        raise OSError(errno.ELOOP, "a link; set ROUNDTRIP_CACHE to keep the cache elsewhere", str(folder))
    atomic_io.remove_leftovers(folder)


def _record_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.hashes.json")


def _read_record(folder: Path, source: str | None = None) -> dict[str, tuple[int, str]]:
    try:
        document = integrity.read_hashed_json(_record_path(folder))
    except FileNotFoundError as error:
        raise ValueError("it has no record of its hashes") from error
    if source not in {None, document.get("source")}:
        raise ValueError(f"it was made from {document.get('source')}")
    try:
        return {str(name): (int(size), str(digest)) for name, (size, digest) in document["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{_record_path(folder).name} has another form: {error!r}") from error


def _verified(folder: Path, source: str, used: Callable[[Path], Iterable[Path]]) -> list[Path]:
    """Return the paths that are used; an OSError or ValueError says what is missing or damaged."""
    record = _read_record(folder, source)
    for name, (size, _) in record.items():
        status = os.lstat(f"{folder}/{name}")  # not a Path: there may be thousands
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise ValueError(f"{name} has {status.st_size} bytes instead of {size}, or is no plain file")
    paths = list(used(folder))
    for file in (file for path in paths for file in _files(path)):
        name = file.relative_to(folder).as_posix()
        if name not in record:
            raise ValueError(f"{name} does not belong there")
        if integrity.file_hash(file) != record[name][1]:
            raise ValueError(f"{name} has been changed")
    return paths


def _files(path: Path) -> Iterable[Path]:
    return (file for file in path.rglob("*") if not file.is_dir()) if path.is_dir() else (path,)


def _write(folder: Path, source: str, make: Callable[[Path], None]) -> None:
    """Replace a folder and its record, whatever is there; without a record a folder does not count."""
    prepare(folder.parent)
    atomic_io.remove_path(_record_path(folder))
    with atomic_io.atomic_path(folder) as temporary:
        temporary.mkdir()
        make(temporary)
        hashes = integrity.file_hashes(temporary, temporary)
        files = {name: ((temporary / name).stat().st_size, digest) for name, digest in hashes.items()}
    integrity.write_hashed_json(_record_path(folder), {"source": source, "files": files})
