"""Loading trained directions for use: from the folder of a run, or from what `export` wrote."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from roundtrip.backtranslation.run_folder import AS_WRITTEN, BEST, Expansion, RunFolder
from roundtrip.engine import translator
from roundtrip.engine.translator import Translator
from roundtrip.models import adapters, direction_model
from roundtrip.models.model_files import find_files, read_json
from roundtrip.models.tensor_files import read_dtypes
from roundtrip.recipe.language_codes import match_codes, parse_code
from roundtrip.recipe.plan import Direction, directions
from roundtrip.recipe.schema import Adapter, Model, Recipe
from roundtrip.runtime import integrity
from roundtrip.runtime.disk_space import report_system_errors
from roundtrip.runtime.downloads import offline
from roundtrip.runtime.errors import ModelError, RunError, SourceError, first_line
from roundtrip.tokens.prompt_segments import Segments

# Of an exported direction: what `read_template` reads, and the model card, which may be edited.
TEMPLATE, CARD = "template.json", "README.md"


def direction_into(run: RunFolder, target: str) -> Direction:
    """Return the direction of a run into a language, in any form of its code."""
    by_target = {direction.target: direction for direction in directions(run.recipe())}
    (position,) = match_codes([target], list(by_target))
    key = target if position is None or target in by_target else list(by_target)[position]
    return _choose(by_target, key, run, f"translates between {' and '.join(sorted(by_target))}, not into '{target}'")


def direction_named(run: RunFolder, name: str) -> Direction:
    """Return the direction of a run with a name, such as `en-es`."""
    by_name = {direction.name: direction for direction in directions(run.recipe())}
    return _choose(by_name, name, run, f"has no direction '{name}'")


def _choose(known: Mapping[str, Direction], key: str, run: RunFolder, problem: str) -> Direction:
    if key not in known:
        raise RunError(problem, place=str(run.path), cure=f"name {' or '.join(known)}")
    return known[key]


def load(
    run: RunFolder, direction: Direction, stage: str = BEST, device: str = "auto", quantize: str | None = None
) -> Translator:
    """Load one direction of a run as it was at the end of a stage, with `model.quantize` of the recipe or another."""
    return load_directions(run, [direction], stage, device, quantize)[direction.name]


def load_directions(
    run: RunFolder, wanted: Sequence[Direction], stage: str = BEST, device: str = "auto", quantize: str | None = None
) -> dict[str, Translator]:
    """Load directions of a run by name, see `load`; a base that both share is loaded once."""
    manifest = run.manifest()
    recipe, paths = run.recipe(manifest), {each.name: run.adapters / stage / each.name for each in wanted}
    specs: dict[str, Model] = {}
    for name, path in paths.items():
        _check_stage(run, recipe, stage, name)
        # What served training only need not be here: the attention, and the device it ran on.
        for_use = {"attention": "auto", "use_liger_kernel": False, "gradient_checkpointing": False}
        spec: dict[str, object] = {"device": device, **for_use} | ({"quantize": quantize} if quantize else {})
        if recipe.adapter[name].method == "full":
            spec |= {"path": str(path.resolve()), "from_scratch": None, "revision": None}
        specs[name] = recipe.model[name].model_copy(update=spec)
    folders = {name: None if recipe.adapter[name].method == "full" else path for name, path in paths.items()}
    loaded = translator.load_for_use(recipe, Path(manifest.folder), manifest.segments, specs, folders)
    adapted = {name: each.base.digest for name, each in loaded.items() if folders[name]}
    manifest.check_loaded("base model", adapted)
    return {name: replace(each, expansion=manifest.expansions.get(name, 1.0)) for name, each in loaded.items()}


def _check_stage(run: RunFolder, recipe: Recipe, stage: str, name: str) -> None:
    """Refuse the weights of a direction at the end of a stage where they are missing, or not as they were written."""
    path = run.adapters / stage / name
    if stage != Path(stage).name or not path.is_dir():
        kept = ", ".join(sorted(item.name for item in run.adapters.glob("*") if item.is_dir()))
        cure = f"name a stage that was kept: {kept}" if kept else "train first: no stage was kept yet"
        raise RunError(f"has no adapters '{stage}'", place=str(run.path), cure=cure)
    # A fully trained model does not need the one it was trained from, nor what was subtracted from it.
    run.check_files(path, *(() if recipe.adapter[name].method == "full" else (run.base,)))
    _check_recorded(path, run.recorded(path), run.path)


@dataclass(frozen=True, config=AS_WRITTEN)
class ExportedDirection:
    """`template.json` of an exported direction: how it translates, and what its folder has."""

    source: str
    target: str
    segments: Segments
    expansion: Expansion
    base_hash: str | None  # of the base that an adapter was trained on
    files: dict[str, str]  # SHA-256 of the files in the folder, except for the model card

    @property
    def direction(self) -> Direction:
        return Direction(self.source, self.target)


_EXPORTED = TypeAdapter(ExportedDirection)


def write_template(folder: Path, exported: ExportedDirection) -> None:
    integrity.write_hashed_json(folder / TEMPLATE, asdict(exported))


def read_template(folder: Path) -> ExportedDirection:
    """Read `template.json` of an exported direction, and refuse one that is not as it was written."""
    try:
        exported = integrity.validated(_EXPORTED, integrity.read_hashed_json(folder / TEMPLATE), TEMPLATE)
        if any(parse_code(code) is None for code in (exported.source, exported.target)):
            raise ValueError(f"{exported.source!r} and {exported.target!r} are no language codes")
        return exported
    except (OSError, ValueError) as error:
        problem = f"not an exported direction that can be read: {first_line(error)}"
        raise RunError(problem, place=str(folder), cure="export it again") from error


def load_exported(folder: Path, device: str, base: str | None = None) -> Translator:
    """Load an exported direction: an adapter with its base, or a model.

    Args:
        base: folder, GGUF file, `pypi:...` or hub id of the base of an adapter. Where None, the one that the adapter
            names is taken, from this machine alone: whoever made the adapter may not decide what is downloaded.
    """
    exported = read_template(folder)
    if problem := integrity.first_damaged(exported.files, folder):
        raise RunError(f"is not as it was exported: {problem}", place=str(folder), cure="export it again")
    _check_recorded(folder, exported.files, folder)
    spec, adapter = _spec_of_exported(folder, base)
    spec = spec.model_copy(update={"device": device})
    name, start = exported.direction.name, Path.cwd() if base else folder
    try:
        with nullcontext() if base else offline():
            model = direction_model.load({name: spec}, {name: adapter}, start, one_base=False, seed=0)[name]
    except SourceError as error:
        if base or adapter.method == "full":
            raise
        problem = f"its base model {spec.path} cannot be loaded: {error.problem}"
        cure = f"name it with --base, as a folder or with leave to download it: --base '{spec.path}'"
        raise RunError(problem, place=str(folder), cure=cure) from error
    if adapter.method != "full" and exported.base_hash not in {None, model.base.digest}:
        hashes = f"its hash is {exported.base_hash}, that of {spec.path} {model.base.digest}"
        cure = "name the right one with --base, or export with --merged"
        raise RunError(f"its base model is another one: {hashes}", place=str(folder), cure=cure)
    template = translator.checked_template(model, exported.segments)
    return Translator(exported.direction, model, template, template, expansion=exported.expansion)


def _check_recorded(folder: Path, hashes: Mapping[str, str], start: Path) -> None:
    """Refuse files that loading a model or an adapter would read, and that were not there when it was saved."""
    is_adapter = (folder / adapters.CONFIG).exists()
    names = (adapters.CONFIG, adapters.WEIGHTS) if is_adapter else find_files(str(folder.absolute()), None).paths
    for name in names:
        if (path := (folder / name).relative_to(start).as_posix()) not in hashes:
            # A process that is killed after it has written a file, and before it has recorded it, leaves this too.
            cure = "if the run did not finish, `roundtrip train ... --resume` records it; else remove that file"
            raise RunError(f"is damaged: {path} is not recorded", place=str(start), cure=cure)


def _spec_of_exported(folder: Path, base: str | None) -> tuple[Model, Adapter]:
    """Return how an exported adapter with its base, or an exported model, is loaded."""
    if not (folder / adapters.CONFIG).exists():
        config = read_json(folder / "config.json")
        # float32 holds all that float16 does, and bfloat16 does not.
        is_exact = config.get("dtype", config.get("torch_dtype")) in ("float32", "float16")
        return Model(path=str(folder.resolve()), dtype="float32" if is_exact else "auto"), Adapter(method="full")
    config = adapters.read_config(folder)
    method: Any = ("rs" if config.get("use_rslora") else "") + ("dora" if config.get("use_dora") else "lora")
    targets = config.get("target_modules") or ()
    targets = targets if isinstance(targets, str) else tuple(targets)
    settings: dict[str, Any] = {"rank": config["r"], "alpha": config["lora_alpha"], "targets": targets}
    try:
        adapter = Adapter(method=method, init=str(folder.absolute()), **settings)
    except ValidationError as error:
        place = str(folder / adapters.CONFIG)
        raise ModelError(error.errors()[0]["msg"], place=place, cure="export it again") from error
    # An adapter has the precision of its base.
    is_exact = "F32" in read_dtypes(folder / adapters.WEIGHTS).values()
    named = config.get("base_model_name_or_path")
    path = base or named
    revision = config.get("revision") if path == named else None
    if not path or not targets:
        problem = f"its adapter_config.json names no {'target_modules' if path else 'base model'}"
        raise RunError(problem, place=str(folder), cure="name its base with --base, or export it again")
    return Model(path=path, revision=revision, dtype="float32" if is_exact else "auto"), adapter


@report_system_errors()
def load_trained(run_dir: Path | str, direction: str, *, stage: str = BEST, device: str = "auto") -> Translator:
    """Load one direction of a run for use.

    Args:
        run_dir: folder of the run.
        direction: such as `en-es`.
        stage: `best`, which is the direction's own, or `parallel`, `round-1`, ...
        device: `auto` takes CUDA where there is a GPU.

    Raises:
        RunError: not a run, no such direction or stage, or another base than it was trained on.

    Example:
        >>> translator = load_trained(run_dir, "en-es")
        >>> len(translator.translate(["the dog sleeps"]).texts)
        1
    """
    run = RunFolder(Path(run_dir))
    return load(run, direction_named(run, direction), stage, device)
