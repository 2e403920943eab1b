"""Pushing exported directions to the model hub, each as one commit."""

import re
import shlex
import tempfile
from pathlib import Path

from roundtrip import __version__
from roundtrip.backtranslation.trained_models import CARD, TEMPLATE, read_template
from roundtrip.recipe.plan import Direction
from roundtrip.runtime.errors import RunError, SourceError, UsageError
from roundtrip.runtime.hub import allow_hub, hub_requests

_PLACE = "--push"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_ANOTHER = "name another repository, or remove that one on the hub"


def repository_name(name: str, direction: Direction) -> str:
    """Return what a direction is called on the hub, `ORG/NAME-en-es`; refuse what is no name there."""
    if not _NAME.fullmatch(name):
        problem = f"{name!r} is no name of a repository"
        raise UsageError(problem, place=_PLACE, cure=f"name it as ORG/NAME, which becomes ORG/NAME-{direction.name}")
    return f"{name}-{direction.name}"


def check_target(name: str, direction: Direction) -> tuple[str | None, set[str]]:
    """Refuse a repository that holds anything but an earlier export of this direction, or a machine without a token.

    Returns:
        Its commit, None where there is no such repository, and the files of the earlier export.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    with allow_hub(), hub_requests(f"model '{name}'", _PLACE), tempfile.TemporaryDirectory() as work:
        if get_token() is None:
            cure = "run `hf auth login`, or set HF_TOKEN, with a token that may write"
            raise SourceError("this machine has no token of the hub", place=_PLACE, cure=cure)
        try:
            info = HfApi().model_info(name)
        except RepositoryNotFoundError:
            return None, set()
        names = {file.rfilename for file in info.siblings or ()} - {".gitattributes"}
        if not names:
            return info.sha, set()
        if TEMPLATE not in names:
            problem = f"'{name}' has {', '.join(sorted(names)[:3])}, and is no export of roundtrip"
            raise SourceError(problem, place=_PLACE, cure=_ANOTHER)
        HfApi().hf_hub_download(name, TEMPLATE, revision=info.sha, local_dir=work)
        try:
            earlier = read_template(Path(work))
        except RunError as error:
            problem = f"the {TEMPLATE} of '{name}' is no export of roundtrip that can be read"
            raise SourceError(problem, place=_PLACE, cure=_ANOTHER) from error
        if earlier.direction != direction:
            problem = f"'{name}' has an export of {earlier.direction.name}, not of {direction.name}"
            raise SourceError(problem, place=_PLACE, cure=_ANOTHER)
        return info.sha, names & {*earlier.files, TEMPLATE, CARD}


def push(folder: Path, name: str, *, public: bool = False) -> str:
    """Upload an exported direction as one commit, which replaces what `check_target` allows; return its address.

    Args:
        public: whether a repository that is created is public; one that exists stays as it is.

    Raises:
        SourceError: the repository is of something else, or the hub refuses it; the folder stays as it is.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    direction, api = read_template(folder).direction, HfApi()
    commit, earlier = check_target(name, direction)
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    card = paths[CARD].read_text(encoding="utf-8").replace('"FOLDER"', f'"{name}"') if CARD in paths else ""
    contents: dict[str, str | bytes] = {key: str(path) for key, path in paths.items()}
    contents |= {CARD: card.encode()} if card else {}
    changes: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(key, content) for key, content in sorted(contents.items())),
        *(CommitOperationDelete(key, is_folder=False) for key in sorted(earlier - contents.keys())),
    ]
    message = f"Upload {direction.name}, exported by roundtrip {__version__}"
    try:
        with allow_hub(), hub_requests(f"model '{name}'", _PLACE):
            if commit is None:
                api.create_repo(name, private=not public)
                commit = api.model_info(name).sha
            # Refused where somebody else has changed it since it was looked at.
            return str(api.create_commit(name, changes, commit_message=message, parent_commit=commit).commit_url)
    except SourceError as error:
        problem = f"{error.problem}; {folder} is complete, and '{name}' on the hub has all of it or is as it was"
        again = shlex.join(["hf", "upload", name, str(folder), ".", *([] if public else ["--private"])])
        raise SourceError(problem, place=_PLACE, cure=f"{error.cure}; then: {again}") from error
