"""One run under way: the verbs of the loop, and the state that they change."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from roundtrip import block as blocks
from roundtrip import checkpoint, results
from roundtrip.ahead import Ahead
from roundtrip.block import Block
from roundtrip.checkpoint import State
from roundtrip.engine import memory
from roundtrip.engine.batch import Table, steps
from roundtrip.engine.ranks import ALONE, Ranks
from roundtrip.engine.step import StepResult, row_losses, step
from roundtrip.errors import TrainingError
from roundtrip.events import Events, Progressing
from roundtrip.files import digests, read_rows, whole, write_json, write_rows
from roundtrip.models import attention
from roundtrip.models.optimizer import Optimizer
from roundtrip.plan import BASE, PARALLEL, TEXT, Phase, directions, num_steps, phases
from roundtrip.recipe import Recipe
from roundtrip.rows import of_block
from roundtrip.run import BEST, Run
from roundtrip.scorer import Scorer, mean_chrf
from roundtrip.signals import Stop
from roundtrip.telling import tell_block, tell_left_out, tell_roads
from roundtrip.text.prepare import Corpora
from roundtrip.text.stream import Cursor, derive
from roundtrip.tokens.guard import Guard
from roundtrip.tokens.road import Road
from roundtrip.translator import Translator

# Steps between two times that free memory is given back, which takes some tens of milliseconds.
TRIM_EVERY = 8
# Part of a checkpoint: the pairs of tokens that the guard knows.
_PAIRS = "pairs"
_DIVERGED = (
    "look at the rows in {}; the weights are those of the last sound step: lower train.lr, or set model.dtype and "
    "adapter.dtype to 'float32', and start anew"
)


class Trip:
    """A run with everything loaded.

    Args:
        roads: by direction, how its synthetic rows are made.

    Attributes:
        state: how far it is; replaced, never changed in place.
        phases: all phases of the recipe.
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        corpora: Corpora,
        translators: Mapping[str, Translator],
        roads: Mapping[str, Road],
        events: Events,
        stop: Stop,
        ranks: Ranks = ALONE,
    ) -> None:
        self.run, self.recipe, self.corpora, self.ranks = run, recipe, corpora, ranks
        self.translators, self.roads, self.events, self.stop = translators, roads, events, stop
        self.scorer = Scorer(run, recipe, corpora, translators, events, self._tell)
        self.state = State()
        self.directions = directions(recipe)
        self.phases = phases(recipe, len(corpora.train))
        total = num_steps(recipe, len(corpora.train))
        self.optimizers = {
            name: Optimizer(one.learner.parameters(), recipe.train, total, recipe.adapter[name])
            for name, one in translators.items()
        }
        self._last_save = 0
        self._saved_at: tuple[int, int] | None = None
        self._losses: list[float] = []
        self._packed = False
        self._ahead = Ahead()

    def resume(self) -> None:
        """Go back to the newest whole checkpoint; nothing where there is none yet."""
        # One looks which is whole, so that all take the same.
        found = checkpoint.newest(self.run.checkpoints, self.events.say) if self.ranks.first else None
        name = self.ranks.of_first(None if found is None else checkpoint.name_of(found[0]))
        if name is None:
            return
        self.state, tensors = found or checkpoint.load(self.run.checkpoints / name)
        self._saved_at = (self.state.phase, self.state.step)
        for name, optimizer in self.optimizers.items():
            optimizer.restore(tensors[name], self.state.optimizer_steps.get(name, 0))
        for part, guard in self._guards().items():
            if part in tensors:
                guard.restore(tensors[part])
        self.events.seconds = dict(self.state.seconds)
        best = str(self.state.best)
        if self.ranks.first and self.state.best not in {None, BASE} and not self.run.has_best(best):
            self.events.say(f"adapters/best is not as it was written; {best} is copied there again")
            self.run.disk.keep(lambda: self.run.keep_best(best), self.run.adapters / BEST)
        self._last_save = self.state.total_steps()
        at = self.phases[self.state.phase].stage if self.state.phase < len(self.phases) else "the end"
        self.events.say(f"resumed at {at}, {self.state.total_steps()} steps done")
        self.events.log("resume", phase=self.state.phase, step=self.state.step)

    def block(self, phase: Phase) -> Block:
        """Return what a phase learns from; one that was begun before is read back, not written again."""
        path = self.run.blocks / f"{phase.number:04d}-{phase.stage}-{phase.direction.name}.jsonl"
        if phase.stage == PARALLEL:
            return blocks.of_pairs(self.corpora, phase.direction, self.recipe.languages[0])
        if self.state.step:
            return Block(read_rows(path), self.state.cursors)
        cursors = self.state.cursors
        plain = phase.stage == TEXT
        block = blocks.of_text(phase, self.recipe, self.corpora, cursors) if plain else self._round(phase, cursors)
        self._write(lambda: write_rows(path, block.rows), path)
        self.state = replace(self.state, cursors=cursors | block.cursors, files=self.state.files | self._seen(path))
        tell_block(self.events, phase, block)
        return block

    def _round(self, phase: Phase, cursors: dict[str, Cursor]) -> Block:
        """Have the reverse direction write sources."""
        writer = phase.direction.reverse.name
        road = self.roads[phase.direction.name]
        with self.events.task(
            "generating", f"{phase.stage}: {writer} writes sources", self.recipe.rounds.lines
        ) as task:
            self._ahead.need(phase.number, self._encoding(phase, cursors))
            block = blocks.of_round(
                phase,
                self.recipe,
                self.corpora,
                cursors,
                self.translators[writer],
                self.translators[phase.direction.name],
                self._tell(task),
                reader=road.reader,
                halved=self.events.halved,
            )
            num_rejected = sum(block.rejected.values())
            task.advance(0, note=f"{num_rejected} rejected")
        return block

    def _encoding(self, phase: Phase, cursors: dict[str, Cursor]) -> Callable[[], None]:
        """Return what encodes the real text of a round."""
        both = self.translators[phase.direction.reverse.name], self.translators[phase.direction.name]
        return partial(blocks.encode, phase, self.recipe, self.corpora, cursors, *both)

    def encode(self, block: Block, phase: Phase) -> Table:
        """Return the token rows of a block; rows over the limit are dropped and counted."""
        name = phase.direction.name
        seed = derive(self.recipe.seed, "audit", phase.number)
        learner = self.translators[name]
        rows, counts = of_block(block, learner.template, self.roads.get(name), learner.base.device, seed)
        if counts:
            before = self.state.roads.get(name, {})
            total = {reason: before.get(reason, 0) + counts.get(reason, 0) for reason in {*before, *counts}}
            self.state = replace(self.state, roads=self.state.roads | {name: total})
            tell_roads(self.events, phase, counts, self.recipe.tokens.road == "strings")
        limit = min(self.recipe.train.max_row_tokens, learner.base.max_positions or self.recipe.train.max_row_tokens)
        # A row without labels, such as an empty text, teaches nothing.
        fitting = [i for i, size in enumerate(rows.sizes) if rows.starts[i] < size <= limit]
        tell_left_out(self.events, phase, len(rows), len(fitting), limit)
        return rows.pick(fitting)

    def steps(self, rows: Table, phase: Phase) -> Iterator[list[int]]:
        """Yield the rows of each optimizer step of a phase, the same whenever it is asked."""
        for number in range(self._passes(phase)):
            seed = derive(self.recipe.seed, "steps", phase.number, number)
            yield from steps(rows.sizes, self.recipe.train.rows_per_step, seed)

    def _passes(self, phase: Phase) -> int:
        return self.recipe.train.parallel_passes if phase.stage == PARALLEL else 1

    @contextmanager
    def training(self, phase: Phase, rows: Table) -> Iterator[Progressing]:
        """Let the direction learn for the time of a phase, and show progress."""
        total = self._passes(phase) * math.ceil(len(rows) / self.recipe.train.rows_per_step)
        self._losses = []
        learner = self.translators[phase.direction.name].learner
        name = f"{phase.stage}: {phase.direction.name} learns"
        packing = self.recipe.train.packing
        with learner.training(packing) as self._packed, self.events.task("training", name, total) as task:
            names = attention.candidates(learner.spec.attention, learner.base.device)
            if packing == "auto" and not self._packed and names[0] in attention.READ_BOUNDS:
                self.events.say("  rows are padded: this model does not keep packed ones apart")
            if self.state.step:
                task.advance(self.state.step)
            following = self.phases[phase.number + 1 : phase.number + 2]
            for after in following:
                if after.round:
                    self._ahead.begin(after.number, self._encoding(after, self.state.cursors))
            yield task

    def step(self, phase: Phase, rows: Table, group: Sequence[int]) -> StepResult:
        """Take one optimizer step, on some of the rows; one without a finite loss and gradient changes nothing.

        Raises:
            TrainingError: there were more of those than the recipe allows.
        """
        name = phase.direction.name
        learner = self.translators[name].learner
        budget = self.state.tokens_per_forward or self.recipe.train.tokens_per_forward
        result = step(
            learner.model,
            self.optimizers[name],
            rows,
            group,
            learner.base.pad_id,
            budget,
            derive(self.recipe.seed, "dropout", phase.number, self.state.step) % 2**32,
            fused=learner.spec.liger,
            packed=self._packed,
            ranks=self.ranks,
        )
        if result.tokens_per_forward < budget:
            self.state = replace(self.state, tokens_per_forward=result.tokens_per_forward)
            self.events.say(f"  memory ran out; forward passes have {result.tokens_per_forward} tokens from here on")
            self.events.log("memory", activity="training", tokens=result.tokens_per_forward)
        if self.state.step % TRIM_EVERY == 0:
            memory.trim()
        taken = self.state.optimizer_steps
        self.state = replace(
            self.state, step=self.state.step + 1, optimizer_steps=taken | {name: taken.get(name, 0) + 1}
        )
        if not result.skipped:
            self._losses.append(result.loss)
        self.events.log(
            "step",
            direction=name,
            step=self.state.optimizer_steps[name],
            loss=_number(result.loss),
            grad_norm=_number(result.grad_norm),
            labels=result.num_labels,
            tokens=result.num_tokens,
        )
        if result.skipped:
            self._skip(phase, rows, group, result)
        return result

    def _skip(self, phase: Phase, rows: Table, group: Sequence[int], result: StepResult) -> None:
        """Count a step that changed nothing, keep its rows for a look, and end the run where they are too many."""
        name = phase.direction.name
        learner, number = self.translators[name].learner, self.state.optimizer_steps[name]
        counts = self.state.skipped
        here = self.state.skipped_here + 1
        self.state = replace(self.state, skipped=counts | {name: counts.get(name, 0) + 1}, skipped_here=here)
        losses = row_losses(
            learner.model, rows, group, learner.base.pad_id, fused=learner.spec.liger, packed=self._packed
        )
        path = self.run.skipped / f"{phase.stage}-{name}-{number:06d}.json"
        ids = [rows.ids_X[rows.offset_R[i] :][: rows.sizes[i]].tolist() for i in group]
        document = {
            "loss": _number(result.loss),
            "grad_norm": _number(result.grad_norm),
            "rows": [
                {"text": learner.base.tokenizer.decode(one), "loss": _number(loss)}
                for one, loss in zip(ids, losses, strict=True)
            ],
        }
        self._write(lambda: write_json(path, document), path)
        what = f"loss {result.loss}, gradient norm {result.grad_norm} at step {number}"
        self.events.say(f"  {what}: skipped; its rows are in {path}")
        self.events.log("skipped", direction=name, step=number, phase=phase.number)
        if here > self.recipe.train.max_skipped:
            raise TrainingError(
                f"{what}, the {here}. of this phase that had to be skipped",
                place=f"{phase.stage}, {name}",
                cure=_DIVERGED.format(self.run.skipped),
            )

    def finish(self, phase: Phase, block: Block) -> None:
        """Close a phase: the next one starts at its first step.

        Raises:
            TrainingError: none of its steps changed anything.
        """
        memory.trim()
        if self.state.skipped_here == self.state.step > 0:
            raise TrainingError(
                f"all {self.state.step} steps were skipped, since loss or gradient were not finite",
                place=f"{phase.stage}, {phase.direction.name}",
                cure=_DIVERGED.format(self.run.skipped),
            )
        here = self.run.blocks.relative_to(self.run.path).as_posix()
        self.state = replace(
            self.state,
            phase=phase.number + 1,
            step=0,
            skipped_here=0,
            files={path: value for path, value in self.state.files.items() if not path.startswith(here)},
        )
        self.events.log(
            "phase",
            stage=phase.stage,
            direction=phase.direction.name,
            rows=len(block.rows),
            mean_loss=sum(self._losses) / len(self._losses) if self._losses else None,
        )

    def save_due(self) -> bool:
        return self.state.total_steps() - self._last_save >= self.recipe.checkpoint.every_steps

    def save(self) -> None:
        """Write a checkpoint, unless the last one stands at this very place."""
        place = (self.state.phase, self.state.step)
        if place == self._saved_at:
            return
        self._saved_at = place
        self._last_save = self.state.total_steps()
        state = replace(self.state, seconds={k: round(v, 3) for k, v in self.events.seconds.items()})
        tensors = {name: optimizer.state() for name, optimizer in self.optimizers.items()}
        tensors |= {part: guard.state() for part, guard in self._guards().items()}
        keep = self.recipe.checkpoint.keep
        self._refuse_drift()
        self._write(
            lambda: checkpoint.save(self.run.checkpoints, state, tensors, keep),
            self.run.checkpoints,
            checkpoint.num_bytes(tensors),
        )

    def _write(self, write: Callable[[], object], place: Path, num_bytes: int = 0) -> None:
        """Write into the folder of the run, as one process of all; the others go on, or end, when it is there."""
        if self.ranks.first:
            self.run.disk.keep(write, place, num_bytes)
        self.ranks.of_first(None)

    def _seen(self, path: Path) -> dict[str, str]:
        """Return the hashes of what was written; it is there for all processes."""
        return self.ranks.of_first(digests(path, self.run.path) if self.ranks.first else {})

    def _refuse_drift(self) -> None:
        """Compare what was learnt with the other processes: it is summed and stepped alike, to the last bit."""
        if self.ranks.count > 1:
            for name, optimizer in self.optimizers.items():
                if len(set(self.ranks.gather(optimizer.digest()))) > 1:
                    raise TrainingError(
                        f"the weights of {name} are not the same in all processes",
                        cure="use machines of one kind, or one process; the last checkpoint is sound",
                    )

    def stop_if_asked(self) -> None:
        """Save and leave if a signal came, to whichever process.

        Raises:
            Interrupted: after saving.
        """
        if self.ranks.any(self.stop.requested):
            self.stop.ask()
            self.save()
            self.stop.leave()

    def _guards(self) -> dict[str, Guard]:
        """Return the guards of the roads by their part of a checkpoint: one, where both make rows on one device."""
        guards = {id(road.guard): road.guard for road in self.roads.values() if road.guard is not None}
        return {f"{_PAIRS}-{number}" if number else _PAIRS: guard for number, guard in enumerate(guards.values())}

    def keep_stage(self, stage: str) -> None:
        """Keep both directions as they are now: adapters in PEFT's own format, or whole models."""
        path = self.run.adapters / stage

        def write() -> None:
            with whole(path) as beside:
                for name, one in self.translators.items():
                    one.learner.export(beside / name)

        self._write(write, path)
        self.state = replace(self.state, files=self.state.files | self._seen(path))

    def begin(self) -> None:
        """Score copying the source and the bare base on dev, the floor of every comparison."""
        self.state = replace(self.state, scores={"copy": self.scorer.copies("dev")})
        self.score_dev(BASE)
        self.save()

    def score_dev(self, stage: str) -> None:
        """Score a stage on dev; the best by the mean chrF++ of both directions is kept as `best`."""
        found = self.scorer.translations("dev", stage)
        scores = self.state.scores | {stage: found}
        best = best_stage(scores)
        self.state = replace(self.state, scores=scores, best=best)
        if best == stage != BASE:
            self._write(lambda: self.run.keep_best(stage), self.run.adapters / BEST)
        self.events.log("dev", stage=stage, scores=found, best=best)
        shown = ", ".join(f"{name} chrF++ {s['chrf']:.1f} BLEU {s['bleu']:.1f}" for name, s in found.items())
        self.events.say(f"  dev after {stage}: {shown}")

    def score_test(self) -> None:
        """Score every kept stage on test, then write `metrics.json` and show the table."""
        if mean_chrf(self.state.scores[BASE]) >= mean_chrf(self.state.scores[best_stage(self.state.scores)]):
            self.events.say("  warning: no stage is better than the bare base on dev; what is kept as best is worse")
        test = {"copy": self.scorer.copies("test")}
        for stage in self.state.scores:
            if stage != "copy":
                self._restore(stage)
                test[stage] = self.scorer.translations("test", stage)
        if not self.ranks.first:
            return
        devices = {one.base.device for one in self.translators.values()}
        peak = {str(device): memory.peak(device) for device in devices}
        metrics = results.collect(self.run, self.recipe, self.corpora, self.state, test, self.events.seconds, peak)
        self.run.disk.keep(lambda: self.run.write_metrics(metrics), self.run.metrics)
        self.events.log("end", seconds=metrics["seconds"], best=metrics["best"], peak_bytes=peak)
        results.show(metrics, self.run, self.events.console)

    def close(self) -> None:
        """Let go of what runs beside the run."""
        self._ahead.close()

    def done(self) -> bool:
        """Return whether the run has come to its end before."""
        return self.state.phase == len(self.phases) and self.run.metrics.exists()

    def show(self) -> None:
        """Print the table of a finished run."""
        self.events.say("this run is complete")
        results.show(json.loads(self.run.metrics.read_text(encoding="utf-8")), self.run, self.events.console)

    def _restore(self, stage: str) -> None:
        for name, one in self.translators.items():
            one.learner.restore(None if stage == BASE else self.run.adapters / stage / name)

    def _tell(self, task: Progressing) -> Callable[[int, int], None]:
        def tell(rows: int, tokens: int) -> None:
            task.advance(rows, tokens)
            # Nothing is lost but this text: the checkpoint on disk is where it was begun.
            self.stop.leave_if_asked()

        return tell


def _number(value: float) -> float | str:
    """Return a number as JSON can hold it."""
    return value if math.isfinite(value) else str(value)


def best_stage(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return the trained stage with the best mean chrF++ of both directions, the first of equals; else the base."""
    trained = [stage for stage in scores if stage not in {"copy", BASE}]
    return max(trained, key=lambda stage: mean_chrf(scores[stage]), default=BASE)
