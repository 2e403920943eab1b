"""The folder of a run: what was asked, with which versions, what happened, what came out."""

import json
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, field, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from roundtrip import __version__
from roundtrip.backtranslation import results
from roundtrip.recipe.loader import LoadedRecipe
from roundtrip.recipe.plan import BASE
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime import atomic_io, integrity
from roundtrip.runtime.errors import RunError, printable
from roundtrip.tokens.prompt_segments import Segments

BEST = "best"
FORMAT = 5
# Keys that may change at --resume, since no result depends on them.
_FREE_KEYS = {"checkpoint", "rounds.require_better_than_copy"}
# Files that may be in the folder of a run before its run.json is.
_EARLY_FILES = {"lock", f".run.json{atomic_io.TEMPORARY}"}
_LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "sacrebleu", "numpy")
_NOT_A_RUN = "name the folder that `roundtrip train` made, such as runs/NAME-OF-RECIPE"
_RESTORE = "restore it from a copy; if the run did not finish, `roundtrip train ... --resume` makes it again"
_ANOTHER_FOLDER = "name another folder with --out"

# Of what is read back from a JSON file of ours: no value is converted, and there are no others.
AS_WRITTEN: ConfigDict = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
Dtype = Annotated[str, Field(pattern="^(float32|bfloat16|float16)$")]
Expansion = Annotated[float, Field(gt=0, le=1e6)]


@dataclass(frozen=True, config=AS_WRITTEN)
class RunManifest:
    """`run.json`: what a run was started with, and what was fixed when its text and models were first loaded."""

    recipe: dict[str, Any]  # as resolved, in JSON form
    folder: str  # where relative paths of the recipe start
    overrides: list[str]
    versions: dict[str, str]
    # Per part of the text, how many rows were kept and how many dropped for which reason.
    lines: dict[str, dict[str, int]] = field(default_factory=dict)
    # SHA-256 by path of all that is read again: recipe.toml, text, models, weights, translations, metrics.json.
    files: dict[str, str] = field(default_factory=dict)
    # Of the models, by direction.
    dtypes: dict[str, Dtype] = field(default_factory=dict)
    base_hashes: dict[str, str] = field(default_factory=dict)
    base_locations: dict[str, str] = field(default_factory=dict)
    base_commits: dict[str, str] = field(default_factory=dict)  # of hub ids, whose branches move on
    tokenizer_hashes: dict[str, str | None] = field(default_factory=dict)
    segments: dict[str, Segments] = field(default_factory=dict)  # the fixed parts of all prompts, by name
    expansions: dict[str, Expansion] = field(default_factory=dict)  # target tokens per source token, by direction

    @property
    def is_loaded(self) -> bool:
        """Whether text and models were loaded once, and all that is fixed from then on is known."""
        return bool(self.base_hashes)

    @property
    def has_results(self) -> bool:
        """Whether the run has kept the weights of a stage, or finished."""
        return any(name.startswith(("adapters/", "metrics.json")) for name in self.files)

    def check_loaded(self, kind: str, hashes: Mapping[str, str | None]) -> None:
        """Compare the `base model` or `tokenizer` of each direction with what the run was started with, if it was."""
        expected = self.base_hashes if kind == "base model" else self.tokenizer_hashes
        for direction, digest in expected.items():
            if direction in hashes and hashes[direction] != digest:
                problem = f"the {kind} of {direction} is not the one this run was started with: its content differs"
                place = str(self.base_locations.get(direction))
                raise RunError(problem, place=place, cure=f"restore that {kind}, or start a new run")


_MANIFEST = TypeAdapter(RunManifest)


