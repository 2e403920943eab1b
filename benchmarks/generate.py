"""python -m benchmarks.generate: generation engines side by side, in tokens/s and as a share of the GEMM peak.

The quickstart's model and text, one process, variants in turns. `fixed`: prompts of one length and as many new tokens,
without stop tokens, so that only the engine itself is measured. `lines`: the dev lines as a run translates them, with
stop tokens and length limits. Variants:

- through the adapter: `generate` of transformers on the PEFT model, batches in file order: the usual way;
- transformers: `generate` on merged weights, batches by length;
- native: our loop, on a GPU also with CUDA graphs.

Shares are of the GEMM peak that the same process measures first, at 2 FLOP for each weight: `new` counts the generated
tokens, `done` those of the prompts too, which go through the model as well (except for the output layer). Writes
benchmarks/results/generate-NAME.json and .png.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import common
from roundtrip.backtranslation.dev_scoring import greedy_settings
from roundtrip.engine.generate import generate, generate_hf
from roundtrip.engine.request import GenerationRequest, StopRule
from roundtrip.engine.translator import Translator
from roundtrip.models import adapters, attention
from roundtrip.recipe.schema import Generate

# What each variant sets in [generate].
ENGINES: dict[str, dict[str, Any]] = {name: {"engine": name} for name in ("native", "transformers")}
ENGINES["CUDA graphs"] = {"engine": "native", "cuda_graphs": True}
BATCH_SIZE = 64


def through_adapter(
    forward: Translator, prompts: list[list[int]], limits: list[int], settings: Any, stop: StopRule, size: int
) -> list[Any]:
    """Return the new ids of each batch of `size` prompts, by `generate` of transformers on the PEFT model."""
    attention.choose(forward.base.model, forward.base.attention)
    adapters.activate(forward.direction_model.model, forward.direction.name, train=False)
    batches = [slice(start, start + size) for start in range(0, len(prompts), size)]
    requests = [GenerationRequest(prompts[b], limits[b], settings, stop, 0) for b in batches]
    return [generate_hf(forward.direction_model.model, request) for request in requests]


def fixed(forward: Translator, batch: int, length: int, engines: tuple[str, ...], turns: int) -> dict[str, float]:
    """Return tokens/s of each variant for a batch of prompts of one length and as many new tokens."""
    random = torch.Generator().manual_seed(1)
    prompts = torch.randint(1000, 20_000, (batch, length), generator=random).tolist()
    limits = [length - 1] * batch
    settings, stop = Generate(max_tokens_per_batch=10**9), StopRule([], pad_id=forward.base.pad_id)

    def by(engine: str) -> Callable[[], None]:
        def call() -> None:
            with forward.direction_model.generating() as model:
                chosen = settings.model_copy(update=ENGINES[engine])
                generate(model, GenerationRequest(prompts, limits, chosen, stop, 0))

        return call

    variants: dict[str, Callable[[], Any]] = {
        "through the adapter": lambda: through_adapter(forward, prompts, limits, settings, stop, batch)
    }
    variants |= {engine: by(engine) for engine in engines}
    return {name: batch * length / seconds for name, seconds in common.best(variants, turns).items()}


def lines(
    forward: Translator, recipe: Any, sources: list[str], engines: tuple[str, ...], turns: int
) -> dict[str, float]:
    """Return the seconds in which each variant translates lines."""
    settings = greedy_settings(recipe)
    prompts = forward.template.prompts(sources)
    limits = [forward.num_needed(prompt, settings) - len(prompt) for prompt in prompts]
    segments = forward.template.segments
    stop = StopRule(segments.stop_ids, segments.break_ids, forward.base.pad_id)

    def usual() -> None:
        for ids_BN in through_adapter(forward, prompts, limits, settings, stop, BATCH_SIZE):
            forward.base.tokenizer.batch_decode(ids_BN, skip_special_tokens=True)

    def by(engine: str) -> Callable[[], Any]:
        return lambda: forward.translate(sources, settings.model_copy(update=ENGINES[engine]))

    return common.best({"through the adapter": usual} | {engine: by(engine) for engine in engines}, turns)


def fixed_cases(forward: Translator, document: Mapping[str, Any], asked: Any) -> list[dict[str, Any]]:
    """Return rates and shares of the GEMM peak for each length and batch size."""
    per_weight = 2 / document["gemm_flops"]
    cases = []
    for length in asked.lengths:
        for batch in asked.batches:
            rates = fixed(forward, batch, length, tuple(asked.engines), asked.turns)
            new = {name: rate * document["weights"] * per_weight for name, rate in rates.items()}
            # As many tokens of prompts, of which the last one's logits are needed.
            done = {name: common.needed_products(document, 2 * rate, rate) * per_weight for name, rate in rates.items()}
            cases.append({"batch": batch, "length": length, "tokens_per_second": rates, "new": new, "done": done})
    return cases


def show(document: Mapping[str, Any], console: Console) -> None:
    variants = list(document["fixed"][0]["tokens_per_second"])
    rows = []
    for case in document["fixed"]:
        rates, new, done = case["tokens_per_second"], case["new"], case["done"]
        cells = [f"{rates[v]:,.0f} ({new[v]:.0%}, {done[v]:.0%})" if v in rates else "" for v in variants]
        rows.append([f"{case['batch']} x {case['length']}", *cells])
    title = "tokens/s (share of the GEMM peak: new, done)"
    common.print_table(console, title, ["rows x tokens", *variants], rows)
    console.print("dev lines, seconds: " + ", ".join(f"{k} {v:.1f}" for k, v in document["lines"].items()))


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw tokens/s over the batch size, one panel for each length."""
    lengths = sorted({case["length"] for case in document["fixed"]})
    title = document["hardware"]["processor"]
    with common.plot(path, (5 * len(lengths), 4), title=title, ncols=len(lengths), sharey=True) as axes:
        for panel, length in zip(axes[0], lengths, strict=True):
            cases = [case for case in document["fixed"] if case["length"] == length]
            for variant in cases[0]["tokens_per_second"]:
                points = [(case["batch"], case["tokens_per_second"][variant]) for case in cases]
                panel.plot(*zip(*points, strict=True), "-o", label=variant)
            panel.set(xscale="log", yscale="log", title=f"{length} + {length} tokens", xlabel="rows", ylabel="tokens/s")
            panel.grid(alpha=0.3)
            panel.legend(fontsize="small")


def main() -> None:
    parser = common.parser(__doc__, turns=2, device=True)
    parser.add_argument("--batches", nargs="+", type=int, default=(8, 64))
    parser.add_argument("--lengths", nargs="+", type=int, default=(32, 128))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, help="all, CUDA graphs only on a GPU")
    parser.add_argument("--lines", type=int, default=200, help="dev lines")
    asked = parser.parse_args()

    if asked.engines is None:
        asked.engines = [e for e in ENGINES if common.device_of(asked.device).type == "cuda" or e != "CUDA graphs"]
    loaded, translators = common.quickstart(asked.device)
    sources = [source for source, _ in common.corpora_of(loaded.recipe, loaded.folder).dev[: asked.lines]]
    forward = next(iter(translators.values()))
    document = common.model_provenance("generate", forward)
    document["fixed"] = fixed_cases(forward, document, asked)
    document["lines"] = lines(forward, loaded.recipe, sources, tuple(asked.engines), asked.turns)
    common.finish(document, common.result_path("generate", asked.name), show, draw)


if __name__ == "__main__":
    main()
