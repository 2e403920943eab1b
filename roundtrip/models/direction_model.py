"""What one direction trains: an adapter on a base that may be shared, or all weights of a model of its own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roundtrip.models import adapters, attention, base_model, dropout, forward, liger, pissa_olora, prepacked_linear
from roundtrip.models.base_model import LoadedModel
from roundtrip.models.pissa_olora import ResidualBase
from roundtrip.recipe.schema import Adapter, Model
from roundtrip.runtime.errors import ModelError, first_line
from roundtrip.tokens.batching import Batch, TokenDataset, collate, pack
from roundtrip.tokens.prompt_template import TokenRow

# How much the logits of a row may differ from those of the same row in another batch, relative to the largest;
# bfloat16 has three digits.
_ROUNDING = 0.05


@dataclass(frozen=True)
class DirectionModel:
    """One direction's weights."""

    name: str  # of the direction, and of its adapter
    spec: Model
    adapter: Adapter
    base: LoadedModel
    # What is trained: a PEFT model over `base.model`, or `base.model` itself.
    model: Any
    # A plain copy to generate from, written anew before each use; None where the model itself generates.
    merged_copy: Any | None
    # What the adapter has subtracted from its base, where the method does so.
    residual: ResidualBase | None = field(default=None, repr=False)

    @property
    def trains_all_weights(self) -> bool:
        return self.adapter.method == "full"

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name, in a fixed order."""
        if self.trains_all_weights:
            return dict(sorted(self.model.named_parameters()))
        return adapters.parameters(self.model, self.name)

    @contextmanager
    def training(self, on_fallback: Callable[[str], None] = lambda message: None) -> Iterator[bool]:
        """Make this direction's parameters alone trainable, in train mode; yields whether rows are packed.

        Args:
            on_fallback: called with the attention that is not used, and why, where `auto` has to take another.
        """
        is_packed = self._choose_attention(on_fallback)
        if self.trains_all_weights:
            self.model.requires_grad_(True).train()
        else:
            adapters.activate(self.model, self.name, train=True)
        try:
            yield is_packed
        finally:
            adapters.freeze(self.model)

    def _choose_attention(self, on_fallback: Callable[[str], None]) -> bool:
        """Choose the best attention that reads the bounds of packed rows, else that for padded ones; return which."""
        _choose_padded(self.base, self.spec)
        names = attention.candidates(self.spec.attention, self.base.device, self.base.attention)
        reads_bounds = [name for name in names if name in attention.READ_BOUNDS]
        probe = TokenDataset.of([self._probe_rows[0]], self.base.device)
        alone: torch.Tensor | None = None
        for name in reads_bounds:
            reason = "in this model packed rows would see each other"
            try:
                if alone is None:
                    alone = self._logits(collate(probe, [0], self.base.pad_id))
                attention.choose(self.base.model, name)
                if self._keeps_rows_apart(alone):
                    return True
            except Exception as error:
                # On an attention that it was not made for a model may fail in any way; the next one is tried.
                if self.spec.attention != "auto":
                    raise attention.unusable(name, error) from error
                reason = first_line(error)
            on_fallback(f"attention '{name}' is not used: {reason}")
        _choose_padded(self.base, self.spec)
        return False

    @property
    def _probe_rows(self) -> list[TokenRow]:
        """A row, and two of the same length that it is packed behind to try whether rows are kept apart."""
        tokens = forward.probe_tokens(self.base.model, 5)
        return [TokenRow([tokens[i] for i in row], 1) for row in ((1, 3, 0), (0, 1, 2, 3), (3, 2, 1, 0))]

    def _keeps_rows_apart(self, alone: Any) -> bool:
        """Return whether a packed row has the logits that it has alone: a model may ignore bounds without an error."""
        packed, (probe, *others) = [], self._probe_rows
        for first in others:
            rows = TokenDataset.of([first, probe], self.base.device)
            packed.append(self._logits(pack(rows, [0, 1]))[len(first.ids) :])
        # Some kernels have no dropout of attention weights, and refuse it in train mode only.
        self._logits(pack(rows, [0, 1]), train=True)
        is_close = (packed[0] - alone).abs().max() <= _ROUNDING * alone.abs().max()
        return bool(torch.equal(*packed) and is_close)

    @torch.no_grad()
    def _logits(self, batch: Batch, *, train: bool = False) -> torch.Tensor:
        self.model.train(train)
        inputs = forward.supported(self.model, use_cache=False, **batch.inputs)
        return self.model(input_ids=batch.ids_BT, **inputs).logits[0]

    @contextmanager
    def generating(self, *, use_adapter: bool = True) -> Iterator[nn.Module]:
        """Yield a model in eval mode with the current weights, or of the bare base, if a direction has an adapter."""
        if self.merged_copy is not None:
            self._write_merged(self.name if use_adapter else None)
            yield self.merged_copy
            return
        attention.choose(self.base.model, self.base.attention)
        if self.trains_all_weights:
            yield self.model
            return
        adapters.activate(self.model, self.name, train=False)
        try:
            with nullcontext() if use_adapter else self.model.disable_adapter():
                yield self.base.model
        finally:
            adapters.freeze(self.model)

    def merged(self, dtype: str | None) -> Any:
        """Turn the model that `generating` yields into a plain one of a precision (None: the base's); return it."""
        wanted = self.base.dtype if dtype is None else getattr(torch, dtype)
        if self.trains_all_weights:
            return self.model.to(wanted)
        assert self.merged_copy is not None, "a quantized base has no copy to write into"
        prepacked_linear.restore_linear(self.merged_copy)
        self.merged_copy.to(wanted)
        self._write_merged(self.name)
        return self.merged_copy

    def _write_merged(self, name: str | None) -> None:
        if self.residual is None:
            adapters.write_merged(self.merged_copy, self.model, name)
        else:
            pissa_olora.write_merged_residual(self.merged_copy, self.model, name, self.residual)

    @property
    def _initial_adapter(self) -> adapters.Tensors | None:
        return None if self.residual is None else self.residual.initial_adapter

    def export(self, folder: Path) -> None:
        """Save the direction as it is: a PEFT folder, or a model folder with its tokenizer."""
        if self.trains_all_weights:
            self.model.save_pretrained(folder)
            self.base.tokenizer.save_pretrained(folder)
        else:
            adapters.export(self.model, self.name, folder, self.base.location, self._initial_adapter)

    def restore(self, folder: Path | None) -> None:
        """Load what `export` saved; None restores what was loaded first, where all weights are trained."""
        if self.trains_all_weights:
            base_model.reload_weights(self.spec, self.base, folder)
        elif folder is not None:
            adapters.load(self.model, self.name, adapters.read(folder), self._initial_adapter)


def frozen_hashes(models: Mapping[str, DirectionModel]) -> dict[str, str]:
    """Return hashes of the weights that must not change, by direction; equal before and after a run."""
    weights_hash = cache(base_model.weights_hash)  # of a base that both share, once
    return {name: weights_hash(model.model) for name, model in models.items() if not model.trains_all_weights}


def load(
    models: Mapping[str, Model],
    settings: Mapping[str, Adapter],
    folder: Path,
    one_base: bool = False,
    seed: int = 0,
    residual_folder: Path | None = None,
) -> dict[str, DirectionModel]:
    """Load what each direction trains, on one base or each on its own.

    Args:
        folder: where relative paths of the recipe start.
        residual_folder: keeps the initial adapters that were subtracted from a base, see `pissa_olora`.
    """
    directions: dict[str, DirectionModel] = {}
    settings = {
        name: each.model_copy(update={"init": each.init and str(folder / Path(each.init).expanduser())})
        for name, each in settings.items()
    }
    for names in [list(models)] if one_base else [[name] for name in models]:
        spec = models[names[0]]
        device = base_model.choose_device(spec.device)
        # PEFT computes DoRA's norms on the GPU, layer by layer, only while the base is in host memory.
        on_host = any(settings[name].ephemeral_gpu_offload for name in names)
        loaded = base_model.load(spec, folder, on_host=on_host)
        model: Any = loaded.model
        merged_copy: Any = None
        residual: dict[str, ResidualBase] = {}
        if with_adapter := {name: settings[name] for name in names if settings[name].method != "full"}:
            # A quantized base has no weights that a sum could be written into: it generates through the adapter.
            merged_copy = base_model.merged_copy_of(model, device) if spec.quantize == "none" else None
            subtracting = [name for name in with_adapter if settings[name].method in pissa_olora.METHODS]
            before = pissa_olora.linear_weights(model) if subtracting else {}
            model = adapters.add_adapters(model, with_adapter, seed)
            if on_host:
                model.to(device)
            for name in subtracting:
                path = residual_folder / f"{name}-start.safetensors" if residual_folder else None
                residual[name] = pissa_olora.subtract_from_base(model, name, before, path)
            for name, adapter in with_adapter.items():
                if adapter.init is not None:
                    adapters.init_from_folder(model, name, adapter, Path(adapter.init))
        elif settings[names[0]].dropout:
            dropout.add_dropout(model, settings[names[0]].dropout)
        for name in names:
            parts = (spec, settings[name], loaded, model, merged_copy, residual.get(name))
            directions[name] = DirectionModel(name, *parts)
        # So that what is impossible fails before any time is spent.
        _choose_padded(loaded, spec)
        if spec.use_liger_kernel:
            liger.apply_liger(loaded.model)
        if spec.gradient_checkpointing:
            base_model.checkpoint_activations(loaded.model)
    return directions


def _choose_padded(base: LoadedModel, spec: Model) -> None:
    """Choose the attention for padded rows; under `auto` a model that cannot change its own keeps it."""
    try:
        attention.choose(base.model, attention.candidates(spec.attention, base.device, base.attention)[-1])
    except ModelError:
        if spec.attention != "auto":
            raise
