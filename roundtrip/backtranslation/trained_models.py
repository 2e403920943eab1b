"""Loading trained directions for use: from the folder of a run, or from what `export` wrote."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from roundtrip.backtranslation.run_folder import BEST, RunFolder
from roundtrip.engine import translator
from roundtrip.engine.translator import Translator
from roundtrip.models import adapters, direction_model
from roundtrip.recipe.language_codes import match_codes
from roundtrip.recipe.plan import Direction, directions
from roundtrip.recipe.schema import Adapter, Model
from roundtrip.runtime.errors import RunError, SourceError
from roundtrip.tokens.prompt_segments import Segments
from roundtrip.tokens.prompt_template import PromptTemplate


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
    manifest, name = run.manifest(), direction.name
    recipe, path = run.recipe(manifest), run.adapters / stage / name
    if not path.is_dir():
        kept = ", ".join(sorted(item.name for item in run.adapters.glob("*") if item.is_dir()))
        cure = f"name a stage that was kept: {kept}" if kept else "train first: no stage was kept yet"
        raise RunError(f"has no adapters '{stage}'", place=str(run.path), cure=cure)
    segments = {key: Segments.from_dict(value) for key, value in manifest.segments.items()}
    # What served training only need not be here: the attention, and the device it ran on.
    for_use = {"attention": "auto", "use_liger_kernel": False, "gradient_checkpointing": False}
    spec: dict[str, object] = {"device": device, **for_use} | ({"quantize": quantize} if quantize else {})
    if is_full := recipe.adapter[name].method == "full":
        # A fully trained model does not need the one it was trained from.
        spec |= {"path": str(path.resolve()), "from_scratch": None, "revision": None}
    loaded = translator.load_one(recipe, direction, Path(manifest.folder), segments, spec)
    loaded = replace(loaded, expansion=manifest.expansions.get(name, 1.0))
    if not is_full:
        manifest.check_loaded("base model", {name: loaded.base.digest})
        loaded.direction_model.restore(path)
    return loaded


def load_exported(folder: Path, device: str) -> Translator:
    """Load an exported direction: an adapter with the base that it names, or a model."""
    try:
        document = json.loads((folder / "template.json").read_text(encoding="utf-8"))
        expansion, base_hash = float(document.pop("expansion", 1.0)), document.pop("base_hash", None)
        direction = Direction(str(document.pop("source")), str(document.pop("target")))
        segments = Segments.from_dict(document)
        spec, adapter = _spec_of_exported(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"not an exported direction that can be read ({type(error).__name__}: {error})"
        raise RunError(problem, place=str(folder), cure="export it again") from error
    name, spec = direction.name, spec.model_copy(update={"device": device})
    try:
        model = direction_model.load({name: spec}, {name: adapter}, folder, one_base=False, seed=0)[name]
    except SourceError as error:
        cure = "name its folder as base_model_name_or_path in adapter_config.json there, or export with --merged"
        raise RunError(f"its base model cannot be loaded: {error.problem}", place=str(folder), cure=cure) from error
    if adapter.method != "full":
        if base_hash not in {None, model.base.digest}:
            problem = f"its base model is another one: its hash is {base_hash}, that of {spec.path} {model.base.digest}"
            raise RunError(problem, place=str(folder), cure="restore that model, or export with --merged")
        model.restore(folder)
    template = PromptTemplate(model.base.tokenizer, segments)
    return Translator(direction, model, template, template, expansion=expansion)


def _spec_of_exported(folder: Path) -> tuple[Model, Adapter]:
    """Return how an exported adapter with its base, or an exported model, is loaded."""
    if not (folder / adapters.CONFIG).exists():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        # float32 holds all that float16 does, and bfloat16 does not.
        is_exact = config.get("dtype", config.get("torch_dtype")) in {"float32", "float16"}
        return Model(path=str(folder.resolve()), dtype="float32" if is_exact else "auto"), Adapter(method="full")
    config = json.loads((folder / adapters.CONFIG).read_text(encoding="utf-8"))
    method: Any = ("rs" if config["use_rslora"] else "") + ("dora" if config["use_dora"] else "lora")
    targets = config["target_modules"]
    targets = targets if isinstance(targets, str) else tuple(targets)
    adapter = Adapter(method=method, rank=config["r"], alpha=config["lora_alpha"], targets=targets)
    # An adapter has the precision of its base.
    is_exact = any(tensor.dtype == torch.float32 for tensor in adapters.read(folder).values())
    path, revision = config["base_model_name_or_path"], config.get("revision")
    return Model(path=path, revision=revision, dtype="float32" if is_exact else "auto"), adapter


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
