"""What one direction learns with: an adapter on a base that may be shared, or all weights of a model of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roundtrip.models import adapters, attention, liger, prepacked_linear, residual_init
from roundtrip.models import base_model as bases
from roundtrip.models.base_model import LoadedModel
from roundtrip.models.residual_init import ResidualBase
from roundtrip.recipe.schema import Adapter, Model
from roundtrip.runtime.errors import ModelError
from roundtrip.tokens.batching import Batch, TokenDataset, collate, pack
from roundtrip.tokens.prompt_template import TokenRow

# How far the logits of a row may be from those of the same row in another batch, as a share of the largest; bfloat16
# has three digits.
_ROUNDING = 0.05
# The row that is tried behind others.
_SECOND = TokenRow([2, 4, 1], 1)


@dataclass(frozen=True)
class DirectionModel:
    """One direction's weights.

    Attributes:
        name: of the direction, and of its adapter.
        spec, adapter: of the recipe.
        base: the model as loaded; with adapters its layers carry them.
        model: what is trained: a PEFT model over `base.model`, or `base.model` itself.
        scratch: a plain copy to generate from, written anew before each use; None where the model itself generates.
        moved: what the adapter has taken out of its base, where the method does so.
    """

    name: str
    spec: Model
    adapter: Adapter
    base: LoadedModel
    model: Any
    merged_copy: Any | None
    residual: ResidualBase | None = field(default=None, repr=False)

    @property
    def whole(self) -> bool:
        """Whether all weights learn."""
        return self.adapter.method == "full"

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what learns, by name, in a fixed order."""
        if self.whole:
            return dict(sorted(self.model.named_parameters()))
        return adapters.parameters(self.model, self.name)

    @contextmanager
    def training(self, packing: str = "never") -> Iterator[bool]:
        """Let this direction alone learn; dropout is on.

        Args:
            packing: of the recipe. `auto` packs where the attention reads the bounds of rows; others take a mask of all
                tokens by all tokens, which costs more than padding does.

        Yields:
            Whether rows go packed.

        Raises:
            ModelError: `always` is asked for and rows would see each other.
        """
        is_packed = self._choose_attention(packing)
        if self.whole:
            self.model.requires_grad_(True).train()
        else:
            adapters.activate(self.model, self.name, train=True)
        try:
            yield is_packed
        finally:
            adapters.freeze(self.model)

    def _choose_attention(self, packing: str) -> bool:
        """Take the best attention for packed rows, else that for padded ones; return whether rows go packed."""
        names = attention.candidates(self.spec.attention, self.base.device)
        _choose_padded(self.base.model, self.spec)
        if packing == "never":
            return False
        alone = self._alone()
        for name in names:
            if packing == "always" or name in attention.READ_BOUNDS:
                try:
                    attention.choose(self.base.model, name)
                    if self._keeps_apart(alone):
                        return True
                except Exception:
                    # On an attention that it was not made for a model may fail in any way; another one is tried.
                    if self.spec.attention != "auto":
                        raise
        if packing == "always":
            raise ModelError(
                f"{self.name}: in this model packed rows see each other",
                place="train.packing",
                cure='set it to "auto" or "never"',
            )
        _choose_padded(self.base.model, self.spec)
        return False

    def _alone(self) -> torch.Tensor:
        """Return what the model says to a row by itself."""
        return self._logits(collate(TokenDataset.of([_SECOND], self.base.device), [0], self.base.pad_id))

    def _keeps_apart(self, alone: torch.Tensor) -> bool:
        """Return whether the second of two packed rows comes out as it does alone, whatever the first one is.

        A model may take no notice of places and bounds, and would not say so.
        """
        found = []
        for first in ([1, 2, 3, 4], [4, 3, 2, 1]):
            table = TokenDataset.of([TokenRow(first, 1), _SECOND], self.base.device)
            found.append(self._logits(pack(table, [0, 1]))[len(first) :])
        near = (found[0] - alone).abs().max() <= _ROUNDING * alone.abs().max()
        return bool(torch.equal(*found) and near)

    @torch.no_grad()
    def _logits(self, batch: Batch) -> torch.Tensor:
        """Return what the model says to the first row of a batch, without dropout."""
        training = self.model.training
        self.model.eval()
        found: torch.Tensor = self.model(input_ids=batch.ids_BT, use_cache=False, **batch.inputs).logits[0]
        self.model.train(training)
        return found

    @contextmanager
    def generating(self, *, adapted: bool = True) -> Iterator[nn.Module]:
        """Give a model in eval mode whose weights are this direction's as they are now.

        Args:
            adapted: False asks the bare base; where all weights learn, put these back first (`restore`).
        """
        if self.merged_copy is not None:
            self._write(self.merged_copy, adapted=adapted)
            yield self.merged_copy
            return
        attention.choose(self.base.model, attention.GENERATING)
        if self.whole:
            yield self.model
            return
        adapters.activate(self.model, self.name, train=False)
        if not adapted:
            self.model.base_model.disable_adapter_layers()
        try:
            yield self.base.model
        finally:
            self.model.base_model.enable_adapter_layers()
            adapters.freeze(self.model)

    def merged(self, dtype: str | None) -> Any:
        """Return a plain model with these weights, the sum of base and adapter rounded once.

        It takes the place of what `generating` gives.

        Args:
            dtype: `float32`, `bfloat16` or `float16`; the base's where None.
        """
        wanted = self.base.dtype if dtype is None else getattr(torch, dtype)
        if self.whole:
            return self.model.to(wanted)
        assert self.merged_copy is not None, "a quantized base has no copy to write into"
        model = self.merged_copy
        prepacked_linear.restore_linear(model)
        model.to(wanted)
        self._write(model, adapted=True)
        return model

    def _write(self, merged_copy: nn.Module, *, adapted: bool) -> None:
        if self.residual is None:
            adapters.write_merged(merged_copy, self.model, self.name if adapted else None)
        else:
            residual_init.write_merged_residual(merged_copy, self.model, self.name, self.residual, adapted=adapted)

    @property
    def _began(self) -> Mapping[str, torch.Tensor] | None:
        return None if self.residual is None else self.residual.initial_adapter

    def export(self, folder: Path) -> None:
        """Save the direction as it is: a PEFT folder, or a model folder with its tokenizer."""
        if not self.whole:
            adapters.export(self.model, self.name, folder, self.base.location, self._began)
            return
        self.model.save_pretrained(folder)
        self.base.tokenizer.save_pretrained(folder)

    def restore(self, folder: Path | None) -> None:
        """Take up what `export` saved; None brings back what was loaded, where all weights learn.

        Raises:
            ModelError: there is nothing, it is broken, or it is of another model.
        """
        if self.whole:
            bases.reload_weights(self.spec, self.base, folder)
        elif folder is not None:
            adapters.load(self.model, self.name, adapters.read(folder), self._began)


