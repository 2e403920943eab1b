"""The loops that `benchmarks.round` compares: ours, a plain one, and one with TRL's trainer."""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM, PrinterCallback

from benchmarks.common import timed
from roundtrip import Candidate, Optimizer, StepSettings, Translator, train_step
from roundtrip.backtranslation.examples import PARALLEL, SYNTHETIC, Example
from roundtrip.backtranslation.token_rows import build_token_rows, make_row_builders
from roundtrip.engine.generate import generate_hf, length_limit
from roundtrip.engine.request import GenerationRequest, StopRule
from roundtrip.models import adapters
from roundtrip.models.optimizer import MAX_GRAD_NORM
from roundtrip.recipe.plan import Direction, directions
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime.event_log import EventLog
from roundtrip.tokens.batching import TokenDataset, step_batches
from roundtrip.tokens.prompt_template import TokenRow

PARTS = ("generate", "rows", "train")


@dataclass(frozen=True)
class Task:
    """What every loop has to do in a round, for each direction: the real lines, and the parallel pairs to mix in.

    Attributes:
        start: the adapters that every round begins with, by direction, as PEFT names their tensors.
    """

    recipe: Recipe
    lines: dict[str, list[str]]
    parallel: dict[str, list[tuple[str, str]]]
    start: dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Turn:
    """Time, losses and counts of one direction, or of a whole round."""

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


class Loop(Protocol):
    """A way to take a round."""

    def begin(self) -> None:
        """Start again with the adapters of the task and new optimizers."""

    def take(self, direction: Direction) -> Turn:
        """Train one direction on what the reverse one generates for it."""


class Ours:
    """A round as a run takes it."""

    def __init__(self, task: Task, both: Mapping[str, Translator]) -> None:
        self.task, self.both = task, both
        samples = task.parallel[directions(task.recipe)[0].name]
        self.row_builders, _ = make_row_builders(task.recipe, both, samples, EventLog(Console(quiet=True)))
        self.optimizers: dict[str, Optimizer] = {}

    def begin(self) -> None:
        recipe = self.task.recipe
        for name, each in self.both.items():
            adapters.load(each.direction_model.model, name, self.task.start[name])
            self.optimizers[name] = Optimizer(
                each.direction_model.parameters(), recipe.train, 1000, recipe.adapter[name]
            )

    def take(self, direction: Direction) -> Turn:
        recipe, lines = self.task.recipe, self.task.lines[direction.target]
        forward, reverse = self.both[direction.name], self.both[direction.reverse.name]
        row_builder = self.row_builders[direction.name]
        generating, translations = timed(
            lambda: reverse.translate(lines, recipe.generate, reread_with=row_builder.reread_template)
        )
        hypotheses = translations.hypotheses

        def make_rows() -> TokenDataset:
            sizes, row_starts = hypotheses.size_B.tolist(), translations.row_starts
            examples = [
                Example(
                    SYNTHETIC,
                    source,
                    target,
                    Candidate(
                        line,
                        source,
                        target,
                        ids_N=hypotheses.ids_BN[line, : sizes[line]],
                        row_start=row_starts[line] if row_starts is not None else None,
                    ),
                )
                for line, (source, target) in enumerate(zip(translations.texts, lines, strict=True))
            ]
            examples += [Example(PARALLEL, *pair) for pair in self.task.parallel[direction.name]]
            return build_token_rows(examples, forward, row_builder, 0)[0]

        making, dataset = timed(make_rows)

        def train() -> list[float]:
            model, optimizer = forward.direction_model, self.optimizers[direction.name]
            with model.training() as packed:
                settings = StepSettings(forward.base.pad_id, recipe.train.max_tokens_per_microbatch, packed=packed)
                return [
                    train_step(model.model, optimizer, dataset, rows, settings, seed=0).loss
                    for rows in step_batches(dataset.sizes, recipe.train.batch_size, 0)
                ]

        training, losses = timed(train)
        seconds = {"generate": generating, "rows": making, "train": training}
        return Turn(seconds, losses, int(hypotheses.tokens_B.sum()), len(dataset))


