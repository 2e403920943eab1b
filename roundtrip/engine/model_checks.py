"""What is wrong with the models of a recipe, as far as it shows before text is read and weights are loaded."""

from functools import cache
from pathlib import Path
from typing import Any

from roundtrip.models import adapters, attention, base_model, liger
from roundtrip.models.base_model import choose_device
from roundtrip.recipe.plan import directions
from roundtrip.recipe.schema import Model, Recipe
from roundtrip.runtime.errors import ModelError
from roundtrip.tokens.prompt_segments import build_segments


def check_models(recipe: Recipe, folder: Path) -> None:
    """Refuse a device, package, model, adapter or template of a recipe that cannot be used.

    Args:
        folder: where relative paths of the recipe start.
    """
    check_devices(recipe)

    @cache
    def tokenizer_of(spec: Model) -> tuple[Any, tuple[int, ...]]:
        return base_model.load_tokenizer(spec, folder)

    for direction in directions(recipe):
        spec, adapter = recipe.model[direction.name], recipe.adapter[direction.name]
        if spec.from_scratch is None:
            tokenizer, stop_ids = tokenizer_of(spec)
            build_segments(tokenizer, recipe.template, direction.source, direction.target, stop_ids)
        if adapter.init is not None and adapter.method != "full":
            adapters.init_from_folder(None, direction.name, adapter, folder / Path(adapter.init).expanduser())


def check_devices(recipe: Recipe) -> None:
    """Refuse what a device of a recipe cannot do."""
    for name, spec in recipe.model.items():
        device = choose_device(spec.device).type
        # Seen with bitsandbytes 0.50: gradients of a batch of one row are lost there without an error.
        if spec.quantize != "none" and device == "cpu":
            problem = f"{name}: a base in {spec.quantize} cannot be trained on a CPU, whose kernels lose gradients"
            raise ModelError(problem, place="model.quantize", cure='set it to "none", or train on a GPU')
        if recipe.generate.cuda_graphs and device != "cuda":
            problem = f"{name}: CUDA graphs require a CUDA device; this model is on {device}"
            raise ModelError(problem, place="generate.cuda_graphs", cure="set it to false")
        if spec.use_liger_kernel:
            liger.require(device)
        if spec.attention == "flash_attention_2":
            attention.require_flash_attention()
