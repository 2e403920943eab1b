"""Loading what a run has trained, for use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from roundtrip.backtranslation.run_folder import BEST, RunFolder
from roundtrip.engine import translator
from roundtrip.engine.translator import Translator
from roundtrip.recipe.plan import Direction, directions
from roundtrip.runtime.errors import RunError
from roundtrip.tokens.prompt_segments import Segments


def direction_into(run: RunFolder, target: str) -> Direction:
    """Return the direction of a run into a language.

    Raises:
        RunError: not a run, or of other languages.
    """
    recipe, _ = run.recipe()
    found = [direction for direction in directions(recipe) if direction.target == target]
    if not found:
        raise RunError(f"translates between {' and '.join(recipe.languages)}, not into '{target}'", place=str(run.path))
    return found[0]


def load(
    run: RunFolder,
    direction: Direction,
    stage: str = BEST,
    device: str = "auto",
    changes: Mapping[str, object] | None = None,
) -> Translator:
    """Load one direction of a run as it was at the end of a stage.

    Args:
        changes: further keys of `[model]` that are other here than in training.

    Raises:
        RunError: not a run, no such stage, or another base than it was trained on.
    """
    recipe, folder = run.recipe()
    path = run.adapters / stage / direction.name
    if not path.is_dir():
        kept = sorted(item.name for item in run.adapters.glob("*") if item.is_dir())
        raise RunError(
            f"has no adapters '{stage}'",
            place=str(run.path),
            cure=f"kept: {', '.join(kept) or 'none yet, train first'}",
        )
    segments = {name: Segments.from_dict(value) for name, value in run.facts()["segments"].items()}
    # What served training only need not be there: the attention, and the device it ran on.
    here = {"device": device, "attention": "auto", "use_liger_kernel": False, "gradient_checkpointing": False} | dict(
        changes or {}
    )
    expansion = run.facts().get("expansion", {}).get(direction.name, 1.0)
    if recipe.adapter[direction.name].method == "full":
        # A whole model has no need of the one it began as.
        here |= {"path": str(path.resolve()), "from_scratch": None, "revision": None}
        return replace(translator.load_one(recipe, direction, folder, segments, here), expansion=expansion)
    one = replace(translator.load_one(recipe, direction, folder, segments, here), expansion=expansion)
    run.check_loaded("base_hash", {direction.name: one.base.digest}, "base model")
    one.direction_model.restore(path)
    return one