class RunFolder:
    """A run folder; `RunFolder(path)` names its parts, `create` and `reopen` make and check it."""

    def __init__(self, path: Path) -> None:
        self.path = path  # has run.json
        self.recipe_file = path / "recipe.toml"  # as it was given
        self.data = path / "data"  # clean text, as read
        self.examples = path / "examples"  # what each round trained on, one example a line: kind, source, target
        self.nonfinite_steps = path / "nonfinite_steps"  # rows of the steps whose loss or gradient was not finite
        self.checkpoints = path / "checkpoints"  # for --resume
        self.base = path / "base"  # models from scratch as initialized, and what adapters subtracted from a base
        # STAGE/DIRECTION: PEFT folders, or fully trained models; STAGE is text, parallel, round-1, ..., final,
        # control-1, ...; `best` has of each direction a copy of its own best stage.
        self.adapters = path / "adapters"
        self.translations = path / "translations"  # of dev and test, one file per stage and direction
        self.events = path / "events.jsonl"
        self.metrics = path / "metrics.json"
        self.report = path / "report.html"  # a page about the run, written from its files
        self._version: tuple[int, ...] | None = None
        self._manifest: RunManifest | None = None  # as of that version of run.json
        self.folders = (self.data, self.base, self.examples, self.checkpoints, self.adapters, self.translations)

    def manifest(self) -> RunManifest:
        """Read `run.json`, unless it is as it was, and refuse one that is missing, changed, or of another format."""
        path, cure = self.path / "run.json", _NOT_A_RUN
        try:
            version = integrity.file_version(path.stat())
            if version is not None and version == self._version and self._manifest is not None:
                return self._manifest
            document = integrity.read_hashed_json(path)
            if (written := document.pop("format", None)) == FORMAT:
                self._version, self._manifest = version, integrity.validated(_MANIFEST, document, "run.json")
                return self._manifest
            problem = f"its run.json has format {written!r}, this version reads {FORMAT}"
            cure = "use the version of roundtrip that made it, or start a new run"
        except FileNotFoundError:
            problem = f"not a run folder: {'it has no run.json' if self.path.is_dir() else 'it does not exist'}"
        except (OSError, ValueError) as error:
            problem = f"not a run folder that can be read: {error}"
            cure = f"{_RESTORE}; if another version of roundtrip made the run, use that version"
        raise RunError(problem, place=str(self.path), cure=cure)

    def write_manifest(self, manifest: RunManifest) -> None:
        integrity.write_hashed_json(self.path / "run.json", {"format": FORMAT, **asdict(manifest)})

    def record(self, hashes: Mapping[str, str]) -> None:
        """Add hashes of what was written to `run.json`; those of files that have gone are removed."""
        manifest = self.manifest()
        files = {name: digest for name, digest in manifest.files.items() if (self.path / name).exists()}
        if (files := files | dict(hashes)) != manifest.files:
            self.write_manifest(replace(manifest, files=files))

    def recorded(self, *parts: Path) -> dict[str, str]:
        """Return the hashes of files of the run, single or all in a folder, by path."""
        files, names = self.manifest().files, [part.relative_to(self.path).as_posix() for part in parts]
        return {key: files[key] for name in names for key in files if key == name or key.startswith(f"{name}/")}

    def first_damaged(self, *parts: Path) -> str | None:
        """Return what is wrong with the first of such files that differs; None if all are as written."""
        return integrity.first_damaged(self.recorded(*parts), self.path)

    def check_files(self, *parts: Path, cure: str = _RESTORE) -> None:
        """Refuse files of the run, single or all in a folder, that are not as they were written."""
        if problem := self.first_damaged(*parts):
            raise RunError(f"is damaged: {problem}", place=str(self.path), cure=cure)

    def recipe(self, manifest: RunManifest | None = None) -> Recipe:
        """Return the recipe as it was run: with the precision, commits and models from scratch that it started with."""
        manifest = manifest or self.manifest()
        try:
            recipe = Recipe.model_validate_json(json.dumps(manifest.recipe))
        except ValidationError as error:
            problem = f"its recipe was written by roundtrip {manifest.versions.get('roundtrip')}, with other keys"
            raise RunError(problem, place=str(self.path), cure="use that version, or train again") from error
        return with_model_folders(recipe, self.base, manifest.dtypes, manifest.base_commits)

    def results(self) -> dict[str, Any]:
        """Return the content of `metrics.json`, nothing where the run has not finished."""
        if "metrics.json" not in self.manifest().files:
            return {}
        self.check_files(self.metrics)
        try:
            document: dict[str, Any] = json.loads(self.metrics.read_text(encoding="utf-8"))
            results.check(document)
        except ValueError as error:
            raise RunError(str(error), place=str(self.path), cure=_RESTORE) from error
        return document

    def translation_file(self, part: str, stage: str, direction: str) -> Path:
        """Return where the translations of `dev` or `test` by a stage of a direction are, one a line."""
        return self.translations / f"{part}.{stage}.{direction}.txt"

    def keep_best(self, stages: Mapping[str, str]) -> None:
        """Make `adapters/best` a copy of the weights of each direction at its stage, in one rename."""
        with atomic_io.atomic_path(self.adapters / BEST) as temporary:
            for direction, stage in stages.items():
                shutil.copytree(self.adapters / stage / direction, temporary / direction)

    def has_best(self, stages: Mapping[str, str]) -> bool:
        """Return whether `adapters/best` is what `keep_best` makes, and recorded so; of the base nothing is kept."""
        if BASE in stages.values() or not stages:
            return True
        best, expected = self.adapters / BEST, dict[str, str]()
        for direction, stage in stages.items():
            expected |= integrity.file_hashes(self.adapters / stage / direction, self.adapters / stage)
        recorded = {name.split("/", 2)[2]: digest for name, digest in self.recorded(best).items()}
        found = integrity.file_hashes(best, best) if best.is_dir() else {}
        return found == expected == recorded


