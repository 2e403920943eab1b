"""The folder of a run: what was asked, on what versions, what happened, what came out.

recipe.toml  run.json  events.jsonl  metrics.json
data/                     clean text, as read
blocks/                   what each phase learnt from, one row a line: kind, source, target
skipped/                  rows of the steps that changed nothing, since their loss or gradient was not finite
checkpoints/              for --resume
base/                     models from scratch as they began, and what adapters took out of a base
adapters/STAGE/DIRECTION  PEFT folders, or whole models; STAGE is text, parallel, round-1, ..., final, best
translations/             of dev and test, one file per stage and direction
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from roundtrip import __version__
from roundtrip.recipe.loader import LoadedRecipe
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime import atomic_io
from roundtrip.runtime.atomic_io import write_json
from roundtrip.runtime.errors import RunError

BEST = "best"
# What may be another at a resume, since no figure depends on it.
_FREE = {"checkpoint", "train.max_nonfinite_steps", "rounds.require_better_than_copy"}
# What may be in the folder of a run before its run.json is.
_BEFORE = {"lock", ".run.json.tmp"}
_LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "sacrebleu", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """A run folder; `RunFolder(path)` reaches its parts, `create` and `reopen` make and check it."""

    path: Path

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def blocks(self) -> Path:
        return self.path / "blocks"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def base(self) -> Path:
        return self.path / "base"

    @property
    def adapters(self) -> Path:
        return self.path / "adapters"

    @property
    def translations(self) -> Path:
        return self.path / "translations"

    @property
    def skipped(self) -> Path:
        return self.path / "skipped"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    def facts(self) -> dict[str, Any]:
        """Return `run.json`: recipe as resolved, its folder, overrides, versions, templates, counts."""
        try:
            document: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(
                f"not a run folder: {error}",
                place=str(self.path),
                cure="name the folder that roundtrip.train made",
            ) from error
        lacking = {"recipe", "folder", "versions"} - set(document)
        if lacking:
            raise RunError(
                f"its run.json lacks {', '.join(sorted(lacking))}",
                place=str(self.path),
                cure="name the folder that roundtrip.train made",
            )
        return document

    def recipe(self) -> tuple[Recipe, Path]:
        """Return the recipe as it was run and the folder its relative paths start at."""
        facts = self.facts()
        try:
            recipe = Recipe.model_validate_json(json.dumps(facts["recipe"]))
        except ValidationError as error:
            raise RunError(
                f"its recipe is of roundtrip {facts['versions'].get('roundtrip')}, which wrote it otherwise",
                place=str(self.path),
                cure="use that version, or train anew",
            ) from error
        return self.pinned(recipe), Path(facts["folder"])

    def pinned(self, recipe: Recipe) -> Recipe:
        """Return a recipe with the precision that this run began with, and with its models from scratch."""
        dtypes = self.facts().get("dtype", {})
        return with_model_folders(recipe, self.base, {name: {"dtype": dtype} for name, dtype in dtypes.items()})

    def check_loaded(self, fact: str, found: Mapping[str, str | None], what: str) -> None:
        """Compare what was loaded for each direction with what this run began with, if it has begun.

        Args:
            fact: `base_hash` or `tokenizer`.
            what: its name in a message.

        Raises:
            RunError: they differ: the rows, or what was learnt, would be another's.
        """
        facts = self.facts()
        for name, digest in facts.get(fact, {}).items():
            if name in found and found[name] != digest:
                raise RunError(
                    f"the {what} of {name} is not the one this run began with: its content differs",
                    place=str(facts.get("base_location", {}).get(name)),
                    cure=f"bring that {what} back, or start anew",
                )

    def keep_best(self, stage: str) -> None:
        """Make `adapters/best` a copy of a stage's weights; a reader never meets half of it."""
        with atomic_io.atomic_path(self.adapters / BEST) as beside:
            shutil.copytree(self.adapters / stage, beside)

    def has_best(self, stage: str) -> bool:
        """Return whether `adapters/best` is the copy of a stage's weights, to the last bit."""
        kept, best = self.adapters / stage, self.adapters / BEST
        return atomic_io.file_hashes(kept, kept) == (atomic_io.file_hashes(best, best) if best.is_dir() else {})

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        write_json(self.metrics, metrics)

    def add_facts(self, **facts: object) -> None:
        write_json(self.path / "run.json", self.facts() | facts)


