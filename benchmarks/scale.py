"""python -m benchmarks.scale: seconds a line and peak memory, for corpora of a thousand lines to ten million.

Each size runs in a process of its own. It prepares a corpus of that many monolingual lines of each language (the
quickstart's lines, numbered so that they differ), then takes rounds of it: lines read, encoded, "translated", filtered,
made into rows and ordered into steps. No model generates or trains: the synthetic source of a line is the line with its
words in reverse, so that only our own work is measured. Rounds end after --rounds lines, since the cost of a round does
not depend on the size of the corpus, as the figures show. Memory: what preparing adds to the process, and the peak of
the whole process in the rounds, including the loaded models. Writes benchmarks/results/scale-NAME.json and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import common
from roundtrip import load_recipe, load_translators
from roundtrip.backtranslation import filtering
from roundtrip.backtranslation.checkpoint import State
from roundtrip.backtranslation.context import RunContext
from roundtrip.backtranslation.loop import make_examples
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.backtranslation.token_rows import build_token_rows, make_row_builders
from roundtrip.backtranslation.trainer import Trainer
from roundtrip.data.corpora import Corpora, prepare
from roundtrip.engine.hypotheses import Hypotheses
from roundtrip.engine.translator import Translations, Translator
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime import memory
from roundtrip.runtime.event_log import EventLog
from roundtrip.runtime.interrupts import StopRequest
from roundtrip.tokens.batching import step_batches

PARTS = ("examples", "rows", "step order")
LINES_PER_ROUND = 500


def numbered(lines: list[str], number: int) -> Iterator[str]:
    """Yield a number of different lines, of about the same length whatever the number."""
    for index in range(number):
        yield f"{lines[index % len(lines)]} {index:08d}"


def corpus(recipe: Recipe, folder: Path, number: int, base: Corpora) -> Path:
    """Write monolingual files of a number of lines, the parallel parts, and a recipe that names them."""
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
    text += f'[template]\nkind = "plain"\n{data}'
    text += f"[rounds]\nmonolingual_lines = {min(LINES_PER_ROUND, number)}\nrequire_better_than_copy = false\n"
    text += "[filter]\nmax_length_ratio = 9.0\n"
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return folder / "recipe.toml"


def measure(number: int, rounds: int) -> dict[str, Any]:
    """Return seconds of each part and the peak memory of this process."""
    shipped = load_recipe("quickstart")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base").mkdir()
        base = prepare(shipped.recipe, shipped.folder, folder / "base", lambda text: None)
        loaded = load_recipe(str(corpus(shipped.recipe, folder, number, base)))
        (folder / "stores").mkdir()
        memory.free_after_failure()
        common.reset_process_peak()
        before, start = common.used_bytes(), time.perf_counter()
        corpora = prepare(loaded.recipe, folder, folder / "stores", lambda text: None)
        preparing, added = time.perf_counter() - start, common.process_peak() - before
        translators = load_translators(loaded)
        common.reset_process_peak()
        trainer = _trainer(folder / "run", loaded.recipe, corpora, translators)
        seconds, lines = _rounds(trainer, min(number, rounds))
        trainer.synthesizer.prefetcher.close()
    return {
        "lines": number,
        "model": "stub: words in reverse",
        "prepared_lines": 2 * number,
        "prepare_seconds": preparing,
        "round_lines": lines,
        "round_seconds": seconds,
        "prepare_bytes": added,
        "round_bytes": common.process_peak(),
    }


def _trainer(folder: Path, recipe: Recipe, corpora: Corpora, translators: Mapping[str, Translator]) -> Trainer:
    """Return a run whose models generate nothing, at the beginning of its rounds."""
    filtering.MAX_COPY_CHRF = 101.0  # words in reverse are nearly a copy
    events = EventLog(Console(quiet=True))
    builders, _ = make_row_builders(recipe, translators, corpora.dev, events)
    stubs = {name: _stub(translator) for name, translator in translators.items()}
    context = RunContext(RunFolder(folder), recipe, corpora, stubs, events, StopRequest(), builders)
    trainer = Trainer(context)
    trainer.state = State(scores={"base": {name: {"chrf": 0.0} for name in translators}})
    return trainer


def _rounds(trainer: Trainer, number: int) -> tuple[dict[str, float], int]:
    """Take rounds until a number of lines of each language are read; the first one is warm-up and does not count."""
    context, recipe = trainer.context, trainer.recipe
    first_round = [phase for phase in trainer.phases if phase.round == 1]
    seconds = dict.fromkeys(PARTS, 0.0)
    lines = 0
    for turn in range(max(1, number // recipe.rounds.monolingual_lines) + 1):
        for phase in first_round:
            name = phase.direction.name
            forward, builder = context.translators[name], context.row_builders[name]
            times = [time.perf_counter()]
            made = make_examples(trainer, phase)
            times.append(time.perf_counter())
            dataset, _ = build_token_rows(made.examples, forward, builder, turn)
            times.append(time.perf_counter())
            step_batches(dataset.sizes, recipe.train.batch_size, turn)
            times.append(time.perf_counter())
            trainer.state = replace(trainer.state, cursors=trainer.state.cursors | made.cursors)
            if turn:
                lines += recipe.rounds.monolingual_lines
                for part, before, after in zip(PARTS, times, times[1:], strict=False):
                    seconds[part] += after - before
    return seconds, lines


def _stub(translator: Translator) -> Translator:
    """Return a translator that generates nothing: a translation is its source with the words in reverse."""

    class Stub(Translator):
        def translate(self, sources: Sequence[str], *settings: Any, **others: Any) -> Translations:
            texts = [" ".join(reversed(source.split())) for source in sources]
            rows = [row.ids[row.start : -1] for row in self.template.rows([("", text) for text in texts])]
            width = max(map(len, rows))
            ids_BN = torch.tensor([[*ids, *(width - len(ids)) * [0]] for ids in rows])
            size_B, finished_B = torch.tensor([len(ids) for ids in rows]), torch.ones(len(rows), dtype=torch.bool)
            template = others["reread_with"]
            prompts = template.row_starts(texts) if template is not None else None
            return Translations(texts, finished_B.tolist(), Hypotheses(ids_BN, size_B, finished_B, size_B + 1), prompts)

    return Stub(translator.direction, translator.direction_model, translator.template, translator.denoising_template)


def round_us(case: Mapping[str, Any]) -> float:
    """Return the microseconds a line of a round."""
    seconds = case["round_seconds"]
    return float(1e6 * (seconds["examples"] + seconds["rows"]) / case["round_lines"])


def prepare_us(case: Mapping[str, Any]) -> float:
    """Return the microseconds a line of preparing."""
    return float(1e6 * case["prepare_seconds"] / case["prepared_lines"])


def show(document: Mapping[str, Any], console: Console) -> None:
    columns = ("lines", "prepare, us a line", "prepare, MiB", "round, us a line", "round, whole process, MiB")
    rows = [
        (
            f"{case['lines']:,}",
            f"{prepare_us(case):.1f}",
            f"{case['prepare_bytes'] / 2**20:,.1f}",
            f"{round_us(case):,.0f}",
            f"{case['round_bytes'] / 2**20:,.0f}",
        )
        for case in document["sizes"]
    ]
    common.print_table(console, "one process for each size", columns, rows)


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw microseconds a line and memory over the number of lines."""
    cases = document["sizes"]
    sizes = [case["lines"] for case in cases]
    with common.plot(path, (9, 3.5), title=document["hardware"]["processor"], ncols=2) as axes:
        left, right = axes[0]
        left.plot(sizes, [prepare_us(case) for case in cases], "-o", label="prepare")
        left.plot(sizes, [round_us(case) for case in cases], "-o", label="round")
        left.set_ylabel("microseconds a line")
        right.plot(sizes, [case["prepare_bytes"] / 2**20 for case in cases], "-o", label="added by prepare")
        right.plot(sizes, [case["round_bytes"] / 2**20 for case in cases], "-^", label="process in rounds")
        right.set_ylabel("MiB")
        for panel in (left, right):
            panel.set(xscale="log", xlabel="lines of each language", ylim=(0, None))
            panel.legend(fontsize="small")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=(1_000, 10_000, 100_000, 1_000_000, 10_000_000))
    parser.add_argument("--rounds", type=int, default=20_000, help="lines of each language that rounds are taken of")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        sys.stdout.write(json.dumps(measure(asked.one, asked.rounds)) + "\n")
        return
    document = common.provenance("scale") | {"sizes": []}
    path = common.result_path("scale", asked.name)
    for number in asked.sizes:
        command = [sys.executable, "-m", "benchmarks.scale", *sys.argv[1:], "--one", str(number)]
        document["sizes"].append(common.in_own_process(command))
        # After each, since the largest takes long.
        common.save(document, path)
    common.finish(document, path, show, draw)


if __name__ == "__main__":
    main()