def frozen_hashes(learners: Mapping[str, DirectionModel]) -> dict[str, str]:
    """Return hashes of the weights that must not change, by direction; equal before and after a run."""
    found: dict[int, str] = {}
    hashes = {}
    for name, learner in learners.items():
        if not learner.whole:
            key = id(learner.base.model)
            if key not in found:
                found[key] = bases.weights_hash(learner.model)
            hashes[name] = found[key]
    return hashes


def load(
    models: Mapping[str, Model],
    recipes: Mapping[str, Adapter],
    folder: Path,
    *,
    one_base: bool,
    seed: int,
    starts: Path | None = None,
) -> dict[str, DirectionModel]:
    """Load what both directions learn with.

    Args:
        models, recipes: by direction.
        folder: where relative paths of the recipe start.
        one_base: both directions have adapters on one base, which is loaded once.
        starts: folder for what adapters begin with, see `moving`; None keeps nothing.

    Raises:
        SourceError, ModelError: something in `[model]` or `[adapter]` cannot be had.
    """
    if one_base:
        loaded = bases.load(next(iter(models.values())), folder)
        return _adapted(models, recipes, loaded, folder, seed, starts)
    found: dict[str, DirectionModel] = {}
    for name, spec in models.items():
        loaded = bases.load(spec, folder)
        if recipes[name].method == "full":
            _prepare(loaded.model, spec)
            found[name] = DirectionModel(name, spec, recipes[name], loaded, loaded.model, None)
        else:
            found |= _adapted({name: spec}, {name: recipes[name]}, loaded, folder, seed, starts)
    return found


def _choose_padded(model: nn.Module, spec: Model) -> None:
    """Take the attention for padded rows; under `auto` a model that cannot change its own keeps it."""
    try:
        attention.choose(model, attention.candidates(spec.attention, next(model.parameters()).device)[-1])
    except ModelError:
        if spec.attention != "auto":
            raise


def _prepare(model: nn.Module, spec: Model) -> None:
    """Try what training will need, before any time is spent."""
    _choose_padded(model, spec)
    if spec.use_liger_kernel:
        liger.apply_liger(model)
    if spec.gradient_checkpointing:
        bases.checkpoint_activations(model)


def _adapted(
    models: Mapping[str, Model],
    recipes: Mapping[str, Adapter],
    loaded: LoadedModel,
    folder: Path,
    seed: int,
    starts: Path | None,
) -> dict[str, DirectionModel]:
    spec = next(iter(models.values()))
    # A quantized base has no weights that a sum could be written into: it generates through the adapter.
    merged_copy = bases.merged_copy_of(loaded.model) if spec.quantize == "none" and spec.merged_copy else None
    changing = [name for name, recipe in recipes.items() if recipe.method in residual_init.METHODS]
    before = residual_init.linear_weights(loaded.model) if changing else {}
    model = adapters.add_adapters(loaded.model, recipes, seed)
    residual = {
        name: residual_init.subtract_from_base(
            model, name, before, starts / f"{name}-start.safetensors" if starts else None
        )
        for name in changing
    }
    for name, recipe in recipes.items():
        if recipe.init is not None:
            adapters.init_from_folder(model, name, recipe, (folder / Path(recipe.init).expanduser()))
    _prepare(loaded.model, spec)
    return {
        name: DirectionModel(name, models[name], recipe, loaded, model, merged_copy, residual.get(name))
        for name, recipe in recipes.items()
    }
