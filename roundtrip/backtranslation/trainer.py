"""A run in progress: the verbs of the loop, and the state that they replace."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from roundtrip.backtranslation import model_selection, reporting
from roundtrip.backtranslation.checkpoint import CheckpointStore, State
from roundtrip.backtranslation.context import RunContext
from roundtrip.backtranslation.examples import Example, PhaseExamples, examples_path
from roundtrip.backtranslation.synthesis import Synthesizer
from roundtrip.backtranslation.token_rows import build_token_rows, fitting_rows
from roundtrip.engine.kl_penalty import KLPenalty
from roundtrip.engine.train_step import StepResult, StepSettings, row_losses, train_step
from roundtrip.engine.translator import Translator
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe import plan
from roundtrip.recipe.plan import INITIAL, PRETRAIN, Phase
from roundtrip.recipe.schema import Train
from roundtrip.runtime import memory
from roundtrip.runtime.atomic_io import read_rows, write_json, write_rows
from roundtrip.runtime.errors import TrainingError, quantity
from roundtrip.runtime.event_log import ProgressHandle
from roundtrip.runtime.seeding import derive_seed
from roundtrip.tokens.batching import TokenDataset, step_batches
from roundtrip.tokens.row_builder import SPLICED

# Steps between two releases of free memory, each of which takes some tens of milliseconds.
TRIM_EVERY = 8
# Of one phase; with more steps without effect the run ends.
MAX_NONFINITE_STEPS = 10


@dataclass(frozen=True)
class PhaseJob:
    """What the train steps of one phase need."""

    phase: Phase
    translator: Translator  # of the direction that trains
    dataset: TokenDataset  # its token rows, on its device
    batches: list[list[int]]  # the rows of each optimizer step, in order
    settings: StepSettings
    steps_before: int  # optimizer steps that the plan has for this direction before this phase
    planned_steps: int  # those that it has in this phase
    progress: ProgressHandle
    losses: list[float] = field(default_factory=list)  # of each finite step


class Trainer:
    """A run with everything loaded, and its state, which is replaced and never changed in place."""

    def __init__(self, context: RunContext) -> None:
        self.context, self.recipe, self.events = context, context.recipe, context.events
        self.state = State()
        self.phases = plan.phases(self.recipe, len(context.corpora.train))
        steps = plan.num_steps(self.recipe, len(context.corpora.train))
        self.optimizers = {
            name: Optimizer(each.direction_model.parameters(), self.recipe.train, steps, self.recipe.adapter[name])
            for name, each in context.translators.items()
        }
        self.checkpoints = CheckpointStore(context, self.optimizers, self.phases)
        self.synthesizer = Synthesizer(context, self.phases)

    def resume(self) -> None:
        """Restore the newest complete checkpoint; nothing where there is none yet."""
        if state := self.checkpoints.resume():
            self.state = state
            stage = phase.stage if (phase := self.next_phase()) else "the end"
            self.events.say(f"resumed at {stage}, {quantity(state.total_steps(), 'step')} done")
            self.events.log("resume", phase=state.phase, step=state.step)

    def next_phase(self) -> Phase | None:
        """Return the phase that is next or in progress; None after the last one."""
        return self.phases[self.state.phase] if self.state.phase < len(self.phases) else None

    def save(self) -> None:
        self.checkpoints.save(self.state)

    def save_if_due(self) -> None:
        """Write a checkpoint every `checkpoint.every_steps`, and where a signal asks the run to stop."""
        if self.checkpoints.steps_since_save(self.state) >= self.recipe.checkpoint.every_steps:
            self.save()
        self.stop_if_requested()

    def stop_if_requested(self) -> None:
        """Save and raise `Interrupted` if a signal came, to whichever process."""
        stop = self.context.stop
        if any(self.context.processes.gather(stop.requested)):
            stop.request()
            self.save()
            stop.raise_if_requested()

    def read_back(self, phase: Phase) -> PhaseExamples | None:
        """Return the examples of a phase that has taken steps before, as it wrote them; otherwise None."""
        if phase.parallel or not self.state.step:
            return None
        rows = read_rows(examples_path(self.context.run.examples, phase))
        return PhaseExamples([Example(kind, source, target) for kind, source, target in rows], self.state.cursors)

    def keep_examples(self, phase: Phase, made: PhaseExamples) -> PhaseExamples:
        """Write the examples of a phase, but for parallel pairs, and report them."""
        if phase.parallel:
            return made
        path = examples_path(self.context.run.examples, phase)
        rows = [[example.kind, example.source, example.target] for example in made.examples]
        files = self.state.files | self.context.write(lambda: write_rows(path, rows), path)
        self.state = replace(self.state, cursors=self.state.cursors | made.cursors, files=files)
        reporting.report_examples(self.events, phase, made)
        return made

    @contextmanager
    def prepare(self, phase: Phase, phase_examples: PhaseExamples) -> Iterator[PhaseJob]:
        """Build the token rows of a phase, and put its direction into train mode while the job is done."""
        name = phase.direction.name
        translator = self.context.translators[name]
        all_rows, fitting = self._build_rows(phase, phase_examples)
        dataset, targets = all_rows.select(fitting), [phase_examples.examples[i].target for i in fitting]
        batches = self._batches(phase, dataset)
        model, text = translator.direction_model, f"{phase.stage}: training {name}"
        reasons: list[str] = []
        with model.training(reasons.append) as packed, self.events.task("training", text, len(batches)) as progress:
            if reasons:
                self.events.say(f"  rows are {'packed' if packed else 'padded'}: {'; '.join(reasons)}")
            progress.advance(self.state.step)
            settings = step_settings(translator, self.recipe.train, targets, packed=packed)
            for following in self.phases[phase.number + 1 : phase.number + 2]:
                if following.round:
                    self.synthesizer.encode_ahead(following, self.state)
            num_pairs = len(self.context.corpora.train)
            # The control has the learning rates of what it stands for.
            steps_before = plan.num_steps(self.recipe, num_pairs, before=phase.control_for or phase)
            planned_steps = plan.num_phase_steps(self.recipe, phase, num_pairs)
            yield PhaseJob(phase, translator, dataset, batches, settings, steps_before, planned_steps, progress)

    def train_step(self, job: PhaseJob, rows: Sequence[int]) -> None:
        """Take one optimizer step; one without a finite loss and gradient changes nothing and is recorded."""
        name, step, settings = job.phase.direction.name, self.state.step, job.settings
        optimizer, model = self.optimizers[name], job.translator.direction_model.model
        budget = self.state.max_tokens_per_microbatch or settings.max_tokens_per_microbatch
        # A phase with fewer rows than planned, since sources were rejected, covers its part of the plan all the same.
        planned_step = job.steps_before + job.planned_steps * step / len(job.batches)
        settings = replace(settings, max_tokens_per_microbatch=budget, planned_step=planned_step)
        lr = optimizer.learning_rate(planned_step)
        seed = derive_seed(self.recipe.seed, "dropout", job.phase.number, step) % 2**32
        result = train_step(model, optimizer, job.dataset, rows, settings, seed=seed)
        if result.max_tokens_per_microbatch < budget:
            budget = result.max_tokens_per_microbatch
            self.state = replace(self.state, max_tokens_per_microbatch=budget)
            self.events.say(f"  out of memory; from here on microbatches have at most {budget} tokens")
            self.events.log("memory", activity="training", tokens=budget)
        if step % TRIM_EVERY == 0:
            memory.trim_heap()
        steps = self.state.optimizer_steps | {name: self.state.optimizer_steps.get(name, 0) + 1}
        self.state = replace(self.state, step=step + 1, optimizer_steps=steps)
        loss, grad_norm = json_number(result.loss), json_number(result.grad_norm)
        figures = {"step": steps[name], "lr": lr, "loss": loss, "grad_norm": grad_norm}
        sizes = {"labels": result.num_labels, "tokens": result.num_tokens}
        self.events.log("step", direction=name, stage=job.phase.stage, **figures, **sizes)
        if result.nonfinite:
            self._record_nonfinite(job, rows, result)
        else:
            job.losses.append(result.loss)
        job.progress.advance(1, result.num_tokens, f"loss {result.loss:.3f}")

    def end_phase(self, job: PhaseJob) -> bool:
        """Close a phase, so that the next one starts at its first step; return whether its stage ends here."""
        phase, run, num_steps = job.phase, self.context.run, self.state.step
        if phase.ends_stage or (phase.parallel and plan.epochs_may_end_early(self.recipe)):
            self.save()  # scoring comes next, and a signal may stop it
        memory.trim_heap()
        if self.state.nonfinite_in_phase == num_steps > 0:
            problem = f"all {quantity(num_steps, 'step')} of this phase had a non-finite loss or gradient"
            raise self._too_many_nonfinite(phase, problem)
        if phase.stage == PRETRAIN and self.recipe.shared_start:
            # The reverse direction starts from what this one has learned from monolingual text.
            name, reverse, steps = phase.direction.name, phase.direction.reverse.name, self.state.optimizer_steps
            self.optimizers[reverse].restore(self.optimizers[name].state(), self.optimizers[name].step_number)
            self.state = replace(self.state, optimizer_steps=steps | {reverse: steps[name]})
        self.state, stop_early = model_selection.end_epochs(self.context, self.state, phase)
        # The examples of a round are read again where a later one may replay them.
        keep = bool(phase.round and self.recipe.rounds.replay_examples)
        prefix = run.examples.relative_to(run.path).as_posix()
        files = {path: digest for path, digest in self.state.files.items() if keep or not path.startswith(prefix)}
        taken = self.state.phase_steps | {phase.number: num_steps}
        after = plan.next_phase(self.phases, phase, stop_early=stop_early, trained=taken)
        ends_stage = after == len(self.phases) or self.phases[after].stage != phase.stage
        self.state = replace(self.state, phase=after, step=0, phase_steps=taken, nonfinite_in_phase=0, files=files)
        if ends_stage:
            self.state = replace(self.state, dev_losses={})
        mean_loss, rows = sum(job.losses) / len(job.losses) if job.losses else None, len(job.dataset)
        self.events.log("phase", stage=phase.stage, direction=phase.direction.name, rows=rows, mean_loss=mean_loss)
        return ends_stage

    def _batches(self, phase: Phase, dataset: TokenDataset) -> list[list[int]]:
        """Return the rows of each optimizer step of a phase, in order.

        The control takes as many steps as the phase that it stands for has taken, and reads epoch after epoch.
        """
        batch_size, batches = self.recipe.train.batch_size, list[list[int]]()
        if phase.control_for is None:
            for epoch in range(phase.epochs):
                seed = derive_seed(self.recipe.seed, "steps", phase.number, epoch)
                batches += step_batches(dataset.sizes, batch_size, seed)
            return batches
        taken, name = self.state.phase_steps, phase.direction.name
        own = [each.control_for for each in self.phases[: phase.number] if each.direction == phase.direction]
        start = sum(taken.get(each.number, 0) for each in own if each is not None)
        end, epoch = start + taken[phase.control_for.number], 0
        while len(batches) < end:
            batches += step_batches(dataset.sizes, batch_size, derive_seed(self.recipe.seed, "control", name, epoch))
            epoch += 1
        return batches[start:end]

    def _build_rows(self, phase: Phase, phase_examples: PhaseExamples) -> tuple[TokenDataset, list[int]]:
        """Return the token rows of a phase, and those that fit; longer ones are left out and counted."""
        name = phase.direction.name
        translator = self.context.translators[name]
        builder, seed = self.context.row_builders.get(name), derive_seed(self.recipe.seed, "audit", phase.number)
        rows, counts = build_token_rows(phase_examples.examples, translator, builder, seed)
        if counts:
            total = Counter(self.state.token_rows.get(name, {})) + counts
            self.state = replace(self.state, token_rows=self.state.token_rows | {name: dict(total)})
            self.events.log("token_rows", stage=phase.stage, direction=name, rows=dict(counts))
            by_text = {reason: count for reason, count in counts.items() if reason != SPLICED}
            if by_text and self.recipe.tokens.mode != "text":
                num_rows, num_by_text = counts.total(), sum(by_text.values())
                self.events.say(f"  {num_by_text} of {num_rows} synthetic rows took the text path: {by_text}")
        fitting, limit = fitting_rows(rows, translator, self.recipe.train.max_length, place=phase.stage)
        if num_left_out := len(rows) - len(fitting):
            self.events.say(f"  {quantity(num_left_out, 'row')} over {limit} tokens left out")
            self.events.log("rows_left_out", stage=phase.stage, number=num_left_out)
        return rows, fitting

    def _record_nonfinite(self, job: PhaseJob, rows: Sequence[int], result: StepResult) -> None:
        """Count a step without effect, record its rows by text and loss, and end the run where there are too many."""
        phase, name = job.phase, job.phase.direction.name
        step, in_phase = self.state.optimizer_steps[name], self.state.nonfinite_in_phase + 1
        counts = self.state.nonfinite_steps | {name: self.state.nonfinite_steps.get(name, 0) + 1}
        self.state = replace(self.state, nonfinite_steps=counts, nonfinite_in_phase=in_phase)
        losses = row_losses(job.translator.direction_model.model, job.dataset, rows, job.settings)
        ids = [job.dataset.ids_X[job.dataset.offset_R[row] :][: job.dataset.sizes[row]].tolist() for row in rows]
        texts = map(job.translator.base.tokenizer.decode, ids)
        shown = [{"text": text, "loss": json_number(loss)} for text, loss in zip(texts, losses, strict=True)]
        document = {"loss": json_number(result.loss), "grad_norm": json_number(result.grad_norm), "rows": shown}
        path = self.context.run.nonfinite_steps / f"{phase.stage}-{name}-{step:06d}.json"
        self.context.write(lambda: write_json(path, document), path)
        figures = f"step {step}: loss {result.loss}, gradient norm {result.grad_norm}"
        self.events.say(f"  {figures}: no update; its rows are in {path}")
        self.events.log("nonfinite_step", direction=name, step=step, phase=phase.number)
        if in_phase > (limit := MAX_NONFINITE_STEPS):
            steps = f"{quantity(in_phase, 'step')} of this phase"
            problem = f"{steps} had a non-finite loss or gradient (limit: {limit}); {figures}"
            raise self._too_many_nonfinite(phase, problem)

    def _too_many_nonfinite(self, phase: Phase, problem: str) -> TrainingError:
        look = f"look at the rows in {self.context.run.nonfinite_steps}; the weights are those of the last finite step"
        cure = f"{look}: lower train.lr, or set model.dtype = 'float32', and start a new run"
        return TrainingError(problem, place=f"{phase.stage}, {phase.direction.name}", cure=cure)

    def score_baseline(self) -> None:
        """Score on dev copying the source, the bare base, and the adapters to start from, as far as it is not done."""
        if not self.state.best:
            self.state = model_selection.score_baseline(self.context, self.state)
            self.save()
        # Weights are kept only once there is a checkpoint, which a run that has results needs to be resumed.
        if self.recipe.begins_with_adapters and INITIAL not in self.state.scores:
            self.state = model_selection.score_initial(self.context, self.state)

    def validate_and_keep_best(self, phase: Phase) -> None:
        """Keep and score what a stage has come to; rounds that bring no improvement may end here.

        Where the control is next, both directions return to where the rounds began.
        """
        self.state = model_selection.end_stage(self.context, self.state, self.phases, phase)
        following = self.next_phase()
        if following is not None and following.control_for is not None and phase.control_for is None:
            self.state = self.checkpoints.begin_control(self.state)
            self.events.say("control: back to where the rounds began, now as many steps on parallel pairs alone")


def json_number(value: float) -> float | str:
    """Return a number as JSON can hold it."""
    return value if math.isfinite(value) else str(value)


def step_settings(translator: Translator, train: Train, targets: Sequence[str], *, packed: bool) -> StepSettings:
    """Return how a direction takes its steps on rows with these targets."""
    penalty = None
    if train.kl_weight:
        rows = TokenDataset.of(translator.template.plain_rows(targets), translator.base.device)
        penalty = KLPenalty(rows, train.kl_weight)
    return StepSettings(
        pad_id=translator.base.pad_id,
        max_tokens_per_microbatch=train.max_tokens_per_microbatch,
        fused_loss=translator.direction_model.spec.use_liger_kernel,
        packed=packed,
        kl_penalty=penalty,
        processes=translator.processes,
    )
