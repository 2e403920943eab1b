"""python -m benchmarks.round: a whole round of both directions, ours beside two usual loops, in one process.

The quickstart's model and text. In a round each direction writes a source for every new line of its source's language
(greedy), the other learns from these pairs and the real pairs that the recipe mixes in; nothing is judged, so that all
roads learn from as many rows. Rounds are taken in turns, and every one begins with the same adapters: fresh ones, with
which hypotheses run on to their limits, or with --run those that a quickstart has warmed up on its pairs. Roads:

- ours: as a run does it, with its token road;
- plain: PEFT's defaults (adapters in float32) inside `generate` of transformers, 16 lines at a time as they come; rows
  decoded, formatted and encoded one by one; 16 random rows a step, padded, the library's own loss;
- TRL: the same generation, then `SFTTrainer` over prompts and completions (gradient checkpointing off, which is on by
  default and slower; a constant rate; all else as it comes).

With --prior-art PYTHON also CycleFormers, by an interpreter that has it installed, see `benchmarks/prior_round.py`; it
knows no real pairs, so ours is taken without them too, and rows a second are what compares.
Writes benchmarks/results/round-NAME.json and .png.
"""

from __future__ import annotations

import json
import random
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset, disable_progress_bars
from rich.console import Console
from rich.table import Table as Shown

from benchmarks import prior_round
from benchmarks.machine import RESULTS, facts, parser, processor
from benchmarks.round_share import clocked
from roundtrip.backtranslation import row_builders
from roundtrip.backtranslation.examples import REAL, SYNTHETIC, PhaseExamples
from roundtrip.backtranslation.token_rows import token_rows_of
from roundtrip.data.corpora import prepare
from roundtrip.engine import translator
from roundtrip.engine.generate import length_limit
from roundtrip.engine.hf_backends import generate_hf
from roundtrip.engine.request import GenerationRequest, StopRule
from roundtrip.engine.train_step import StepSettings, train_step
from roundtrip.engine.translator import Translator
from roundtrip.models import adapters
from roundtrip.models.optimizer import MAX_GRAD_NORM, Optimizer
from roundtrip.recipe import loader
from roundtrip.recipe.plan import Direction, directions, num_parallel
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime.event_log import EventLog
from roundtrip.tokens.batching import step_batches
from roundtrip.tokens.prompt_template import TokenRow

PARTS = ("generate", "rows", "learn")


@dataclass(frozen=True)
class Task:
    """What every road has to do in a round, for each direction: the real lines, and the real pairs to mix in.

    Attributes:
        start: the adapters that every round begins with, by direction, as PEFT names their tensors.
    """

    recipe: Recipe
    lines: dict[str, list[str]]
    real: dict[str, list[tuple[str, str]]]
    start: dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Turn:
    """What one direction, or a whole round, took and came to."""

    seconds: dict[str, float]
    losses: list[float]
    new_tokens: int
    rows: int

    def __add__(self, other: Turn) -> Turn:
        seconds = {part: self.seconds[part] + other.seconds[part] for part in PARTS}
        tokens, rows = self.new_tokens + other.new_tokens, self.rows + other.rows
        return Turn(seconds, self.losses + other.losses, tokens, rows)

    def to_dict(self) -> dict[str, Any]:
        mean = sum(self.losses) / len(self.losses)
        rate = self.rows / sum(self.seconds.values())
        return asdict(self) | {"mean_loss": mean, "steps": len(self.losses), "rows_per_second": rate}


class RowBuilder(Protocol):
    """A way to take a round."""

    def begin(self) -> None:
        """Forget what was learnt."""

    def take(self, direction: Direction) -> Turn:
        """Let one direction learn from what the other one writes for it."""


