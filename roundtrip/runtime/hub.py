"""The model hub: requests with a limit of time, and errors that say what to do."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any

from roundtrip.runtime.disk_space import is_full
from roundtrip.runtime.downloads import is_offline
from roundtrip.runtime.errors import RoundtripError, SourceError, first_line
from roundtrip.runtime.integrity import file_hash

logger = logging.getLogger(__name__)

UPLOAD_SECONDS = 300.0  # of a request that changes something, which the hub may answer late
_SHA256_DIGITS = 64
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LOGIN = "run `hf auth login` with an account that has access, or set HF_TOKEN"
_LATER = "try again later; with --offline what is in the cache is used"
# By the name of an error's class or of a base of it, which differ less between versions than where they are.
_BY_NAME = {
    "GatedRepoError": (
        "access to {what} is restricted",
        "accept its licence on its page on the hub, then run `hf auth login`, or set HF_TOKEN",
    ),
    "DisabledRepoError": ("{what} has been disabled by the hub", "use another one"),
    "RepositoryNotFoundError": (
        "the hub has no {what}, or it is private",
        f"check the name; if it is private, {_LOGIN}",
    ),
    "RevisionNotFoundError": ("{what} has no such branch, tag or commit", "name one that its page on the hub lists"),
    "EntryNotFoundError": (
        "a file of {what} is missing on the hub",
        "check that it is complete on its page on the hub",
    ),
    "ProxyError": ("the proxy refuses the connection to the hub", "check HTTPS_PROXY and NO_PROXY"),
    "TimeoutException": (
        "the hub has not answered within {seconds:.0f} seconds",
        f"check the network, or set HF_HUB_DOWNLOAD_TIMEOUT to more seconds; else {_LATER}",
    ),
    "ConnectError": (
        "the hub cannot be reached",
        f"check the network, HTTPS_PROXY and HF_ENDPOINT; else {_LATER}",
    ),
    "TransportError": ("the connection to the hub was interrupted", f"check the network; else {_LATER}"),
}
_BY_STATUS = {
    401: ("the hub refuses the token of this machine", f"{_LOGIN}; unset HF_TOKEN if it is an old one"),
    403: ("the token of this machine does not permit it", _LOGIN),
    404: ("the hub has no {what}", "check the name, and HF_ENDPOINT if it is set"),
    412: ("{what} was changed on the hub in the meantime", "look at what it has now, and repeat the command"),
    429: ("the hub has had too many requests from here", "wait some minutes; with `hf auth login` the limit is higher"),
}


@contextmanager
def hub_requests(
    what: str, place: str, kind: type[RoundtripError] = SourceError, fill_cache: str = "run once with network access"
) -> Iterator[None]:
    """Limit the time of requests to the hub within a block, and explain its errors.

    Args:
        what: is asked for, as `model 'org/name'`.
        kind: of the errors that are raised.
        fill_cache: what to do where it is not in the cache and the hub may not be asked.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    # Of a client, and not of its factory, the limit would be lost with the first connection that is refused.
    make_client = _http._GLOBAL_CLIENT_FACTORY
    if getattr(make_client, "func", None) is not _limited_client:
        set_client_factory(partial(_limited_client, make_client))
    try:
        yield
    except RoundtripError:
        raise
    except Exception as error:  # of many kinds, which share no base class
        problem, cure = _explanation(error, what, fill_cache)
        raise kind(problem, place=place, cure=cure) from error


