"""What comes behind each stage of a run: its weights are kept and scored, the best stage is chosen, and rounds that
bring nothing any more end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from roundtrip.backtranslation import reporting
from roundtrip.backtranslation.checkpoint import State
from roundtrip.backtranslation.keeping import CheckpointStore
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.backtranslation.stopping import has_stopped_improving
from roundtrip.backtranslation.validation import Scorer, mean_chrf
from roundtrip.data.corpora import Corpora
from roundtrip.engine.translator import Translator
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe.plan import BASE, TEXT, Phase, next_phase
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime import memory
from roundtrip.runtime.disk_space import report_full_disk
from roundtrip.runtime.distributed import ProcessGroup
from roundtrip.runtime.event_log import EventLog


@dataclass(frozen=True)
class ModelSelection:
    """Keeps, scores and chooses. Each method takes how far the run is, and returns how far it is then."""

    run: RunFolder
    recipe: Recipe
    corpora: Corpora
    translators: Mapping[str, Translator]
    optimizers: Mapping[str, Optimizer]
    scorer: Scorer
    keeping: CheckpointStore
    events: EventLog
    processes: ProcessGroup

    def begin(self, state: State) -> State:
        """Score copying the source and the bare base on dev, the floor of every comparison."""
        if self.recipe.blind:
            number = len(self.corpora.dev)
            self.events.say(
                f"  warning: there are no dev pairs; stages are chosen by the chrF++ of {number} lines that go there "
                "and back. Copying is perfect by it: watch the copies, and prefer a few dozen real pairs"
            )
        return self._score(replace(state, scores={"copy": self.scorer.copies("dev")}), BASE)

    def end(self, state: State, phases: list[Phase], phase: Phase) -> State:
        """Keep both directions as they are now, and score them on dev.

        Where rounds have patience and none of the last ones was better than all before, no further one begins.

        Args:
            phases, phase: of the run, and the one that ended the stage.
        """
        seen = self.keeping.stage(phase.stage, self.translators)
        state = self._score(replace(state, files=state.files | seen), phase.stage)
        patience = self.recipe.rounds.patience
        if phase.round and patience:
            means = [mean_chrf(one) for stage, one in state.scores.items() if stage not in {"copy", BASE, TEXT}]
            after = next_phase(phases, phase, enough=True)
            if has_stopped_improving(means, patience) and after != state.phase:
                self.events.say(f"  no better round for {patience}: no further one begins")
                state = replace(state, phase=after)
        return state

    def dev_loss(self, state: State, phase: Phase) -> State:
        """Look at what dev costs a direction after a pass over pairs."""
        name = phase.direction.name
        loss = self.scorer.dev_loss(phase.direction)
        seen = [*state.losses.get(name, []), loss]
        self.events.say(f"  {name}: dev costs {loss:.3f} nats a token after pass {len(seen)}")
        return replace(state, losses=state.losses | {name: seen})

    def test(self, state: State) -> None:
        """Score every kept stage on test, then write `metrics.json` and show the table."""
        # What copies comes back whole, so that without dev pairs a base may look better than it is.
        if not self.recipe.blind and mean_chrf(state.scores[BASE]) >= mean_chrf(state.scores[best_stage(state.scores)]):
            self.events.say("  warning: no stage is better than the bare base on dev; what is kept as best is worse")
        test = {"copy": self.scorer.copies("test")}
        for stage in state.scores:
            if stage != "copy":
                for name, one in self.translators.items():
                    one.direction_model.restore(None if stage == BASE else self.run.adapters / stage / name)
                test[stage] = self.scorer.translations("test", stage)
        if not self.processes.is_main:
            return
        devices = {one.base.device for one in self.translators.values()}
        peak = {str(device): memory.peak_bytes(device) for device in devices}
        metrics = reporting.collect(self.run, self.recipe, self.corpora, state, test, self.events.seconds, peak)
        with report_full_disk(self.run.metrics):
            self.run.write_metrics(metrics)
        self.events.log("end", seconds=metrics["seconds"], best=metrics["best"], peak_bytes=peak)
        reporting.show(metrics, self.run, self.events.console)

    def show(self) -> None:
        """Print the table of a finished run."""
        self.events.say("this run is complete")
        reporting.show(json.loads(self.run.metrics.read_text(encoding="utf-8")), self.run, self.events.console)

    def _score(self, state: State, stage: str) -> State:
        """Score a stage on dev; the best by the mean chrF++ of both directions is kept as `best`."""
        found = self.scorer.translations("dev", stage)
        scores = state.scores | {stage: found}
        best = best_stage(scores)
        if best == stage != BASE:
            self.keeping.best(stage)
        self.events.log("dev", stage=stage, scores=found, best=best)
        shown = ", ".join(f"{name} {_shown(one)}" for name, one in found.items())
        self.events.say(f"  {'there and back' if self.recipe.blind else 'dev'} after {stage}: {shown}")
        return replace(state, scores=scores, best=best)


def _shown(scores: Mapping[str, float]) -> str:
    copies = f" copies {scores['copied']:.0%}" if "copied" in scores else ""
    return f"chrF++ {scores['chrf']:.1f} BLEU {scores['bleu']:.1f}{copies}"


def best_stage(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return the trained stage with the best mean chrF++ of both directions, the first of equals; else the base."""
    trained = [stage for stage in scores if stage not in {"copy", BASE, TEXT}]
    trained = trained or [stage for stage in scores if stage == TEXT]
    return max(trained, key=lambda stage: mean_chrf(scores[stage]), default=BASE)