class Ours:
    """A round as a run takes it."""

    def __init__(self, task: Task, both: Mapping[str, Translator]) -> None:
        self.task, self.both = task, both
        templates = {name: one.template for name, one in both.items()}
        devices = {name: one.base.device for name, one in both.items()}
        self.row_builders, _ = row_builders.find(
            task.recipe, templates, templates, task.real, devices, EventLog(Console(quiet=True))
        )
        self.optimizers: dict[str, Optimizer] = {}

    def begin(self) -> None:
        recipe = self.task.recipe
        for name, one in self.both.items():
            adapters.load(one.direction_model.model, name, self.task.start[name])
            self.optimizers[name] = Optimizer(
                one.direction_model.parameters(), recipe.train, 1000, recipe.adapter[name]
            )

    def take(self, direction: Direction) -> Turn:
        recipe, lines = self.task.recipe, self.task.lines[direction.target]
        one, writer = self.both[direction.name], self.both[direction.reverse.name]
        row_builder = self.row_builders[direction.name]
        writing, written = clocked(lambda: writer.translate(lines, recipe.generate, 0, reread_with=row_builder.reread_template))
        pairs = [[SYNTHETIC, source, target] for source, target in zip(written.texts, lines, strict=True)]
        pairs += [[REAL, *pair] for pair in self.task.real[direction.name]]
        block = PhaseExamples(pairs, {}, hypotheses=written.hypotheses, prompts=written.prompts)
        making, (table, _) = clocked(lambda: token_rows_of(block, one.templates, row_builder, one.base.device, 0))

        def learn() -> list[float]:
            with one.direction_model.training() as packed:
                settings = StepSettings(one.base.pad_id, recipe.train.max_tokens_per_microbatch, packed=packed)
                model, optimizer = one.direction_model.model, self.optimizers[direction.name]
                return [
                    train_step(model, optimizer, table, group, settings, seed=0).loss
                    for group in step_batches(table.sizes, recipe.train.batch_size, 0)
                ]

        learning, losses = clocked(learn)
        seconds = {"generate": writing, "rows": making, "learn": learning}
        return Turn(seconds, losses, int(written.hypotheses.tokens_B.sum()), len(table))


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

    def begin(self) -> None:
        for name, tensors in self.task.start.items():
            adapters.load(self.model, name, tensors)

    def write(self, direction: Direction) -> tuple[list[str], int]:
        """Write a source of each line, in batches as they come; return them and the number of new tokens."""
        writer, size = self.both[direction.reverse.name], self.task.recipe.train.batch_size
        lines = self.task.lines[direction.target]
        self.model.set_adapter(direction.reverse.name)
        self.model.eval()
        texts: list[str] = []
        num_new = 0
        for start in range(0, len(lines), size):
            prompts = writer.template.prompts(lines[start : start + size])
            limits = [length_limit(writer.num_source_tokens(prompt), self.task.recipe.generate) for prompt in prompts]
            segments = writer.template.segments
            stop = StopRule(segments.stop_ids, segments.break_ids, writer.base.pad_id)
            request = GenerationRequest(prompts, limits, self.task.recipe.generate, stop, 0)
            new_BN = generate_hf(self.model, request).ids_BN
            num_new += int((new_BN != writer.base.pad_id).sum())
            texts += writer.base.tokenizer.batch_decode(new_BN, skip_special_tokens=True)
        return [text.strip() for text in texts], num_new

    def pairs(self, direction: Direction, texts: list[str]) -> list[tuple[str, str]]:
        return [*zip(texts, self.task.lines[direction.target], strict=True), *self.task.real[direction.name]]


class Plain(Usual):
    """A round as a loop of one's own takes it."""

    def take(self, direction: Direction) -> Turn:
        one, recipe = self.both[direction.name], self.task.recipe
        writing, (texts, num_new) = clocked(lambda: self.write(direction))
        making, rows = clocked(lambda: [one.template.rows([pair])[0] for pair in self.pairs(direction, texts)])

        def learn() -> list[float]:
            self.model.set_adapter(direction.name)
            self.model.train()
            learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(learning, lr=recipe.train.lr, weight_decay=0.0)
            losses = []
            order = random.Random(0).sample(range(len(rows)), len(rows))
            for start in range(0, len(order), recipe.train.batch_size):
                some = [rows[i] for i in order[start : start + recipe.train.batch_size]]
                loss = self.model(**_padded(some, one)).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(learning, MAX_GRAD_NORM)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
            return losses

        learning, losses = clocked(learn)
        return Turn({"generate": writing, "rows": making, "learn": learning}, losses, num_new, len(rows))


