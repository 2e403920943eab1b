"""Files and folders that are complete or absent: written under a temporary name, flushed to disk, then renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from roundtrip.runtime.errors import RoundtripError

# Ends of hidden names that no other program gives: what they end may be removed, or renamed back.
TEMPORARY, _OLD = ".roundtrip-tmp", ".roundtrip-old"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to, which is flushed to disk and renamed to `path`.

    A process that is killed meanwhile leaves the old content of `path`, and at most a hidden temporary file. (A folder
    that is replaced does not exist between two renames.)
    """
    if is_special(path):
        raise RoundtripError("is a device, a pipe or a link to one", place=str(path), cure="name a file")
    temporary, old = (path.with_name(f".{path.name}{suffix}") for suffix in (TEMPORARY, _OLD))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_path(temporary)
    try:
        yield temporary
        set_permissions(temporary)
        fsync_tree(temporary)
        remove_path(old)
        if path.is_dir() or temporary.is_dir():  # which replaces only an empty folder, and no file
            with suppress(FileNotFoundError):
                path.rename(old)
        temporary.replace(path)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)  # first, since on such a disk removing may fail too
        remove_path(temporary)
        raise
    fsync_path(path.parent)
    remove_path(old)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        # Bytes of paths that are not UTF-8 are surrogates in Python, which become escapes that JSON reads back.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, document: object) -> None:
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: list[list[str]]) -> None:
    """Write rows of texts: one JSON array a line."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: Path) -> list[list[str]]:
    """Read what `write_rows` wrote."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def remove_path(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(*folders: Path) -> None:
    """Remove what killed processes of this package have left directly in folders, and restore what was not replaced.

    No other process may write into the folders meanwhile.
    """
    for folder in folders:
        for path in list(folder.glob(f".*{TEMPORARY}")):
            remove_path(path)
        for path in list(folder.glob(f".*{_OLD}")):
            original = path.with_name(path.name[1:].removesuffix(_OLD))
            if os.path.lexists(original):
                remove_path(path)
            else:
                path.rename(original)


def fsync_tree(folder: Path) -> None:
    """Flush everything in a folder to disk."""
    for path in [*folder.rglob("*"), folder]:
        fsync_path(path)


def set_permissions(path: Path) -> None:
    """Give a file, or all in a folder, the usual permissions: safetensors are written for their owner alone."""
    mask = umask()
    for file in (path, *path.rglob("*")):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)


def umask() -> int:
    """Return the permissions that new files of this process do not have."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def is_writable(path: Path) -> bool:
    """Return whether a file or folder can be written or made there."""
    path = path.absolute()
    existing = next(each for each in (path, *path.parents) if each.exists())
    is_usable = existing.is_dir() or (existing == path and not is_special(existing))
    # What exists is replaced by what was written beside it.
    written = {existing, path.parent} if existing == path else {existing}
    return is_usable and all(os.access(each, os.W_OK) for each in written)


def is_special(path: Path) -> bool:
    """Return whether a path is a device or a pipe, which a rename would replace by a file."""
    return path.exists() and not path.is_file() and not path.is_dir()


def fsync_path(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
