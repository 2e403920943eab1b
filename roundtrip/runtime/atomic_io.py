"""Files and folders that are whole or not there: written beside, brought to disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Seconds after which a temporary folder is nobody's.
_OLD = 7 * 24 * 3600


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write a file or folder under; it takes its place in one rename, once on disk.

    A process that is killed on the way leaves what stood at `path` before, and at most a hidden leftover beside it. (A
    folder that is replaced is away for the time between two renames.)

    Raises:
        OSError: from the body, or from bringing it to disk; nothing is left beside.
    """
    beside, aside = (path.with_name(f".{path.name}.{end}") for end in ("tmp", "old"))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_path(beside)
    try:
        yield beside
        fsync_tree(beside)
    except BaseException:
        remove_path(beside)
        raise
    remove_path(aside)
    if path.is_dir():
        path.rename(aside)
    beside.replace(path)
    fsync_path(path.parent)
    remove_path(aside)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, document: object) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: list[list[str]]) -> None:
    """Write rows of texts: one JSON array a line."""
    with atomic_path(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: Path) -> list[list[str]]:
    """Read what `write_rows` wrote."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def remove_path(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left of files they were at; call it while nobody writes into the folder.

    What was set aside for something new that never came takes its place again.
    """
    for path in list(folder.rglob(".*.tmp")):
        remove_path(path)
    for path in list(folder.rglob(".*.old")):
        place = path.with_name(path.name[1 : -len(".old")])
        if place.exists():
            remove_path(path)
        else:
            path.rename(place)


def fsync_tree(folder: Path) -> None:
    """Wait until all that is in a folder is on disk."""
    for path in [*folder.rglob("*"), folder]:
        fsync_path(path)


def remove_stale(folder: Path, prefix: str) -> None:
    """Remove what killed processes have left in a folder that others may be at work in: what no one has touched lately.

    Args:
        prefix: of the names of temporary folders.
    """
    for path in folder.glob(f"{prefix}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _OLD:
                remove_path(path)


def fsync_path(path: Path) -> None:
    """Wait until a file or the names in a folder are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hashes(folder: Path, start: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder (or of the one file), by its path from `start`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    return {path.relative_to(start).as_posix(): file_hash(path) for path in paths}


def first_damaged(found: dict[str, str], start: Path) -> str | None:
    """Return what is wrong with the first file that is not as `digests` saw it; None where all are."""
    for name, expected in found.items():
        path = start / name
        if not path.is_file():
            return f"{name} is gone"
        if file_hash(path) != expected:
            return f"{name} is not what was written"
    return None