def _padded(rows: Sequence[TokenRow], one: Translator) -> dict[str, torch.Tensor]:
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), one.base.pad_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        labels[number, row.start : len(row.ids)] = torch.tensor(row.ids[row.start :])
        mask[number, : len(row.ids)] = 1
    given = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: value.to(one.base.device) for name, value in given.items()}


class Trl(Usual):
    """A round with TRL's trainer; what its constructor does to the text counts as making rows."""

    def take(self, direction: Direction) -> Turn:
        from transformers import PrinterCallback
        from trl.trainer.sft_trainer import SFTTrainer

        one = self.both[direction.name]
        writing, (texts, num_new) = clocked(lambda: self.write(direction))
        pairs = self.pairs(direction, texts)
        self.model.set_adapter(direction.name)
        self.model.train()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            making, trainer = clocked(
                lambda: SFTTrainer(
                    self.model,
                    self._settings(folder, one),
                    train_dataset=Dataset.from_list([_as_completion(one, pair) for pair in pairs]),
                    processing_class=one.base.tokenizer,
                )
            )
            trainer.remove_callback(PrinterCallback)
            kept = [row["input_ids"] for row in trainer.train_dataset]
            same = [ids == row.ids for ids, row in zip(kept, one.template.rows(pairs), strict=True)]
            # A seam may come out as other tokens, since it encodes prompt and completion apart.
            assert sum(same) >= 0.9 * len(same), "TRL has to learn from the same rows"
            learning, _ = clocked(trainer.train)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return Turn({"generate": writing, "rows": making, "learn": learning}, losses, num_new, len(pairs))

    def _settings(self, folder: str, one: Translator) -> Any:
        from trl.trainer.sft_config import SFTConfig

        train = self.task.recipe.train
        return SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=train.batch_size,
            num_train_epochs=1,
            learning_rate=train.lr,
            lr_scheduler_type="constant",
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            use_cpu=one.base.device.type == "cpu",
            bf16=False,  # the base is in bfloat16 already
            disable_tqdm=True,
        )


def _as_completion(one: Translator, pair: tuple[str, str]) -> dict[str, str]:
    """Return a row as TRL takes it; spaces in front of the target go to it, as in our prompts."""
    source, target = pair
    mid = one.template.segments.mid
    return {"prompt": one.template.prompt_text(source), "completion": mid[len(mid.rstrip(" ")) :] + target}


def in_turns(task: Task, found: Mapping[str, RowBuilder], turns: int) -> dict[str, Turn]:
    """Return the fastest round of each road; each begins with the same adapters, and one turn is to warm up."""
    rounds: dict[str, list[Turn]] = {name: [] for name in found}
    for turn in range(turns + 1):
        for name, row_builder in found.items():
            row_builder.begin()
            first, second = (row_builder.take(direction) for direction in directions(task.recipe))
            if turn:
                rounds[name].append(first + second)
    return {name: min(taken, key=lambda one: sum(one.seconds.values())) for name, taken in rounds.items()}


def show(document: Mapping[str, Any], console: Console) -> None:
    table = Shown(title=f"a round: {document['lines']} lines of each language and {document['real_pairs']} real pairs")
    for column in ("road", *PARTS, "round, s", "times ours", "rows", "rows/s", "steps", "mean loss"):
        table.add_column(column, justify="left" if column == "road" else "right")
    first = sum(document["roads"]["ours"]["seconds"].values())
    for name, turn in document["roads"].items():
        whole = sum(turn["seconds"].values())
        shown = [f"{turn['seconds'][part]:.2f}" if part in turn["seconds"] else "" for part in PARTS]
        loss = f"{turn['mean_loss']:.2f}" if "mean_loss" in turn else ""
        rows = [str(turn["rows"]), f"{turn['rows'] / whole:.1f}", str(turn["steps"])]
        table.add_row(name, *shown, f"{whole:.1f}", f"{whole / first:.2f}", *rows, loss)
    console.print(table)


