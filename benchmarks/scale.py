"""python -m benchmarks.scale: seconds a line and peak memory, from a thousand lines of text to ten million.

Each size runs in a process of its own. It prepares a corpus of so many monolingual lines
of each language (the quickstart's lines, numbered so that they differ), then takes rounds of it: lines read, encoded,
written for, judged, made into rows and put into steps. Up to --real lines SmolLM2 writes and learns; above that nobody
does, said in the result: the source of a line is the line itself, its words in reverse, so that only our own work is
left. Rounds end after --rounds lines, or --real-rounds where a model works, since a round costs what it costs however
long the corpus is, which is what the figures show. Memory: what preparing adds to the process, and the peak of the
whole process in the rounds, models and all. Writes benchmarks/results/scale-NAME.json and .png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Shown

from benchmarks.machine import RESULTS, forget_peak, parser, process_peak, processor
from roundtrip.backtranslation import examples, row_builders
from roundtrip.backtranslation.run_folder import versions
from roundtrip.backtranslation.token_rows import token_rows_of
from roundtrip.data.corpora import Corpora, prepare
from roundtrip.data.sampler import Cursor
from roundtrip.engine import translator
from roundtrip.engine.hypotheses import Hypotheses
from roundtrip.engine.request import Callbacks
from roundtrip.engine.train_step import StepSettings, train_step
from roundtrip.engine.translator import Translations, Translator
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe import loader
from roundtrip.recipe.plan import directions, phases
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime import memory
from roundtrip.runtime.event_log import EventLog
from roundtrip.tokens.batching import step_batches
from roundtrip.tokens.prompt_template import PromptTemplate

LINES_PER_ROUND = 500


def numbered(lines: list[str], number: int) -> Iterator[str]:
    """Yield so many different lines, of about the same length whatever the number."""
    for place in range(number):
        yield f"{lines[place % len(lines)]} {place:08d}"


def corpus(recipe: Recipe, folder: Path, number: int, base: Corpora) -> Path:
    """Write monolingual files of so many lines, the parallel parts, and a recipe that names them."""
    for code in recipe.languages:
        with (folder / f"mono.{code}").open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in numbered([line for (line,) in base.mono[code]], number))
    for part in ("train", "dev", "test"):
        rows = ["\t".join(row) for row in getattr(base, part)]
        (folder / f"{part}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    mono = ", ".join(f'{code} = "mono.{code}"' for code in recipe.languages)
    data = f'[data]\ntrain = "train.tsv"\ndev = "dev.tsv"\ntest = "test.tsv"\nmono = {{ {mono} }}\n'
    spec = next(iter(recipe.model.values()))
    text = f'languages = ["{recipe.languages[0]}", "{recipe.languages[1]}"]\n[model]\npath = "{spec.path}"\n'
    text += f'[template]\nkind = "plain"\nprompt = {json.dumps(recipe.template.prompt_text)}\n{data}'
    text += f"[rounds]\nmonolingual_lines = {min(LINES_PER_ROUND, number)}\n[filter]\nmax_length_ratio = 9.0\n"
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return folder / "recipe.toml"


def measure(number: int, *, real: bool, rounds: int) -> dict[str, Any]:
    """Return seconds of each part and the peak of this process."""
    shipped = loader.load_recipe("quickstart")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base").mkdir()
        base = prepare(shipped.recipe, shipped.folder, folder / "base", lambda text: None)
        loaded = loader.load_recipe(str(corpus(shipped.recipe, folder, number, base)))
        (folder / "stores").mkdir()
        memory.free_after_failure()
        forget_peak()
        before, start = memory.used_bytes(torch.device("cpu")), time.perf_counter()
        corpora = prepare(loaded.recipe, folder, folder / "stores", lambda text: None)
        preparing, added = time.perf_counter() - start, process_peak() - before
        both = translator.load(loaded.recipe, folder)
        forget_peak()
        seconds, lines = _rounds(loaded.recipe, corpora, both, min(number, rounds), real=real)
    return {
        "lines": number,
        "model": "SmolLM2-135M" if real else "stub: words in reverse",
        "prepared_lines": 2 * number,
        "prepare_seconds": preparing,
        "round_lines": lines,
        "round_seconds": seconds,
        "prepare_bytes": added,
        "round_bytes": process_peak(),
    }


def _rounds(
    recipe: Recipe, corpora: Corpora, both: Mapping[str, Translator], number: int, *, real: bool
) -> tuple[dict[str, float], int]:
    """Take rounds until so many lines of each language are read; the first is to warm up and does not count."""
    samples = {d.name: [tuple(row) for row in corpora.dev] for d in directions(recipe)}
    templates = {name: one.template for name, one in both.items()}
    devices = {name: one.base.device for name, one in both.items()}
    found, _ = row_builders.find(recipe, templates, templates, samples, devices, EventLog(Console(quiet=True)))  # type: ignore[arg-type]
    optimizers = {
        name: Optimizer(one.direction_model.parameters(), recipe.train, 10**6, recipe.adapter[name])
        for name, one in both.items()
    }
    pair = [phase for phase in phases(recipe, len(corpora.train)) if phase.round == 1]
    cursors: dict[str, Cursor] = {}
    seconds = dict.fromkeys(("read, write, judge", "rows", "learn"), 0.0)
    lines = 0
    num_rounds = max(1, number // recipe.rounds.monolingual_lines)
    for turn in range(num_rounds + 1):
        for phase in pair:
            one, writer = both[phase.direction.name], both[phase.direction.reverse.name]
            times = [time.perf_counter()]
            hand = writer if real else Stub(writer)
            made = examples.of_round(
                phase, recipe, corpora, cursors, hand, one, recipe.generate, Callbacks(),  # type: ignore[arg-type]
                reread_with=found[phase.direction.name].reader,
            )  # fmt: skip
            times.append(time.perf_counter())
            table, _ = token_rows_of(made, one.templates, found[phase.direction.name], one.base.device, turn)
            times.append(time.perf_counter())
            groups = step_batches(table.sizes, recipe.train.batch_size, turn)
            if real:
                with one.direction_model.training() as packed:
                    settings = StepSettings(one.base.pad_id, recipe.train.max_tokens_per_microbatch, packed=packed)
                    model, optimizer = one.direction_model.model, optimizers[phase.direction.name]
                    for group in groups:
                        train_step(model, optimizer, table, group, settings, seed=0)
            times.append(time.perf_counter())
            cursors = cursors | made.cursors
            if turn:
                lines += recipe.rounds.monolingual_lines
                for key, before, after in zip(seconds, times, times[1:], strict=False):
                    seconds[key] += after - before
    return seconds, lines


class Stub:
    """A writer without a model: a source is its line with the words in reverse."""

    def __init__(self, one: Translator) -> None:
        self.one, self.template = one, one.template

    def translate(
        self, sources: list[str], settings: Any, seed: int, *, reread_with: PromptTemplate | None, **more: Any
    ) -> Translations:
        texts = [" ".join(reversed(source.split())) for source in sources]
        ids = [row.ids[row.start : -1] for row in self.template.rows([("", text) for text in texts])]
        width = max(map(len, ids))
        new_BN = torch.tensor([[*one, *(width - len(one)) * [0]] for one in ids])
        size_B, done_B = torch.tensor([len(one) for one in ids]), torch.ones(len(ids), dtype=torch.bool)
        prompts = reread_with.prompts(texts) if reread_with is not None else None
        return Translations(texts, done_B.tolist(), Hypotheses(new_BN, size_B, done_B, size_B + 1), prompts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.one, name)


def show(document: Mapping[str, Any], console: Console) -> None:
    table = Shown(title="one process for each size")
    columns = ("lines", "model", "prepare, us a line", "prepare, MiB", "round, us a line", "round, whole process, MiB")
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right")
    for case in document["sizes"]:
        own, learning = per_line(case)
        table.add_row(
            f"{case['lines']:,}",
            case["model"],
            f"{1e6 * case['prepare_seconds'] / case['prepared_lines']:.1f}",
            f"{case['prepare_bytes'] / 2**20:,.1f}",
            f"{1e6 * (own + learning):,.0f}",
            f"{case['round_bytes'] / 2**20:,.0f}",
        )
    console.print(table)


def per_line(case: Mapping[str, Any]) -> tuple[float, float]:
    """Return seconds a line, of a stub's round and of the model's learning."""
    times = case["round_seconds"]
    stub = case["model"].startswith("stub")
    own = (times["read, write, judge"] + times["rows"]) / case["round_lines"]
    return own, 0.0 if stub else times["learn"] / case["round_lines"]


def draw(document: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    cases = document["sizes"]
    sizes = [case["lines"] for case in cases]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5))
    left.plot(sizes, [1e6 * case["prepare_seconds"] / case["prepared_lines"] for case in cases], "-o", label="prepare")
    stubs = [case for case in cases if case["model"].startswith("stub")]
    left.plot([case["lines"] for case in stubs], [1e6 * per_line(case)[0] for case in stubs], "-o", label="round, stub")
    left.set(xscale="log", xlabel="lines of each language", ylabel="microseconds a line", ylim=(0, None))
    left.legend(fontsize="small")
    right.plot(sizes, [case["prepare_bytes"] / 2**20 for case in cases], "-o", label="added by prepare")
    for kind, marker in (("SmolLM2-135M", "-s"), ("stub", "-^")):
        some = [case for case in cases if case["model"].startswith(kind)]
        peaks = [case["round_bytes"] / 2**20 for case in some]
        right.plot([case["lines"] for case in some], peaks, marker, label=f"process in rounds, {kind}")
    right.set(xscale="log", xlabel="lines of each language", ylabel="MiB", ylim=(0, None))
    right.legend(fontsize="small")
    figure.suptitle(document["hardware"]["processor"], fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    asking = parser(__doc__, turns=1)
    asking.add_argument("--sizes", nargs="+", type=int, default=(1_000, 10_000, 100_000, 1_000_000, 10_000_000))
    asking.add_argument("--real", type=int, default=0, help="up to so many lines a model writes and learns")
    asking.add_argument("--rounds", type=int, default=20_000, help="lines of each language that rounds are taken of")
    asking.add_argument("--real-rounds", type=int, default=500, help="the same, where a model writes and learns")
    asking.add_argument("--one", type=int, help=argparse.SUPPRESS)
    asked = asking.parse_args()
    if asked.one:
        real = asked.one <= asked.real
        result = measure(asked.one, real=real, rounds=asked.real_rounds if real else asked.rounds)
        sys.stdout.write(json.dumps(result) + "\n")
        return
    found: list[dict[str, Any]] = []
    document = {
        "command": " ".join(["python -m benchmarks.scale", *sys.argv[1:]]),
        "hardware": {"processor": processor(), "threads": torch.get_num_threads()},
        "versions": versions(),
        "sizes": found,
    }
    path = RESULTS / f"scale-{asked.name}.json"
    for number in asked.sizes:
        command = [sys.executable, "-m", "benchmarks.scale", "--one", str(number)]
        command += ["--real", str(asked.real), "--rounds", str(asked.rounds), "--real-rounds", str(asked.real_rounds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        # After each, since the largest takes long.
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    show(document, Console())
    draw(document, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
