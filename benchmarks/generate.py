"""python -m benchmarks.generate: engines side by side, in tokens/s and as a share of what the machine can multiply.

The quickstart's model and text, one process, roads in turns. `fixed`: prompts of one length and so many new tokens for
each, nothing stops, so that only the engine's own work counts. `lines`: the dev lines as a run translates them, with
stops and limits. Roads:

- through the adapter: `generate` of transformers on the PEFT model, batches as they come: the usual way;
- transformers: `generate` on merged weights, batches by length;
- native: our loop, on a GPU also with graphs.

Shares are of the GEMM peak that the same process measures first, at 2 FLOP for each weight: `new` counts the tokens
written, `done` those of the prompts too, which have to go through the model as well (but for the output layer). Writes
benchmarks/results/generate-NAME.json and .png.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Shown

from benchmarks.machine import RESULTS, best, done, facts, parser
from roundtrip.backtranslation.dev_scoring import greedy_settings
from roundtrip.data.corpora import prepare
from roundtrip.engine import translator
from roundtrip.engine.generate import generate
from roundtrip.engine.hf_backends import generate_hf
from roundtrip.engine.request import GenerationRequest, StopRule
from roundtrip.engine.translator import Translator
from roundtrip.models import adapters, attention
from roundtrip.recipe import loader
from roundtrip.recipe.schema import Generate

# What each changes in [generate].
ENGINES: dict[str, dict[str, Any]] = {name: {"engine": name} for name in ("native", "transformers")}
ENGINES["CUDA graphs"] = {"engine": "native", "cuda_graphs": True}


def fixed(one: Translator, batch: int, length: int, engines: tuple[str, ...], turns: int) -> dict[str, float]:
    """Return tokens/s of each road for a batch of prompts of one length and as many new tokens."""
    random = torch.Generator().manual_seed(1)
    prompts = torch.randint(1000, 20_000, (batch, length), generator=random).tolist()
    limits = [length - 1] * batch
    settings = Generate(max_tokens_per_batch=10**9)
    pad = one.base.pad_id

    def through_adapter() -> None:
        attention.choose(one.base.model, attention.GENERATING)
        adapters.activate(one.direction_model.model, one.direction.name, train=False)
        generate_hf(
            one.direction_model.model, GenerationRequest(prompts, limits, settings, StopRule([], pad_id=pad), 0)
        )

    def by(engine: Any) -> Callable[[], None]:
        def row_builder() -> None:
            with one.direction_model.generating() as model:
                chosen = settings.model_copy(update=ENGINES[engine])
                generate(model, GenerationRequest(prompts, limits, chosen, StopRule([], pad_id=pad), 0))

        return row_builder

    row_builders = {"through the adapter": through_adapter} | {engine: by(engine) for engine in engines}
    return {name: batch * length / seconds for name, seconds in best(row_builders, turns).items()}


def lines(one: Translator, recipe: Any, sources: list[str], engines: tuple[str, ...], turns: int) -> dict[str, float]:
    """Return seconds that each road takes to translate lines."""
    settings = greedy_settings(recipe)
    prompts = one.template.prompts(sources)
    limits = [one.num_needed(prompt, settings) - len(prompt) for prompt in prompts]
    segments = one.template.segments
    stop = StopRule(segments.stop_ids, segments.break_ids, one.base.pad_id)
    size = 64

    def through_adapter() -> None:
        attention.choose(one.base.model, attention.GENERATING)
        adapters.activate(one.direction_model.model, one.direction.name, train=False)
        for start in range(0, len(prompts), size):
            some = slice(start, start + size)
            request = GenerationRequest(prompts[some], limits[some], settings, stop, 0)
            one.base.tokenizer.batch_decode(
                generate_hf(one.direction_model.model, request).ids_BN, skip_special_tokens=True
            )

    def by(engine: Any) -> Callable[[], Any]:
        return lambda: one.translate(sources, settings.model_copy(update=ENGINES[engine]), 0)

    return best({"through the adapter": through_adapter} | {engine: by(engine) for engine in engines}, turns)


def show(document: Mapping[str, Any], console: Console) -> None:
    row_builders = list(document["fixed"][0]["tokens_per_second"])
    table = Shown(title="tokens/s (share of the GEMM peak: new, done)")
    table.add_column("rows x tokens")
    for row_builder in row_builders:
        table.add_column(row_builder, justify="right")
    for case in document["fixed"]:
        rates = case["tokens_per_second"]
        cells = [
            f"{rates[row_builder]:,.0f} ({case['new'][row_builder]:.0%}, {case['done'][row_builder]:.0%})"
            if row_builder in rates
            else ""
            for row_builder in row_builders
        ]
        table.add_row(f"{case['batch']} x {case['length']}", *cells)
    console.print(table)
    console.print("dev lines, seconds: " + ", ".join(f"{k} {v:.1f}" for k, v in document["lines"].items()))


def draw(document: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    lengths = sorted({case["length"] for case in document["fixed"]})
    figure, axes = pyplot.subplots(1, len(lengths), figsize=(5 * len(lengths), 4), sharey=True, squeeze=False)
    for panel, length in zip(axes[0], lengths, strict=True):
        cases = [case for case in document["fixed"] if case["length"] == length]
        for row_builder in cases[0]["tokens_per_second"]:
            points = [(case["batch"], case["tokens_per_second"][row_builder]) for case in cases]
            panel.plot(*zip(*points, strict=True), "-o", label=row_builder)
        panel.set(xscale="log", yscale="log", title=f"{length} + {length} tokens", xlabel="rows", ylabel="tokens/s")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    figure.suptitle(document["hardware"]["processor"], fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    asking = parser(__doc__, turns=2)
    asking.add_argument("--batches", nargs="+", type=int, default=(8, 64))
    asking.add_argument("--lengths", nargs="+", type=int, default=(32, 128))
    here = [name for name in ENGINES if torch.cuda.is_available() or name != "CUDA graphs"]
    asking.add_argument("--engines", nargs="+", default=here)
    asking.add_argument("--lines", type=int, default=200)
    asked = asking.parse_args()
    loaded = loader.load_recipe("quickstart", [f"model.device={asked.device}"])
    recipe = loaded.recipe
    with tempfile.TemporaryDirectory() as folder:
        corpora = prepare(recipe, loaded.folder, Path(folder), lambda text: None)
        sources = [source for source, _ in corpora.dev[: asked.lines]]
    one = next(iter(translator.load(recipe, loaded.folder).values()))
    document = facts("generate", one)
    per_weight = 2 / document["gemm_flops"]
    engines = tuple(asked.engines)
    cases = []
    for length in asked.lengths:
        for batch in asked.batches:
            rates = fixed(one, batch, length, engines, asked.turns)
            new = {name: rate * document["weights"] * per_weight for name, rate in rates.items()}
            # As many tokens of prompts, of which the last one's logits are wanted.
            whole = {name: done(document, 2 * rate, rate) * per_weight for name, rate in rates.items()}
            case = {"batch": batch, "length": length, "tokens_per_second": rates, "new": new, "done": whole}
            cases.append(case)
    document |= {"fixed": cases, "lines": lines(one, recipe, sources, engines, asked.turns)}
    path = RESULTS / f"generate-{asked.name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    show(document, Console())
    draw(document, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