def draw(document: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7, 0.8 + 0.6 * len(document["roads"])))
    left = dict.fromkeys(document["roads"], 0.0)
    for part in PARTS:
        widths = {name: turn["seconds"].get(part, 0.0) for name, turn in document["roads"].items()}
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
    asking.add_argument(
        "--run", type=Path, help="a finished run of the quickstart, whose adapters all roads begin with"
    )
    asking.add_argument("--prior-art", help="a Python that has CycleFormers, from an environment of its own")
    asked = asking.parse_args()
    loaded = loader.load_recipe("quickstart", [f"model.device={asked.device}"])
    recipe = loaded.recipe
    both = translator.load(recipe, loaded.folder)
    with tempfile.TemporaryDirectory() as folder:
        corpora = prepare(recipe, loaded.folder, Path(folder), lambda text: None)
        lines = {code: [corpora.mono[code][i][0] for i in range(asked.lines)] for code in recipe.languages}
        number = num_parallel(recipe, asked.lines, len(corpora.train))
        pairs = [(source, target) for source, target in (corpora.train[i] for i in range(number))]
    first = directions(recipe)[0]
    real = {first.name: pairs, first.reverse.name: [(target, source) for source, target in pairs]}
    start = {
        name: adapters.read(asked.run / "adapters" / "parallel" / name)
        if asked.run
        else {key: value.clone() for key, value in adapters.tensors(one.direction_model.model, name).items()}
        for name, one in both.items()
    }
    task = Task(recipe, lines, real, start)
    disable_progress_bars()
    turns = in_turns(task, {"ours": Ours(task, both), "plain": Plain(task, both), "TRL": Trl(task, both)}, asked.turns)
    if asked.prior_art:
        bare = replace(task, real={name: [] for name in real})
        turns |= in_turns(bare, {"ours, no real pairs": Ours(bare, both)}, asked.turns)
    document = facts("round", both[first.name]) | {"lines": asked.lines, "real_pairs": len(pairs)}
    document["roads"] = {name: turn.to_dict() for name, turn in turns.items()}
    if asked.prior_art:
        document["command"] = document["command"].replace(asked.prior_art, "PYTHON")
        document["roads"] |= _prior(asked.prior_art, task, both)
    path = RESULTS / f"round-{asked.name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    show(document, Console())
    draw(document, path.with_suffix(".png"))


def _prior(python: str, task: Task, both: Mapping[str, Translator]) -> dict[str, Any]:
    """Return what CycleFormers takes for the same lines, without real pairs and from fresh adapters."""
    recipe, one = task.recipe, next(iter(both.values()))
    limits = [
        length_limit(each.num_source_tokens(prompt), recipe.generate)
        for each in both.values()
        for prompt in each.template.prompts(task.lines[each.direction.source])
    ]
    settings = next(iter(recipe.adapter.values()))
    found = prior_round.run(
        python,
        one.base.location,
        task.lines,
        batch_size=recipe.train.batch_size,
        max_new_tokens=round(sum(limits) / len(limits)),
        rank=settings.rank,
        alpha=settings.alpha,
        lr=recipe.train.lr,
        dtype=str(one.base.dtype).removeprefix("torch."),
    )
    return {
        f"CycleFormers, {name}": {
            "seconds": {"generate": said["generate_seconds"], "learn": said["seconds"] - said["generate_seconds"]},
            "new_tokens": said["generated_tokens"],
            "rows": said["lines"],
            "steps": sum(said["optimizer_steps"]),
        }
        for name, said in found.items()
    }


if __name__ == "__main__":
    main()
