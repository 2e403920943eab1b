"""Hashes that show whether what is read is what was written: of files, and inside of JSON files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from roundtrip.runtime import atomic_io
from roundtrip.runtime.special_files import special_kind

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
# By `file_version`.
_known_hashes: dict[tuple[int, ...], str] = {}
_SETTLED_NS = 10**9

# The key of a JSON object under which the hash of its other keys stands.
HASH_KEY = "sha256"


def _refuse_special(path: Path) -> None:
    """Raise an OSError for what is no plain file, because a pipe would wait for its writer."""
    if kind := special_kind(path):
        raise OSError(errno.EINVAL, f"{kind}, not a file", str(path))


def file_version(status: os.stat_result) -> tuple[int, ...] | None:
    """Return what changes whenever a file does; None for one so new that a change would not show in its times."""
    is_new = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _SETTLED_NS
    return None if is_new else (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file; what has not changed since it was hashed in this process is not read again."""
    _refuse_special(path)
    with path.open("rb") as file:
        version = file_version(os.fstat(file.fileno()))
        if version not in _known_hashes:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if version is None:
                return digest
            _known_hashes[version] = digest
        return _known_hashes[version]


def file_hashes(folder: Path, start: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder (or of the one file), by its path from `start`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    return {path.relative_to(start).as_posix(): file_hash(path) for path in paths}


def first_damaged(hashes: Mapping[str, str], start: Path) -> str | None:
    """Return what is wrong with the first file that differs from what `file_hashes` has returned; None if none does."""
    for name, expected in hashes.items():
        path = start / name
        if not path.is_file():
            return f"{name} is missing"
        if file_hash(path) != expected:
            return f"{name} has been changed"
    return None


def write_hashed_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON object with the hash of its content, for `read_hashed_json`."""
    atomic_io.write_json(path, {**document, HASH_KEY: _content_hash(document)})


def read_hashed_json(path: Path) -> dict[str, Any]:
    """Read what `write_hashed_json` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what was written: not a JSON object, or its hash is another one.
    """
    _refuse_special(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} is damaged: {type(document).__name__} where an object is expected")
    if HASH_KEY not in document:
        raise ValueError(f"{path.name} has no {HASH_KEY}, so it was not written by this version")
    if document.pop(HASH_KEY) != _content_hash(document):
        raise ValueError(f"{path.name} has been changed: its {HASH_KEY} is not that of its content")
    return document


def validated(adapter: TypeAdapter[T], document: object, name: str) -> T:
    """Return the value of a type that the JSON of a file holds; a ValueError says what does not fit."""
    from pydantic import ValidationError

    try:
        # Through JSON, since only there does pydantic's strict mode take an array for a tuple.
        return adapter.validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{name} is damaged: {place and f'{place}: '}{first['msg']}") from error


def _content_hash(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode("utf-8")).hexdigest()
