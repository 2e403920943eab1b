"""What `export` wrote, loaded again for use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from roundtrip.engine.translator import DirectionTemplates, Translator
from roundtrip.models import adapters, direction_model
from roundtrip.recipe.plan import Direction
from roundtrip.recipe.schema import Adapter, Model
from roundtrip.runtime.errors import RunError, SourceError
from roundtrip.tokens.prompt_segments import Segments
from roundtrip.tokens.prompt_template import PromptTemplate

# By whether it is DoRA, and whether it is scaled as rsLoRA is.
_METHODS: dict[tuple[bool, bool], Any] = {
    (False, False): "lora",
    (False, True): "rslora",
    (True, False): "dora",
    (True, True): "rsdora",
}


def load(folder: Path, direction: Direction, device: str) -> Translator:
    """Load an exported direction: an adapter with the base that it names, or a model.

    Raises:
        RunError: something of it is not there, or broken.
        ModelError, SourceError: the model cannot be loaded.
    """
    try:
        facts = json.loads((folder / "template.json").read_text(encoding="utf-8"))
        expansion = float(facts.get("expansion", 1.0))
        segments = Segments.from_dict({k: value for k, value in facts.items() if k not in {"direction", "expansion"}})
        spec, adapter = _adapter(folder, device) if (folder / adapters.CONFIG).exists() else _model(folder, device)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"not an exported direction that can be read ({type(error).__name__}: {error})",
            place=str(folder),
            cure="export it again",
        ) from error
    try:
        found = direction_model.load({direction.name: spec}, {direction.name: adapter}, folder, one_base=False, seed=0)
    except SourceError as error:
        raise RunError(
            f"the model under it cannot be had: {error.problem}",
            place=str(folder),
            cure="bring it back, or export with --merged",
        ) from error
    one = found[direction.name]
    if not one.trains_all_weights:
        one.restore(folder)
    template = PromptTemplate(one.base.tokenizer, segments)
    return Translator(direction, one, DirectionTemplates(template, template), expansion=expansion)


def _adapter(folder: Path, device: str) -> tuple[Model, Adapter]:
    config = json.loads((folder / adapters.CONFIG).read_text(encoding="utf-8"))
    targets = config["target_modules"]
    adapter = Adapter(
        method=_METHODS[config["use_dora"], config["use_rslora"]],
        rank=config["r"],
        alpha=config["lora_alpha"],
        targets=targets if isinstance(targets, str) else tuple(targets),
    )
    # They have the precision of the base.
    exact = any(one.dtype == torch.float32 for one in adapters.read(folder).values())
    return Model(path=config["base_model_name_or_path"], device=device, dtype="float32" if exact else "auto"), adapter


def _model(folder: Path, device: str) -> tuple[Model, Adapter]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # float32 holds all that float16 does, and bfloat16 does not.
    exact = config.get("dtype", config.get("torch_dtype")) in {"float32", "float16"}
    spec = Model(path=str(folder.resolve()), device=device, dtype="float32" if exact else "auto")
    return spec, Adapter(method="full")