def with_model_folders(
    recipe: Recipe, folder: Path, dtypes: Mapping[str, str] | None = None, commits: Mapping[str, str] | None = None
) -> Recipe:
    """Return a recipe whose models from scratch lie in a folder, with dtypes and revisions of some directions."""
    models = {}
    for name, spec in recipe.model.items():
        path = str((folder / name).resolve()) if spec.from_scratch is not None else spec.path
        fixed = {"dtype": (dtypes or {}).get(name, spec.dtype), "revision": (commits or {}).get(name, spec.revision)}
        models[name] = spec.model_copy(update={"path": path, **fixed})
    return recipe.model_copy(update={"model": models})


def versions() -> dict[str, str]:
    """Return the versions that the results of a run depend on besides its recipe."""
    own = {"roundtrip": __version__, "python": platform.python_version(), "machine": platform.machine()}
    return own | {name: metadata.version(name) for name in _LIBRARIES}


def require_plain_path(path: Path) -> None:
    """Refuse a path that JSON files and the tokenizers library cannot hold."""
    if printable(str(path.absolute())) != str(path.absolute()):
        problem = "has control characters, or bytes that are not UTF-8, in its path"
        raise RunError(problem, place=str(path.absolute()), cure="rename it, or name another folder")


def create(path: Path, loaded: LoadedRecipe) -> RunFolder:
    """Make the folder of a new run, and refuse one that already holds something."""
    run = RunFolder(path)
    for each in (path, loaded.folder):
        require_plain_path(each)
    try:
        # One that ended before its first checkpoint, because a file was missing for example, starts again.
        has_run = (path / "run.json").exists()
        if any(run.checkpoints.glob("[!.]*")) or (has_run and run.manifest().has_results):
            cure = "add --resume to continue it, or --out for another folder"
            raise RunError("already holds a run", place=str(path), cure=cure)
        if not has_run and any(item.name not in _EARLY_FILES for item in path.glob("*")):
            raise RunError("is not empty and not a run", place=str(path), cure=_ANOTHER_FOLDER)
        # A model from scratch, or what an adapter subtracted, would belong to another recipe.
        shutil.rmtree(run.base, ignore_errors=True)
        # First of all, so that a process that is killed here leaves what is known to be a run.
        recipe = loaded.recipe.model_dump(mode="json")
        run.write_manifest(RunManifest(recipe, str(loaded.folder), list(loaded.overrides), versions()))
        for folder in run.folders:
            folder.mkdir(parents=True, exist_ok=True)
        changes = "".join(f"# as run with --set {override}\n" for override in loaded.overrides)
        atomic_io.write_text(run.recipe_file, changes + loaded.text)
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror}", place=str(path), cure=_ANOTHER_FOLDER) from error
    return run


def reopen(path: Path, loaded: LoadedRecipe) -> RunFolder:
    """Open a run to continue it; of recipe and versions, only keys that no result depends on may have changed."""
    run = RunFolder(path)
    manifest, recipe = run.manifest(), loaded.recipe.model_dump(mode="json")
    differences = _differences(manifest.recipe, recipe, "")
    differences += _differences(manifest.versions, versions(), "version of ")
    if differences:
        problem = "was started with other settings:\n" + "\n".join(f"  - {line}" for line in differences)
        cure = "resume with the recipe and versions it was started with, or start a new run with --out"
        raise RunError(problem, place=str(path), cure=cure)
    if manifest.recipe != recipe:
        run.write_manifest(replace(manifest, recipe=recipe, overrides=list(loaded.overrides)))
    return run


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> list[str]:
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after, name = old.get(key), new.get(key), f"{prefix}{key}"
        if name not in _FREE_KEYS and isinstance(before, dict) and isinstance(after, dict):
            lines += _differences(before, after, f"{name}.")
        elif name not in _FREE_KEYS and before != after:
            lines.append(f"{name}: {before!r} then, {after!r} now")
    return lines


@contextmanager
def run_lock(path: Path, *, resume: bool = False) -> Iterator[None]:
    """Hold a run folder against other processes; the lock ends with the process, however it ends."""
    if resume and not (path / "run.json").is_file():
        cure = "omit --resume to start a new run, or name the folder of one with --out"
        raise RunError("not a run folder, so there is nothing to resume", place=str(path), cure=cure)
    lock = FileLock(path / "lock", blocking=False)
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = lock.acquire()
    except Timeout as error:
        cure = f"wait for it, or {_ANOTHER_FOLDER}"
        raise RunError("is in use by another process", place=str(path), cure=cure) from error
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror}", place=str(path), cure=_ANOTHER_FOLDER) from error
    with held:
        yield