def with_model_folders(
    recipe: Recipe, folder: Path, updates: Mapping[str, Mapping[str, object]] | None = None
) -> Recipe:
    """Return a recipe whose models from scratch lie in a folder.

    Args:
        updates: further keys of `[model]`, by direction.
    """
    models = {}
    for name, spec in recipe.model.items():
        made = {"path": str((folder / name).resolve())} if spec.from_scratch is not None else {}
        models[name] = spec.model_copy(update={**made, **(updates or {}).get(name, {})})
    return recipe.model_copy(update={"model": models})


def versions() -> dict[str, str]:
    """Return what the figures of a run depend on besides its recipe."""
    found = {"roundtrip": __version__, "python": platform.python_version(), "machine": platform.machine()}
    return found | {name: metadata.version(name) for name in _LIBRARIES}


def create(path: Path, loaded: LoadedRecipe) -> RunFolder:
    """Make the folder of a new run.

    Raises:
        RunError: it cannot be written, or already holds something.
    """
    run = RunFolder(path)
    try:
        if any(run.checkpoints.glob("[!.]*")):
            raise RunError(
                "already holds a run",
                place=str(path),
                cure="add --resume to go on with it, or --out for another folder",
            )
        # A run that ended before its first checkpoint, for want of a file say, is begun again.
        if (path / "run.json").exists():
            run.facts()
        elif any(item.name not in _BEFORE for item in path.glob("*")):
            raise RunError("is not empty and not a run", place=str(path), cure="name another folder with --out")
        # A model from scratch, or what an adapter took out, would be another recipe's.
        shutil.rmtree(run.base, ignore_errors=True)
        # First of all, so that a process that is killed here leaves what is known to be a run.
        write_json(
            path / "run.json",
            {
                "recipe": loaded.recipe.model_dump(mode="json"),
                "folder": str(loaded.folder),
                "overrides": list(loaded.overrides),
                "versions": versions(),
            },
        )
        for folder in (run.data, run.base, run.blocks, run.checkpoints, run.adapters, run.translations):
            folder.mkdir(parents=True, exist_ok=True)
        changes = "".join(f"# as run with --set {override}\n" for override in loaded.overrides)
        atomic_io.write_text(path / "recipe.toml", changes + loaded.text)
    except OSError as error:
        raise RunError(
            f"cannot be written: {error.strerror}", place=str(path), cure="name another folder with --out"
        ) from error
    return run


def reopen(path: Path, loaded: LoadedRecipe) -> RunFolder:
    """Open a run to go on with it; what no figure depends on, such as `[checkpoint]`, may be another.

    Raises:
        RunError: not a run, or of another recipe or other versions; the message names the differences.
    """
    run = RunFolder(path)
    facts = run.facts()
    recipe = loaded.recipe.model_dump(mode="json")
    differences = _differences(facts["recipe"], recipe, "")
    differences += _differences(facts["versions"], versions(), "version of ")
    if differences:
        raise RunError(
            "was made otherwise:\n" + "\n".join(f"  - {line}" for line in differences),
            place=str(path),
            cure="go on with the recipe and versions it was made with, or start anew with --out",
        )
    if facts["recipe"] != recipe:
        run.add_facts(recipe=recipe, overrides=list(loaded.overrides))
    return run


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> list[str]:
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if f"{prefix}{key}" in _FREE:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            lines += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} then, {after!r} now")
    return lines


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold a run folder against other processes. The lock ends with the process, however it ends.

    Raises:
        RunError: another process holds it, or the folder cannot be made.
    """
    lock = FileLock(path / "lock", blocking=False)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise RunError(
            "is in use by another process",
            place=str(path),
            cure="wait for it, or name another folder with --out",
        ) from error
    except OSError as error:
        raise RunError(
            f"cannot be written: {error.strerror}", place=str(path), cure="name another folder with --out"
        ) from error
    try:
        yield
    finally:
        lock.release()