class Usual:
    """What the two usual loops share: a PEFT model of the library's defaults, and generation through its adapters."""

    def __init__(self, task: Task, both: Mapping[str, Translator]) -> None:
        self.task, self.both = task, both
        base = next(iter(both.values())).base
        model = AutoModelForCausalLM.from_pretrained(base.location, dtype=base.dtype).to(base.device)
        settings = next(iter(task.recipe.adapter.values()))
        config = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        names = [direction.name for direction in directions(task.recipe)]
        self.model = get_peft_model(model, config, adapter_name=names[0])
        self.model.add_adapter(names[1], config)

    def begin(self) -> None:
        for name, tensors in self.task.start.items():
            adapters.load(self.model, name, tensors)

    def generate(self, direction: Direction) -> tuple[list[str], int]:
        """Generate a source of each line, in batches in file order; return them and the number of new tokens."""
        reverse, size = self.both[direction.reverse.name], self.task.recipe.train.batch_size
        lines = self.task.lines[direction.target]
        self.model.set_adapter(direction.reverse.name)
        self.model.eval()
        texts: list[str] = []
        num_new = 0
        for start in range(0, len(lines), size):
            prompts = reverse.template.prompts(lines[start : start + size])
            limits = [length_limit(reverse.num_source_tokens(prompt), self.task.recipe.generate) for prompt in prompts]
            segments = reverse.template.segments
            stop = StopRule(segments.stop_ids, segments.break_ids, reverse.base.pad_id)
            request = GenerationRequest(prompts, limits, self.task.recipe.generate, stop, 0)
            new_BN = generate_hf(self.model, request)
            num_new += int((new_BN != reverse.base.pad_id).sum())
            texts += reverse.base.tokenizer.batch_decode(new_BN, skip_special_tokens=True)
        return [text.strip() for text in texts], num_new

    def pairs(self, direction: Direction, texts: list[str]) -> list[tuple[str, str]]:
        return [*zip(texts, self.task.lines[direction.target], strict=True), *self.task.parallel[direction.name]]


class Plain(Usual):
    """A round as a short loop without our package takes it."""

    def take(self, direction: Direction) -> Turn:
        forward, recipe = self.both[direction.name], self.task.recipe
        generating, (texts, num_new) = timed(lambda: self.generate(direction))
        making, rows = timed(lambda: [forward.template.rows([pair])[0] for pair in self.pairs(direction, texts)])

        def train() -> list[float]:
            self.model.set_adapter(direction.name)
            self.model.train()
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=recipe.train.lr, weight_decay=0.0)
            losses = []
            order = random.Random(0).sample(range(len(rows)), len(rows))
            for start in range(0, len(order), recipe.train.batch_size):
                some = [rows[i] for i in order[start : start + recipe.train.batch_size]]
                loss = self.model(**_padded(some, forward)).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
            return losses

        training, losses = timed(train)
        return Turn({"generate": generating, "rows": making, "train": training}, losses, num_new, len(rows))


def _padded(rows: Sequence[TokenRow], forward: Translator) -> dict[str, torch.Tensor]:
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), forward.base.pad_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        labels[number, row.start : len(row.ids)] = torch.tensor(row.ids[row.start :])
        mask[number, : len(row.ids)] = 1
    given = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: value.to(forward.base.device) for name, value in given.items()}


class Trl(Usual):
    """A round with TRL's trainer; the text processing of its constructor counts as making rows."""

    def take(self, direction: Direction) -> Turn:
        from datasets import Dataset
        from trl.trainer.sft_trainer import SFTTrainer

        forward = self.both[direction.name]
        generating, (texts, num_new) = timed(lambda: self.generate(direction))
        pairs = self.pairs(direction, texts)
        self.model.set_adapter(direction.name)
        self.model.train()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            making, trainer = timed(
                lambda: SFTTrainer(
                    self.model,
                    self._settings(folder, forward),
                    train_dataset=Dataset.from_list([_as_completion(forward, pair) for pair in pairs]),
                    processing_class=forward.base.tokenizer,
                )
            )
            trainer.remove_callback(PrinterCallback)
            kept = [row["input_ids"] for row in trainer.train_dataset]
            same = [ids == row.ids for ids, row in zip(kept, forward.template.rows(pairs), strict=True)]
            # Tokens at a boundary may differ, since TRL encodes prompt and completion separately.
            assert sum(same) >= 0.9 * len(same), "TRL has to train on the same rows"
            training, _ = timed(trainer.train)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return Turn({"generate": generating, "rows": making, "train": training}, losses, num_new, len(pairs))

    def _settings(self, folder: str, forward: Translator) -> Any:
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
            use_cpu=forward.base.device.type == "cpu",
            bf16=False,  # the base is in bfloat16 already
            disable_tqdm=True,
        )


def _as_completion(forward: Translator, pair: tuple[str, str]) -> dict[str, str]:
    """Return a row in the format of TRL; spaces in front of the target belong to it, as in our prompts."""
    source, target = pair
    mid = forward.template.segments.mid
    return {"prompt": forward.template.prompt_text(source), "completion": mid[len(mid.rstrip(" ")) :] + target}


def in_turns(task: Task, loops: Mapping[str, Loop], turns: int) -> dict[str, Turn]:
    """Return the fastest round of each loop; each begins with the same adapters, after a turn of warm-up."""
    rounds: dict[str, list[Turn]] = {name: [] for name in loops}
    for turn in range(turns + 1):
        for name, loop in loops.items():
            loop.begin()
            first, second = (loop.take(direction) for direction in directions(task.recipe))
            if turn:
                rounds[name].append(first + second)
    return {name: min(taken, key=lambda turn: sum(turn.seconds.values())) for name, taken in rounds.items()}
