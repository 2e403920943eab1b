"""python -m benchmarks.round: a whole round of both directions, ours beside two usual loops, in one process.

The quickstart's model and text. In a round each direction writes a source for every new line of its source's language
(greedy), the other learns from these pairs and the real pairs that the recipe mixes in; nothing is judged, so that all
roads learn from as many rows. Rounds are taken in turns, each road with adapters of its own. Roads:

- ours: as a run does it, with its token road;
- plain: PEFT's defaults (adapters in float32) inside `generate` of transformers, 16 lines at a time as they come; rows
  decoded, formatted and encoded one by one; 16 random rows a step, padded, the library's own loss;
- TRL: the same generation, then `SFTTrainer` over prompts and completions (gradient checkpointing off, which is on by
  default and slower; all else as it comes).

With --prior-art PYTHON also CycleFormers, by an interpreter that has it installed: see `benchmarks/prior_round.py`.
Writes benchmarks/results/round-NAME.json and .png.
"""

from __future__ import annotations

import json
import random
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Shown

from benchmarks import prior_round
from benchmarks.machine import RESULTS, facts, parser, processor
from benchmarks.round_share import clocked
from roundtrip import cookbook, roads, translator
from roundtrip.block import REAL, SYNTHETIC, Block
from roundtrip.engine.batch import steps
from roundtrip.engine.generate import length_limit
from roundtrip.engine.library import by_generate
from roundtrip.engine.step import step
from roundtrip.engine.work import Work
from roundtrip.events import Events
from roundtrip.models.optimizer import Optimizer
from roundtrip.plan import Direction, directions, num_real
from roundtrip.recipe import Recipe
from roundtrip.rows import of_block
from roundtrip.text.prepare import prepare
from roundtrip.translator import Translator

PARTS = ("generate", "rows", "learn")
Times = dict[str, float]


@dataclass
class Task:
    """What every road has to do in a round, for each direction: the real lines, and the real pairs to mix in."""

    recipe: Recipe
    lines: dict[str, list[str]]
    real: dict[str, list[tuple[str, str]]]
    losses: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def note(self, road: str, loss: float, tokens: int) -> None:
        self.losses.setdefault(road, []).append(loss)
        self.tokens[road] = self.tokens.get(road, 0) + tokens


def ours(task: Task, both: Mapping[str, Translator]) -> Callable[[], Times]:
    """Return a round as a run takes it."""
    recipe = task.recipe
    samples = {d.name: task.real[d.name] for d in directions(recipe)}
    templates = {name: one.template for name, one in both.items()}
    devices = {name: one.base.device for name, one in both.items()}
    found, _ = roads.find(recipe, templates, samples, devices, Events(Console(quiet=True)))
    optimizers = {
        name: Optimizer(one.learner.parameters(), recipe.train, 1000, recipe.adapter[name])
        for name, one in both.items()
    }

    def one_direction(direction: Direction) -> Times:
        one, writer, road = both[direction.name], both[direction.reverse.name], found[direction.name]
        lines = task.lines[direction.target]
        writing, written = clocked(lambda: writer.write(lines, recipe.generate, 0, reader=road.reader))
        pairs = [[SYNTHETIC, source, target] for source, target in zip(written.texts, lines, strict=True)]
        pairs += [[REAL, *pair] for pair in task.real[direction.name]]
        block = Block(pairs, {}, hypotheses=written.hypotheses, prompts=written.prompts)
        making, (table, _) = clocked(lambda: of_block(block, one.template, road, one.base.device, 0))

        def learn() -> list[float]:
            with one.learner.training(recipe.train.packing) as packed:
                return [
                    step(one.learner.model, optimizers[direction.name], table, group, one.base.pad_id,
                         recipe.train.tokens_per_forward, 0, packed=packed).loss
                    for group in steps(table.sizes, recipe.train.rows_per_step, 0)
                ]  # fmt: skip

        learning, losses = clocked(learn)
        task.note("ours", sum(losses) / len(losses), int(written.hypotheses.size_B.sum()))
        return {"generate": writing, "rows": making, "learn": learning}

    return lambda: _sum([one_direction(direction) for direction in directions(recipe)])