@contextmanager
def allow_hub() -> Iterator[None]:
    """Allow requests within a block in a process that has no leave to load anything from the hub."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _limited_client(make_client: Callable[[], Any]) -> Any:
    """Return a client for huggingface_hub that limits the time of its requests."""
    client = make_client()
    hooks = client.event_hooks
    client.event_hooks = hooks | {"request": [*hooks["request"], _limit_time]}
    return client


def _limit_time(request: Any) -> None:
    """Set a limit where huggingface_hub has none, as for what a repository is and which files it has."""
    from huggingface_hub import constants

    seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT if request.method in ("GET", "HEAD") else UPLOAD_SECONDS
    limits = request.extensions.get("timeout", {})
    kinds = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {kind: limits.get(kind) or seconds for kind in kinds}


def _explanation(error: BaseException, what: str, fill_cache: str) -> tuple[str, str]:
    """Return what an error of the hub or its cause says about the problem, and its cure."""
    from huggingface_hub import constants

    causes, each = list[BaseException](), error
    while each is not None and each not in causes:
        causes.append(each)
        each = each.__cause__ or each.__context__  # type: ignore[assignment]
    names = [[base.__name__ for base in type(cause).__mro__] for cause in causes]
    if (path := getattr(error, "filename", None)) is not None or is_full(error):
        problem = f"{what} cannot be kept in the cache: {first_line(error)}"
        cure = f"free disk space, check the permissions of {path or 'the cache'}, or set HF_HOME to another folder"
        return problem, cure
    # datasets raises a ConnectionError without its cause.
    missing = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError"}
    if constants.HF_HUB_OFFLINE and any(not missing.isdisjoint(of_cause) for of_cause in names):
        variable = "--offline, ROUNDTRIP_OFFLINE" if is_offline() else "HF_HUB_OFFLINE"
        problem = (
            f"{what} is not, or not completely, in the cache of this machine, and the hub is not asked: {variable}"
        )
        return problem, fill_cache
    for of_cause, cause in zip(names, causes, strict=True):
        if "DatasetNotFoundError" in of_cause:  # which datasets raises without its cause
            kinds = {"gated": "GatedRepoError", "Revision": "RevisionNotFoundError", "": "RepositoryNotFoundError"}
            of_cause.append(next(kind for word, kind in kinds.items() if word in str(cause)))
        for name, (problem, cure) in _BY_NAME.items():
            if name in of_cause and not (name == "EntryNotFoundError" and "LocalEntryNotFoundError" in of_cause):
                return problem.format(what=what, seconds=constants.HF_HUB_DOWNLOAD_TIMEOUT), cure
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            fallback = f"the hub has failed with status {status}" if status >= 500 else f"the hub answers {status}"
            problem, cure = _BY_STATUS.get(status, (fallback, _LATER))
            return problem.format(what=what), cure
    # Addresses may have a password in them.
    reason = re.sub(r"//[^/@\s]+@", "//", f"{type(error).__name__}: {first_line(error)}")
    return f"the request for {what} failed: {reason}", "check its name and the network, and try again"


def remove_unreadable_listings(name: str) -> None:
    """Remove from the cache lists of the files of a model that are no such lists; huggingface_hub fails at them."""
    for path in _listing(name, "*").parent.glob("*.json"):
        if _read_listing(path) is None:
            with suppress(OSError):
                path.unlink()


def refuse_damaged(name: str, folder: Path, patterns: list[str]) -> None:
    """Refuse files of a model, in a snapshot in the cache, whose content is not what the hub lists of them.

    huggingface_hub compares the size of a file, and only when it is downloaded. What is damaged is removed.
    """
    from huggingface_hub import constants

    damaged = []
    for file, expected in _listed_hashes(name, folder).items():
        if not any(fnmatch(file, pattern) for pattern in patterns):
            continue
        path = folder / file
        if expected != (file_hash(path) if len(expected) == _SHA256_DIGITS else _git_hash(path.read_bytes())):
            damaged.append(file)
            with suppress(OSError):
                if (content := path.resolve()).is_relative_to(Path(constants.HF_HUB_CACHE).resolve()):
                    content.unlink()
                path.unlink(missing_ok=True)
    if damaged:
        # The list may be what is damaged. Without network access it still tells which files are missing.
        if not constants.HF_HUB_OFFLINE:
            with suppress(OSError):
                _listing(name, folder.name).unlink(missing_ok=True)
        problem = f"the content is not what the hub lists for model '{name}': {', '.join(damaged)}"
        cure = "repeat the command with network access: this was removed from the cache, and is downloaded again"
        raise SourceError(problem, place=str(folder), cure=cure)


def _listed_hashes(name: str, folder: Path) -> dict[str, str]:
    """Return by path the hashes that the hub has for the files in a snapshot: SHA-256 of large ones, else git's.

    Caches that something else has filled may have no list of the files; a name in `blobs` is the hash of its content.
    """
    if (listed := _read_listing(_listing(name, folder.name))) is not None:
        return listed
    _warn_of_missing_listing(name, folder)
    blobs = {path.relative_to(folder).as_posix(): path.resolve() for path in folder.rglob("*") if path.is_file()}
    return {path: blob.name for path, blob in blobs.items() if _BLOB.fullmatch(blob.name)}


@cache
def _warn_of_missing_listing(name: str, folder: Path) -> None:
    problem = f"the cache has no list of the files of model '{name}', so that missing ones are not noticed"
    logger.warning("%s: %s; run once with network access", folder, problem)


def _read_listing(path: Path) -> dict[str, str] | None:
    """Return the hashes in a list of huggingface_hub; None where there is none, or no such list.

    Its own function for this leaves out the SHA-256 of large files, for which git has the hash of a pointer to them.
    """
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {name: str(entry.get("lfs_sha256") or entry["blob_id"]) for name, entry in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _listing(name: str, commit: str) -> Path:
    """Return where huggingface_hub keeps its list of the files of a commit of a model."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    return folder / "trees" / f"{commit}.json"


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
