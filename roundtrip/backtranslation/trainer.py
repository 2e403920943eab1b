"""One run under way: the verbs of the loop, and the state that they change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from roundtrip.backtranslation import examples as blocks
from roundtrip.backtranslation import skipped
from roundtrip.backtranslation.checkpoint import State
from roundtrip.backtranslation.examples import PhaseExamples
from roundtrip.backtranslation.keeping import CheckpointStore
from roundtrip.backtranslation.model_selection import ModelSelection
from roundtrip.backtranslation.reservoir import earlier_rows, path_of
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.backtranslation.stopping import has_stopped_improving, require_better_than_copy
from roundtrip.backtranslation.telling import tell_block, tell_left_out, tell_roads
from roundtrip.backtranslation.token_rows import token_rows_of
from roundtrip.backtranslation.validation import Scorer
from roundtrip.data.corpora import Corpora
from roundtrip.data.language_id import LanguageIdentifier
from roundtrip.data.sampler import Cursor
from roundtrip.engine.train_step import KLPenalty, StepResult, train_step
from roundtrip.engine.translator import Translator
from roundtrip.models import attention
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe import sampling_schedule
from roundtrip.recipe.plan import TEXT, Phase, directions, next_phase, num_steps, phases
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime import memory
from roundtrip.runtime.atomic_io import read_rows, write_json, write_rows
from roundtrip.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from roundtrip.runtime.event_log import EventLog, ProgressHandle
from roundtrip.runtime.interrupts import StopRequest
from roundtrip.runtime.prefetch import Prefetcher
from roundtrip.runtime.seeding import derive_seed
from roundtrip.tokens.batching import TokenDataset, step_batches
from roundtrip.tokens.row_builder import RowBuilder

# Steps between two times that free memory is given back, which takes some tens of milliseconds.
TRIM_EVERY = 8


class Trainer:
    """A run with everything loaded.

    Args:
        roads: by direction, how its synthetic rows are made.
        identifier: tells the languages apart, where sources are judged by it.

    Attributes:
        state: how far it is; replaced, never changed in place.
        phases: all phases of the recipe.
    """

    def __init__(
        self,
        run: RunFolder,
        recipe: Recipe,
        corpora: Corpora,
        translators: Mapping[str, Translator],
        row_builders: Mapping[str, RowBuilder],
        events: EventLog,
        stop: StopRequest,
        processes: ProcessGroup = SINGLE_PROCESS,
        identifier: LanguageIdentifier | None = None,
    ) -> None:
        self.identifier = identifier
        self.run, self.recipe, self.corpora, self.processes = run, recipe, corpora, processes
        self.translators, self.row_builders, self.events, self.stop = translators, row_builders, events, stop
        self.state = State()
        self.directions = directions(recipe)
        self.phases = phases(recipe, len(corpora.train))
        pairs = len(corpora.train)
        total = {direction.name: num_steps(recipe, pairs, direction) for direction in self.directions}
        self.optimizers = {
            name: Optimizer(one.direction_model.parameters(), recipe.train, total[name], recipe.adapter[name])
            for name, one in translators.items()
        }
        self.keeping = CheckpointStore(run, self.optimizers, row_builders, recipe.checkpoint.keep, processes)
        scorer = Scorer(run, recipe, corpora, translators, events, self._tell)
        self.stages = ModelSelection(
            run, recipe, corpora, translators, self.optimizers, scorer, self.keeping, events, processes
        )
        self._losses: list[float] = []
        self._packed = False
        self._kl_penalty: KLPenalty | None = None
        self._ahead = Prefetcher()

    def resume(self) -> None:
        """Go back to the newest whole checkpoint; nothing where there is none yet."""
        found = self.keeping.resume(self.events.say)
        if found is None:
            return
        self.state = found
        self.events.seconds = dict(found.seconds)
        at = self.phases[self.state.phase].stage if self.state.phase < len(self.phases) else "the end"
        self.events.say(f"resumed at {at}, {self.state.total_steps()} steps done")
        self.events.log("resume", phase=self.state.phase, step=self.state.step)

    def block(self, phase: Phase) -> PhaseExamples:
        """Return what a phase learns from; one that was begun before is read back, not written again."""
        path = path_of(self.run.blocks, phase)
        if phase.real:
            return blocks.of_pairs(self.corpora, phase.direction, self.recipe.languages[0])
        if self.state.step:
            return PhaseExamples(read_rows(path), self.state.cursors)
        if phase.round == 1:
            require_better_than_copy(self.recipe, self.state.scores)
        cursors = self.state.cursors
        plain = phase.stage == TEXT
        block = blocks.of_text(phase, self.recipe, self.corpora, cursors) if plain else self._round(phase, cursors)
        self.keeping.write(lambda: write_rows(path, block.rows), path)
        seen = self.keeping.seen(path)
        self.state = replace(self.state, cursors=cursors | block.cursors, files=self.state.files | seen)
        tell_block(self.events, phase, block)
        return block

    def _round(self, phase: Phase, cursors: dict[str, Cursor]) -> PhaseExamples:
        """Have the reverse direction write sources."""
        writer = phase.direction.reverse.name
        row_builder = self.row_builders[phase.direction.name]
        chrf = None if self.recipe.blind else list(self.state.scores.values())[-1][writer]["chrf"]
        settings = sampling_schedule.sampling_settings(self.recipe.generate, writer, phase.round, chrf)
        said = sampling_schedule.requested_settings(self.recipe.generate, writer, phase.round)
        self.events.say(f"  {sampling_schedule.describe_sampling(said, settings, writer, chrf)}")
        with (
            self.stages.averaged(),
            self.events.task(
                "generating", f"{phase.stage}: {writer} writes sources", self.recipe.rounds.monolingual_lines
            ) as task,
        ):
            self._ahead.need(phase.number, self._encoding(phase, cursors))
            block = blocks.of_round(
                phase,
                self.recipe,
                self.corpora,
                cursors,
                self.translators[writer],
                self.translators[phase.direction.name],
                settings,
                self._tell(task),
                earlier=earlier_rows(self.run.blocks, self.phases, phase, self.recipe.rounds.replay_examples),
                identifier=self.identifier,
                reader=row_builder.reread_template,
                on_oom_split=self.events.on_oom_split,
            )
            num_rejected = sum(block.rejected.values())
            task.advance(0, note=f"{num_rejected} rejected")
        return block

    def _encoding(self, phase: Phase, cursors: dict[str, Cursor]) -> Callable[[], None]:
        """Return what encodes the real text of a round."""
        both = self.translators[phase.direction.reverse.name], self.translators[phase.direction.name]
        return partial(blocks.encode, phase, self.recipe, self.corpora, cursors, *both)

    def encode(self, block: PhaseExamples, phase: Phase) -> TokenDataset:
        """Return the token rows of a block; rows over the limit are dropped and counted."""
        name = phase.direction.name
        seed = derive_seed(self.recipe.seed, "audit", phase.number)
        learner = self.translators[name]
        weight = self.recipe.train.synthetic_weight
        rows, counts = token_rows_of(
            block, learner.templates, self.row_builders.get(name), learner.base.device, seed, weight
        )
        if counts:
            before = self.state.row_builders.get(name, {})
            total = {reason: before.get(reason, 0) + counts.get(reason, 0) for reason in {*before, *counts}}
            self.state = replace(self.state, row_builders=self.state.row_builders | {name: total})
            tell_roads(self.events, phase, counts, self.recipe.tokens.mode == "text")
        limit = min(self.recipe.train.max_length, learner.base.max_positions or self.recipe.train.max_length)
        # A row without labels, such as an empty text, teaches nothing.
        fitting = [i for i, size in enumerate(rows.sizes) if rows.starts[i] < size <= limit]
        tell_left_out(self.events, phase, len(rows), len(fitting), limit)
        weight = self.recipe.train.kl_weight
        plain = learner.template.plain_rows([target for _, _, target in block.rows]) if weight else []
        self._kl_penalty = (
            KLPenalty(TokenDataset.of(plain, learner.base.device).pick(fitting), weight) if weight else None
        )
        return rows.pick(fitting)

    def steps(self, rows: TokenDataset, phase: Phase) -> Iterator[list[int]]:
        """Yield the rows of each optimizer step of a phase, the same whenever it is asked."""
        for number in range(phase.passes):
            seed = derive_seed(self.recipe.seed, "steps", phase.number, number)
            yield from step_batches(rows.sizes, self.recipe.train.batch_size, seed)

    @contextmanager
    def training(self, phase: Phase, rows: TokenDataset) -> Iterator[ProgressHandle]:
        """Let the direction learn for the time of a phase, and show progress."""
        total = phase.passes * math.ceil(len(rows) / self.recipe.train.batch_size)
        self._losses = []
        learner = self.translators[phase.direction.name].direction_model
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

    def step(self, phase: Phase, rows: TokenDataset, group: Sequence[int]) -> StepResult:
        """Take one optimizer step, on some of the rows; one without a finite loss and gradient changes nothing.

        Raises:
            TrainingError: there were more of those than the recipe allows.
        """
        name = phase.direction.name
        learner = self.translators[name].direction_model
        budget = self.state.max_tokens_per_microbatch or self.recipe.train.max_tokens_per_microbatch
        result = train_step(
            learner.model,
            self.optimizers[name],
            rows,
            group,
            learner.base.pad_id,
            budget,
            derive_seed(self.recipe.seed, "dropout", phase.number, self.state.step) % 2**32,
            fused=learner.spec.use_liger_kernel,
            packed=self._packed,
            smoothing=self.recipe.train.label_smoothing,
            kl_penalty=self._kl_penalty,
            processes=self.processes,
        )
        if result.max_tokens_per_microbatch < budget:
            self.state = replace(self.state, max_tokens_per_microbatch=result.max_tokens_per_microbatch)
            self.events.say(
                f"  memory ran out; forward passes have {result.max_tokens_per_microbatch} tokens from here on"
            )
            self.events.log("memory", activity="training", tokens=result.max_tokens_per_microbatch)
        if self.state.step % TRIM_EVERY == 0:
            memory.trim_heap()
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
            loss=skipped.number(result.loss),
            grad_norm=skipped.number(result.grad_norm),
            labels=result.num_labels,
            tokens=result.num_tokens,
        )
        if result.skipped:
            self._skip(phase, rows, group, result)
        return result

    def _skip(self, phase: Phase, rows: TokenDataset, group: Sequence[int], result: StepResult) -> None:
        """Count a step that changed nothing, keep its rows for a look, and end the run where they are too many."""
        name = phase.direction.name
        number, counts = self.state.optimizer_steps[name], self.state.skipped
        here = self.state.skipped_here + 1
        self.state = replace(self.state, skipped=counts | {name: counts.get(name, 0) + 1}, skipped_here=here)
        document = skipped.document(result, self.translators[name], rows, group, packed=self._packed)
        path = self.run.skipped / f"{phase.stage}-{name}-{number:06d}.json"
        self.keeping.write(lambda: write_json(path, document), path)
        what = f"loss {result.loss}, gradient norm {result.grad_norm} at step {number}"
        self.events.say(f"  {what}: skipped; its rows are in {path}")
        self.events.log("skipped", direction=name, step=number, phase=phase.number)
        skipped.refuse_more(here, self.recipe.train.max_nonfinite_steps, what, phase, self.run.skipped)

    def phase(self) -> Phase | None:
        """Return the phase that is next or under way; None behind the last one."""
        return self.phases[self.state.phase] if self.state.phase < len(self.phases) else None

    def finish(self, phase: Phase, block: PhaseExamples) -> bool:
        """Close a phase: the next one starts at its first step.

        Returns:
            Whether its stage ends here.

        Raises:
            TrainingError: none of its steps changed anything.
        """
        memory.trim_heap()
        skipped.refuse_all(self.state.skipped_here, self.state.step, phase, self.run.skipped)
        if phase.stage == TEXT and self.recipe.one_start:
            self._share_start(phase.direction.name)
        enough = self._enough_passes(phase)
        # The rows of a round are read again where a later one may learn from them.
        old = (
            ""
            if phase.round and self.recipe.rounds.replay_examples
            else self.run.blocks.relative_to(self.run.path).as_posix()
        )
        self.state = replace(
            self.state,
            phase=next_phase(self.phases, phase, enough=enough),
            step=0,
            skipped_here=0,
            files={path: value for path, value in self.state.files.items() if not old or not path.startswith(old)},
        )
        self.events.log(
            "phase",
            stage=phase.stage,
            direction=phase.direction.name,
            rows=len(block.rows),
            mean_loss=sum(self._losses) / len(self._losses) if self._losses else None,
        )
        ends = enough or phase.ends_stage
        if ends:
            self.state = replace(self.state, losses={})
        return ends

    def _share_start(self, name: str) -> None:
        """Let the other direction begin with what one has learnt from plain text."""
        for other in self.optimizers.keys() - {name}:
            self.optimizers[other].copy_from(self.optimizers[name])
            taken = self.state.optimizer_steps
            self.state = replace(self.state, optimizer_steps=taken | {other: taken[name]})

    def _enough_passes(self, phase: Phase) -> bool:
        """Look at dev after a pass over pairs, where passes end at a stall; return whether both directions have."""
        if not (phase.real and self.recipe.train.patience):
            return False
        self.state = self.stages.dev_loss(self.state, phase)
        if phase.direction != self.directions[-1]:
            return False
        enough = all(
            has_stopped_improving(values, self.recipe.train.patience, lower=True)
            for values in self.state.losses.values()
        )
        if enough and not phase.ends_stage:
            self.events.say(
                f"  {phase.stage}: no pass has made dev cheaper for {self.recipe.train.patience}; it ends here"
            )
        return enough

    def save_due(self) -> bool:
        return self.keeping.steps_since(self.state) >= self.recipe.checkpoint.every_steps

    def save(self) -> None:
        """Write a checkpoint, unless the last one stands at this very place."""
        seconds = {activity: round(value, 3) for activity, value in self.events.seconds.items()}
        self.keeping.save(replace(self.state, seconds=seconds))

    def stop_if_asked(self) -> None:
        """Save and leave if a signal came, to whichever process.

        Raises:
            Interrupted: after saving.
        """
        if self.processes.any(self.stop.requested):
            self.stop.ask()
            self.save()
            self.stop.leave()

    def begin(self) -> None:
        """Score copying the source and the bare base on dev, the floor of every comparison."""
        self.state = self.stages.begin(self.state)
        self.save()

    def end_stage(self, phase: Phase) -> None:
        """Keep and score what the stage of a phase has come to; rounds that bring nothing any more may end here."""
        self.state = self.stages.end(self.state, self.phases, phase)

    def score_test(self) -> None:
        """Score every kept stage on test, then write `metrics.json` and show the table."""
        self.stages.test(self.state)

    def close(self) -> None:
        """Let go of what runs beside the run."""
        self._ahead.close()

    def done(self) -> bool:
        """Return whether the run has come to its end before."""
        return self.state.phase == len(self.phases) and self.run.metrics.exists()

    def show(self) -> None:
        """Print the table of a finished run."""
        self.stages.show()

    def _tell(self, task: ProgressHandle) -> Callable[[int, int], None]:
        def tell(rows: int, tokens: int) -> None:
            task.advance(rows, tokens)
            # Nothing is lost but this text: the checkpoint on disk is where it was begun.
            self.stop.leave_if_asked()

        return tell