class Usual:
    """What the two usual loops share: a PEFT model of the library's defaults, and generation through its adapters."""

    def __init__(self, task: Task, both: Mapping[str, Translator]) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        self.task, self.both = task, both
        one = next(iter(both.values()))
        base = AutoModelForCausalLM.from_pretrained(one.base.location, dtype=one.base.dtype).to(one.base.device)
        settings = next(iter(task.recipe.adapter.values()))
        config = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        names = [direction.name for direction in directions(task.recipe)]
        self.model = get_peft_model(base, config, adapter_name=names[0])
        self.model.add_adapter(names[1], config)

    def write(self, road: str, direction: Direction) -> list[str]:
        """Write a source of each line, in batches as they come."""
        writer, size = self.both[direction.reverse.name], self.task.recipe.train.rows_per_step
        lines = self.task.lines[direction.target]
        self.model.set_adapter(direction.reverse.name)
        self.model.eval()
        texts: list[str] = []
        for start in range(0, len(lines), size):
            prompts = writer.template.prompts(lines[start : start + size])
            limits = [length_limit(writer.num_source_tokens(prompt), self.task.recipe.generate) for prompt in prompts]
            stops = [*writer.template.segments.stop_ids, *writer.template.segments.break_ids]
            work = Work(prompts, limits, self.task.recipe.generate, writer.base.pad_id, stops, 0)
            new_BN = by_generate(self.model, work).ids_BN
            self.task.note(road, 0.0, int((new_BN != writer.base.pad_id).sum()))
            texts += writer.base.tokenizer.batch_decode(new_BN, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def pairs(self, direction: Direction, texts: list[str]) -> list[tuple[str, str]]:
        return [*zip(texts, self.task.lines[direction.target], strict=True), *self.task.real[direction.name]]


def plain(task: Task, both: Mapping[str, Translator]) -> Callable[[], Times]:
    """Return a round as a loop of one's own takes it."""
    usual = Usual(task, both)
    optimizers: dict[str, torch.optim.AdamW] = {}

    def one_direction(direction: Direction) -> Times:
        one, recipe = both[direction.name], task.recipe
        writing, texts = clocked(lambda: usual.write("plain", direction))
        making, rows = clocked(lambda: [one.template.rows([pair])[0] for pair in usual.pairs(direction, texts)])

        def learn() -> list[float]:
            usual.model.set_adapter(direction.name)
            usual.model.train()
            if direction.name not in optimizers:
                optimizers[direction.name] = torch.optim.AdamW(
                    [p for p in usual.model.parameters() if p.requires_grad], lr=recipe.train.lr
                )
            optimizer, losses = optimizers[direction.name], []
            order = random.Random(0).sample(range(len(rows)), len(rows))
            for start in range(0, len(order), recipe.train.rows_per_step):
                some = [rows[i] for i in order[start : start + recipe.train.rows_per_step]]
                width = max(len(row.ids) for row in some)
                ids = torch.full((len(some), width), one.base.pad_id)
                labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
                for number, row in enumerate(some):
                    ids[number, : len(row.ids)] = torch.tensor(row.ids)
                    labels[number, row.start : len(row.ids)] = torch.tensor(row.ids[row.start :])
                    mask[number, : len(row.ids)] = 1
                given = {"input_ids": ids, "attention_mask": mask, "labels": labels}
                loss = usual.model(**{name: value.to(one.base.device) for name, value in given.items()}).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(usual.model.parameters(), recipe.train.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
            return losses

        learning, losses = clocked(learn)
        task.note("plain", sum(losses) / len(losses), 0)
        return {"generate": writing, "rows": making, "learn": learning}

    return lambda: _sum([one_direction(direction) for direction in directions(task.recipe)])


def trl(task: Task, both: Mapping[str, Translator]) -> Callable[[], Times]:
    """Return a round with TRL's trainer; what its constructor does to the text counts as making rows."""
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    usual = Usual(task, both)

    def one_direction(direction: Direction) -> Times:
        one, recipe = both[direction.name], task.recipe
        writing, texts = clocked(lambda: usual.write("TRL", direction))
        usual.model.set_adapter(direction.name)
        usual.model.train()

        def make(folder: str) -> Any:
            fixed = one.template
            pairs = usual.pairs(direction, texts)
            rows = [{"prompt": fixed.prompt_text(source), "completion": target} for source, target in pairs]
            settings = SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=recipe.train.rows_per_step,
                num_train_epochs=1,
                learning_rate=recipe.train.lr,
                gradient_checkpointing=False,
                save_strategy="no",
                logging_steps=1,
                report_to=[],
                use_cpu=one.base.device.type == "cpu",
                bf16=False,  # the base is in bfloat16 already
                disable_tqdm=True,
            )
            return SFTTrainer(
                usual.model, settings, train_dataset=Dataset.from_list(rows), processing_class=one.base.tokenizer
            )

        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            making, trainer = clocked(lambda: make(folder))
            learning, result = clocked(trainer.train)
        task.note("TRL", result.training_loss, 0)
        return {"generate": writing, "rows": making, "learn": learning}

    return lambda: _sum([one_direction(direction) for direction in directions(task.recipe)])


def _sum(times: list[Times]) -> Times:
    return {part: sum(one[part] for one in times) for part in PARTS}


def in_turns(found: Mapping[str, Callable[[], Times]], turns: int) -> dict[str, Times]:
    """Return the parts of the fastest round of each road, after one to warm up."""
    rounds: dict[str, list[Times]] = {name: [] for name in found}
    for turn in range(turns + 1):
        for name, road in found.items():
            times = road()
            if turn:
                rounds[name].append(times)
    return {name: min(times, key=lambda one: sum(one.values())) for name, times in rounds.items()}


def show(document: Mapping[str, Any], console: Console) -> None:
    table = Shown(title=f"a round: {document['lines']} lines of each language and {document['real_pairs']} real pairs")
    for column in ("road", *PARTS, "round", "times ours", "mean loss"):
        table.add_column(column, justify="left" if column == "road" else "right")
    first = sum(document["seconds"]["ours"].values())
    for name, times in document["seconds"].items():
        whole = sum(times.values())
        loss = document["mean_loss"].get(name)
        shown = [f"{times[part]:.2f}" if part in times else "" for part in PARTS]
        table.add_row(name, *shown, f"{whole:.1f}", f"{whole / first:.2f}", "" if loss is None else f"{loss:.2f}")
    console.print(table)


def draw(document: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7, 0.8 + 0.6 * len(document["seconds"])))
    left = dict.fromkeys(document["seconds"], 0.0)
    for part in PARTS:
        widths = {name: times.get(part, 0.0) for name, times in document["seconds"].items()}
        if any(widths.values()):
            panel.barh(list(widths), list(widths.values()), left=list(left.values()), label=part)
        left = {name: left[name] + widths[name] for name in left}
    panel.invert_yaxis()
    panel.set(xlabel="seconds")
    panel.set_title(f"one round, {processor()}", fontsize=9)
    panel.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    asking = parser(__doc__, turns=2)
    asking.add_argument("--lines", type=int, default=128, help="of each language in a round")
    asking.add_argument("--prior-art", help="a Python that has CycleFormers, from an environment of its own")
    asked = asking.parse_args()
    loaded = cookbook.load("quickstart", [f"model.device={asked.device}"])
    recipe = loaded.recipe
    both = translator.load(recipe, loaded.folder)
    with tempfile.TemporaryDirectory() as folder:
        corpora = prepare(recipe, loaded.folder, Path(folder), lambda text: None)
        lines = {code: [corpora.mono[code][i][0] for i in range(asked.lines)] for code in recipe.languages}
        pairs = [tuple(corpora.train[i]) for i in range(num_real(recipe, asked.lines, len(corpora.train)))]
    first = directions(recipe)[0]
    real = {first.name: pairs, first.reverse.name: [(target, source) for source, target in pairs]}
    task = Task(recipe, lines, real)  # type: ignore[arg-type]
    seconds = in_turns({"ours": ours(task, both), "plain": plain(task, both), "TRL": trl(task, both)}, asked.turns)
    document = facts("round", next(iter(both.values()))) | {
        "lines": asked.lines,
        "real_pairs": len(pairs),
        "seconds": seconds,
        "mean_loss": {name: next(loss for loss in losses if loss) for name, losses in task.losses.items()},
        "generated_tokens_a_round": {name: tokens // (asked.turns + 1) for name, tokens in task.tokens.items()},
    }
    if asked.prior_art:
        one = both[first.name]
        limits = [
            length_limit(each.num_source_tokens(prompt), recipe.generate)
            for each in both.values()
            for prompt in each.template.prompts(lines[each.direction.source])
        ]
        settings = recipe.adapter[first.name]
        found = prior_round.run(
            asked.prior_art,
            one.base.location,
            lines,
            rows_per_step=recipe.train.rows_per_step,
            max_new_tokens=round(sum(limits) / len(limits)),
            rank=settings.rank,
            alpha=settings.alpha,
            lr=recipe.train.lr,
            dtype=str(one.base.dtype).removeprefix("torch."),
        )
        document["prior_art"] = found
        for name, said in found.items():
            writing = said["generate_seconds"]
            seconds[f"CycleFormers, {name}"] = {"generate": writing, "learn": said["seconds"] - writing}
    path = RESULTS / f"round-{asked.name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    show(document, Console())
    draw(document, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
