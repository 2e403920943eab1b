"""The training ladder: forward and backward with LoRA of rank 16 on a frozen base, where each rung changes one thing.

FLOPs of a pass, what has to be computed and nothing else: 4 for each weight of the layers and token (forward, and the
gradient of the input; the base is frozen), 4 for each weight of the output layer and label, 6 for each weight of the
adapter and token, and 6 * layers * width * T^2 for the causal attention of a row of T tokens. `mfu` is that over the
time and the card's peak by its data sheet, `of_gemm` over the peak of a matrix product measured in the same process;
`mfu_all_logits` counts the output layer at every token. Padding and what is computed twice do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear

from benchmarks import train
from benchmarks.gpu import measure, profiling, shapes
from benchmarks.gpu.measure import Figures, Part, Unsupported
from benchmarks.gpu.shapes import Shape
from roundtrip import Optimizer, StepSettings, TokenDataset, train_step
from roundtrip.engine.train_step import loss_sum
from roundtrip.models import adapters, attention, base_model, liger
from roundtrip.models.fused_lora import FusedLinear
from roundtrip.recipe.schema import Adapter, Train
from roundtrip.tokens.batching import Batch

DIRECTIONS = ("en-es", "es-en")
RANK = 16
BEST = "best"
# Operators of torch.nn.attention.varlen and of the kernel that it calls.
VARLEN_KERNELS = ("varlen_attn", "_flash_attention_forward")


@dataclass(frozen=True)
class Rung:
    """How a pass is computed.

    Attributes:
        attention: a name that `attention.choose` takes, or BEST: the fastest that packed rows were measured with.
        use_liger: Liger's kernels, from this rung on.
    """

    name: str
    attention: str = "sdpa"
    by_length: bool = True
    all_logits: bool = False
    float32_adapters: bool = False
    packed: bool = False
    use_liger: bool = False
    fused: bool = False
    whole_step: bool = False
    checkpointing: bool = False


# Liger's kernels cannot be removed from a model, nor checkpointing, so these come last.
LADDER = (
    Rung("padded sdpa, PEFT's defaults", by_length=False, all_logits=True, float32_adapters=True),
    Rung("+ rows of like length", all_logits=True, float32_adapters=True),
    Rung("+ logits at labels", float32_adapters=True),
    Rung("+ adapters as the base"),
    Rung("packed, torch varlen", attention=attention.VARLEN, packed=True),
    Rung("packed, FlashAttention 2", attention="flash_attention_2", packed=True),
    Rung("packed, FlashAttention 3", attention="flash_attention_3", packed=True),
    Rung("Liger, padded sdpa", use_liger=True),
    Rung("Liger, packed", attention=BEST, packed=True, use_liger=True),
    Rung("+ LoRA in one operation", attention=BEST, packed=True, fused=True),
    Rung("+ optimizer: a whole step", attention=BEST, packed=True, fused=True, whole_step=True),
    Rung("+ gradient checkpointing", attention=BEST, packed=True, fused=True, checkpointing=True),
)


@dataclass
class Setup:
    """A base with two adapters, and what was found out about it.

    Attributes:
        best_attention: of packed rows, and its tokens/s, by their length.
        tables: training rows by their length.
    """

    shape: Shape
    base: Any
    model: Any
    has_liger: bool = False
    has_checkpointing: bool = False
    best_attention: dict[int, tuple[str, float]] = field(default_factory=dict)
    tables: dict[int, TokenDataset] = field(default_factory=dict)

    @classmethod
    def of(cls, shape: Shape, device: torch.device) -> Setup:
        base = shapes.build_model(shape, device)
        model = adapters.add_adapters(base, dict.fromkeys(DIRECTIONS, Adapter(rank=RANK)), 1)
        tables = {length: shapes.random_rows(shape, length, device) for length in shape.sizes.row_lengths}
        return cls(shape, base, model, tables=tables)

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return adapters.parameters(self.model, DIRECTIONS[0])

    def prepare(self, rung: Rung, length: int) -> tuple[str, bool]:
        """Let the model compute as a rung says; return the name of its attention, and whether rows are packed."""
        name, packed = rung.attention, rung.packed
        if name == BEST:
            # Where no attention takes packed rows the rung is measured with padded ones.
            name, _ = self.best_attention.get(length, (attention.generating(type(self.base)), 0.0))
            packed = length in self.best_attention
        attention.choose(self.base, name)
        if rung.use_liger and not self.has_liger:
            liger.apply_liger(self.base)
            self.has_liger = True
        if rung.checkpointing and not self.has_checkpointing:
            base_model.checkpoint_activations(self.base)
            self.has_checkpointing = True
        for layer in self.model.modules():
            if isinstance(layer, FusedLinear | Linear):
                layer.__class__ = FusedLinear if rung.fused else Linear
        adapters.activate(self.model, DIRECTIONS[0], train=True)
        for parameter in self.parameters.values():
            parameter.data = parameter.data.to(torch.float32 if rung.float32_adapters else self.base.dtype)
        return name, packed


def batches_of(table: TokenDataset, rung: Rung, budget: int, packed: bool) -> list[Batch]:
    """Return the batches of a pass: packed, of rows of like length, or as many in file order."""
    if packed:
        return train.packed(table, budget)
    similar = train.by_length(table, 0, budget)
    return similar if rung.by_length else train.in_file_order(table, 0, -(-len(table) // len(similar)))


def pass_of(setup: Setup, rung: Rung, table: TokenDataset, packed: bool) -> Callable[[], None]:
    """Return a function that takes one pass, or one whole optimizer step, over a table."""
    budget = setup.shape.sizes.tokens_per_forward
    if rung.whole_step:
        optimizer = Optimizer(setup.parameters, Train(), 1000, Adapter(rank=RANK))
        settings = StepSettings(0, budget, fused_loss=setup.has_liger, packed=packed)
        return lambda: _ignore(train_step(setup.model, optimizer, table, range(len(table)), settings, seed=1))
    batches = batches_of(table, rung, budget, packed)

    def run() -> None:
        for batch in batches:
            if rung.all_logits:
                train.all_logits(setup.model, batch).backward()
            else:
                loss_sum(setup.model, batch, fused=setup.has_liger).backward()
        for parameter in setup.parameters.values():
            parameter.grad = None

    return run


def _ignore(value: object) -> None:
    pass


def flops(setup: Setup, table: TokenDataset, *, all_logits: bool) -> float:
    """Return the FLOPs of a pass, see the module."""
    shape, tokens = setup.shape, sum(table.sizes)
    labels = tokens if all_logits else tokens - sum(table.starts)
    layers = shapes.num_weights(setup.base) - shape.head_weights
    adapter = sum(parameter.numel() for parameter in setup.parameters.values())
    rows = sum(size * size for size in table.sizes)
    products = 4 * (layers * tokens + shape.head_weights * labels) + 6 * adapter * tokens
    return float(products + 6 * shape.num_layers * shape.hidden_size * rows)


def measure_rung(part: Part, setup: Setup, rung: Rung, length: int) -> Figures:
    """Return the figures of one rung on rows of one length."""
    name, packed = setup.prepare(rung, length)
    table = setup.tables[length]
    few = table.select(range(4))
    operators = profiling.attention_operators(pass_of(setup, rung, few, packed)) if not rung.whole_step else []
    is_varlen = any(name in operator for operator in operators for name in VARLEN_KERNELS)
    if part.on_gpu and rung.attention == attention.VARLEN and not is_varlen:
        raise Unsupported(f"the package computes packed rows by {operators}, not by torch.nn.attention.varlen")
    run = pass_of(setup, rung, table, packed)
    seconds, peak = measure.seconds_and_peak(part.device, run)
    tokens, peaks = sum(table.sizes), part.document["peaks"]
    if packed and rung.attention != BEST and tokens / seconds > setup.best_attention.get(length, ("", 0.0))[1]:
        setup.best_attention[length] = (rung.attention, tokens / seconds)
    needed = flops(setup, table, all_logits=False) / seconds
    every = flops(setup, table, all_logits=True) / seconds
    card = peaks["card_flops"]
    return {
        "tokens_per_second": tokens / seconds,
        "ms": 1000 * seconds,
        "mfu": needed / card if card else None,
        "mfu_all_logits": every / card if card else None,
        "of_gemm": needed / peaks["gemm_flops"],
        "peak_gib": peak,
        "attention": name + (" (packed)" if packed else " (padded)"),
        "operators": operators,
    }


def profile_of(setup: Setup, device: torch.device, length: int) -> Figures:
    """Return what takes most of a pass as the best rung computes it."""
    rung = next(rung for rung in LADDER if rung.fused)
    _, packed = setup.prepare(rung, length)
    return profiling.largest_kernels(device, pass_of(setup, rung, setup.tables[length], packed))


def measure_part(part: Part) -> None:
    """Measure the ladder for each shape: a rung on rows of every length, then the next one."""
    part.document["formula"] = " ".join((__doc__ or "").partition("\n\n")[2].split())
    for shape in part.shapes:
        setup = part.build(shape.name, partial(Setup.of, shape, part.device))
        if setup is None:
            continue
        lengths = shape.sizes.row_lengths
        for rung in LADDER:
            if rung.checkpointing:
                # Before checkpointing, which cannot be undone, and once the rungs above have their figures.
                profiled = partial(profile_of, setup, part.device, lengths[-1])
                part.rung(f"{shape.name}, profile of rows of {lengths[-1]}", "shares of the time", profiled)
            for length in lengths:
                measured = partial(measure_rung, part, setup, rung, length)
                part.rung(f"{shape.name}, rows of {length}", rung.name, measured)
        del setup, profiled, measured
