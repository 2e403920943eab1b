"""The control: pairs alone, from where the rounds began and for as many steps, in the same run and chosen alike."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from roundtrip.backtranslation import checkpoint, dev_scoring
from roundtrip.backtranslation.context import RunContext
from roundtrip.backtranslation.export import export
from roundtrip.backtranslation.model_selection import compared_stages
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.backtranslation.trainer import PhaseJob, Trainer
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe.schema import Train
from roundtrip.runtime.errors import Interrupted, RunError
from roundtrip.runtime.event_log import EventLog
from tests.conftest import RECIPE, WriteRecipe, toy_pairs
from tests.runs import NAMES, assert_same, end_state, go, read_events

# Two rounds of which half the sources are rejected, and a last stage of pairs.
ROUNDS = ("rounds.count=2", "filter.min_round_trip_chrf=30.0", "train.final_epochs=1")
CONTROL = (*ROUNDS, "evaluation.control=true")
STAGES = ["round-1", "round-2", "final"]
CONTROLS = ["control-1", "control-2", "control-final"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Path, str]:
    """The folder of two finished runs, `without` and `with` a control, and what the second one showed."""
    folder = tmp_path_factory.mktemp("control")
    (folder / "toy.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in toy_pairs()), encoding="utf-8")
    (folder / "small.toml").write_text(RECIPE.format(model=model_folder), encoding="utf-8")
    go(folder / "small.toml", folder / "without", overrides=ROUNDS)
    return folder, go(folder / "small.toml", folder / "with", overrides=CONTROL)


def test_the_control_changes_nothing_of_the_rounds(both: tuple[Path, str]) -> None:
    without, with_control = both[0] / "without", both[0] / "with"
    metrics, other = (json.loads((run / "metrics.json").read_text()) for run in (with_control, without))
    for stage in ("parallel", *STAGES):
        for path in sorted((without / "adapters" / stage).rglob("*")):
            if path.is_file():
                assert path.read_bytes() == (with_control / path.relative_to(without)).read_bytes()
        assert metrics["dev"][stage] == other["dev"][stage] and metrics["test"][stage] == other["test"][stage]
    for key in ("steps", "token_rows", "comparison"):
        assert metrics[key] == other[key]
    assert other["control"] == {} and not list((without / "adapters").glob("control*"))
    assert list(metrics["dev"]) == list(metrics["test"]) == ["copy", "base", "parallel", *STAGES, *CONTROLS]


METHODS = {
    "lora": (),
    "full": (("rank = 4\n", 'method = "full"\n'), ("[model]\n", "[model]\nshared = false\n")),
    "pissa": (("rank = 4\n", 'method = "pissa"\nrank = 4\n'), ("[model]\n", "[model]\nshared = false\n")),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_control_starts_with_the_weights_and_moments_that_the_rounds_start_with(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    before: dict[tuple[str, str], tuple[dict[str, torch.Tensor], int]] = {}
    original = Trainer.train_step

    def train_step(self: Trainer, job: PhaseJob, rows: list[int]) -> None:
        optimizer = self.optimizers[job.phase.direction.name]
        if self.state.step == 0:
            state = {name: value.clone() for name, value in optimizer.state().items()}
            before[job.phase.stage, job.phase.direction.name] = state, optimizer.step_number
        original(self, job, rows)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    go(write_recipe(*METHODS[method]), tmp_path / "run", overrides=("evaluation.control=true",))
    for name in NAMES:
        (ours, our_step), (theirs, their_step) = before["control-1", name], before["round-1", name]
        assert our_step == their_step == 2 and ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert any(key.startswith("exp_avg") for key in ours)


def steps(run: Path, stage: str, name: str) -> list[dict[str, Any]]:
    """Return the steps of a direction in a stage."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    phases, taken = [], []
    for event in events:
        if event["event"] == "step":
            taken.append(event)
        elif event["event"] == "phase":
            phases += taken if (event["stage"], event["direction"]) == (stage, name) else []
            taken = []
    return phases


def test_the_control_takes_the_steps_and_learning_rates_of_the_rounds_on_pairs_alone(both: tuple[Path, str]) -> None:
    run = both[0] / "with"
    assert {event["stage"] for event in read_events(run, "examples")} == {"round-1", "round-2"}
    for name in NAMES:
        for stage, control in zip(STAGES, CONTROLS, strict=True):
            theirs, ours = steps(run, stage, name), steps(run, control, name)
            assert [each["step"] for each in ours] == [each["step"] for each in theirs] != []
            assert [each["lr"] for each in ours] == [each["lr"] for each in theirs]
        kept, rejected = (
            sum(event["synthetic"] if key == "kept" else sum(event["rejected"].values()) for event in of_direction)
            for of_direction in [[e for e in read_events(run, "examples") if e["direction"] == name]]
            for key in ("kept", "rejected")
        )
        assert kept and rejected, "or the steps of the plan would do"


def test_the_report(both: tuple[Path, str], tmp_path: Path) -> None:
    folder, shown = both
    run = RunFolder(folder / "with")
    metrics = json.loads(run.metrics.read_text())
    for name in NAMES:
        dev = {stage: metrics["dev"][stage][name]["chrf"] for stage in metrics["dev"]}
        control = metrics["control"][name]
        assert control["part"] == "test" and {each["metric"] for each in control["metrics"]} == {"BLEU", "chrF++"}
        assert control["system"] == max(["parallel", *STAGES], key=dev.__getitem__)
        assert control["baseline"] == max(["parallel", *CONTROLS], key=dev.__getitem__)
        chrf = next(each for each in control["metrics"] if each["metric"] == "chrF++")
        for key in ("system", "baseline"):
            assert chrf[key] == pytest.approx(metrics["test"][control[key]][name]["chrf"])
        assert f"{name}, rounds ({control['system']}) against as many steps on pairs alone" in shown
        export(run.path, name, tmp_path / name)
        card = (tmp_path / name / "README.md").read_text()
        assert "## What the rounds bring" in card and f"({control['baseline']}), on test" in card
    assert shown.count(", pairs only") == 3 and "control-final, pairs only" in shown


@pytest.mark.parametrize("at", range(6))
def test_resumed_inside_of_the_control_a_run_is_the_same(
    both: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Stopped after a step, or while a stage is scored, the last one before the control among them."""
    recipe, calls = both[0] / "small.toml", [0]

    def stopping(original: Any, is_due: Any) -> Any:
        def call(*arguments: Any, **settings: Any) -> Any:
            if is_due(*arguments):
                calls[0] += 1
                if calls[0] == 1 + at // 2:
                    os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments, **settings)

        return call

    def is_scored(context: RunContext, part: str, stage: str) -> bool:
        return part == "dev" and stage in {"final", "control-1", "control-2"}

    def is_trained(trainer: Trainer, job: PhaseJob, rows: list[int]) -> bool:
        return job.phase.stage == CONTROLS[at // 2]

    if at % 2:
        monkeypatch.setattr(dev_scoring, "score_translations", stopping(dev_scoring.score_translations, is_scored))
    else:
        monkeypatch.setattr(Trainer, "train_step", stopping(Trainer.train_step, is_trained))
    with pytest.raises(Interrupted):
        go(recipe, tmp_path / "run", overrides=CONTROL)
    monkeypatch.undo()
    go(recipe, tmp_path / "run", resume=True, overrides=CONTROL)
    assert_same(end_state(tmp_path / "run"), end_state(both[0] / "with"))
    resumed, whole = (RunFolder(run).results()["control"] for run in (tmp_path / "run", both[0] / "with"))
    assert resumed == whole


def stop_in(stage: str, patch: pytest.MonkeyPatch) -> None:
    """Let the first step of a stage be the last one."""
    original = Trainer.train_step

    def train_step(self: Trainer, job: Any, rows: Any) -> None:
        original(self, job, rows)
        if job.phase.stage == stage:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(Trainer, "train_step", train_step)


@pytest.fixture(scope="module")
def stopped(both: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second round."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_in("round-2", patch)
        go(both[0] / "small.toml", run, overrides=CONTROL)
    return run


def test_the_start_of_the_control_is_kept_until_no_checkpoint_needs_it(both: tuple[Path, str], stopped: Path) -> None:
    names = checkpoint.names(stopped / "checkpoints")
    assert names[0] == "0002-000000" and len(names) == 3, "besides the two newest ones"
    names = checkpoint.names(both[0] / "with" / "checkpoints")
    assert len(names) == 2 and names[0] > "0008-000000"
    assert not any(name.startswith("checkpoints/") for name in RunFolder(both[0] / "with").manifest().files)


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_a_damaged_start_of_the_control_is_named_at_once(
    both: tuple[Path, str], stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    start = run / "checkpoints" / "0002-000000"
    if damage == "removed":
        shutil.rmtree(start)
    else:
        path = start / "en-es.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    lines = list[str]()
    with monkeypatch.context() as patch, pytest.raises(RunError, match="the control cannot start from it"):
        patch.setattr(EventLog, "say", lambda self, text: lines.append(text))
        go(both[0] / "small.toml", run, resume=True, overrides=CONTROL)
    warnings = [line for line in lines if "warning: the control cannot start from" in line]
    assert len(warnings) == 1 and str(start) in warnings[0]
    assert not any("is skipped" in line for line in lines), "what was trained since is not damaged"
    shutil.rmtree(start, ignore_errors=True)
    shutil.copytree(stopped / "checkpoints" / start.name, start)
    go(both[0] / "small.toml", run, resume=True, overrides=CONTROL)
    assert_same(end_state(run), end_state(both[0] / "with"))


def test_a_start_of_the_control_that_is_lost_during_the_run_is_named(
    both: tuple[Path, str], stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained is not lost: restored, the run continues."""
    run, start = shutil.copytree(stopped, tmp_path / "run"), stopped / "checkpoints" / "0002-000000"
    score = dev_scoring.score_translations

    def scores(context: RunContext, part: str, stage: str) -> Any:
        if stage == "final":
            shutil.rmtree(run / "checkpoints" / start.name, ignore_errors=True)
        return score(context, part, stage)

    monkeypatch.setattr(dev_scoring, "score_translations", scores)
    with pytest.raises(RunError, match="the control cannot start from it: complete.json is missing"):
        go(both[0] / "small.toml", run, resume=True, overrides=CONTROL)
    monkeypatch.undo()
    shutil.copytree(start, run / "checkpoints" / start.name)
    go(both[0] / "small.toml", run, resume=True, overrides=CONTROL)
    assert_same(end_state(run), end_state(both[0] / "with"))


def test_rounds_that_do_not_beat_the_control_are_named_and_not_kept(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of en-es the control is better, and es-en is best before either; there are no test pairs."""
    score = dev_scoring.score_translations
    best = {"en-es": "control-1", "es-en": "parallel"}

    def scores(context: RunContext, part: str, stage: str) -> Any:
        real = score(context, part, stage)
        return {name: real[name] | {"chrf": 50.0 + (best[name] == stage)} for name in NAMES}

    monkeypatch.setattr(dev_scoring, "score_translations", scores)
    recipe, overrides = write_recipe(("test = 12", "test = 0")), ("evaluation.control=true",)
    shown = go(recipe, tmp_path / "run", overrides=overrides)
    run = RunFolder(tmp_path / "run")
    metrics = run.results()
    assert metrics["best"] == best and run.has_best(best) and metrics["test"] == metrics["comparison"] == {}
    kept = {name: (metrics["control"][name]["baseline"], metrics["control"][name]["system"]) for name in NAMES}
    assert kept == {"en-es": ("control-1", "parallel"), "es-en": ("parallel", "parallel")}
    assert metrics["control"]["es-en"]["metrics"][0]["p_value"] == 1.0
    for text in (
        "en-es, rounds (parallel) against as many steps on pairs alone (control-1), on dev, which chose both, paired",
        "en-es: on dev the rounds do not beat training on pairs alone for as many steps; its weights are those of",
        "es-en: on dev neither the rounds nor as many steps on pairs alone improve on parallel",
    ):
        assert text in shown and text in go(recipe, run.path, resume=True, overrides=overrides)
    export(run.path, "en-es", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Stage `control-1`" in card and "on parallel text" in card and "on dev, which chose both" in card


def test_what_came_before_the_rounds_is_compared_for_both() -> None:
    def compared(**chrf: float) -> tuple[str, str]:
        scores = {stage.replace("_", "-"): {"en-es": {"chrf": value}} for stage, value in chrf.items()}
        untrained = {stage: {"en-es": {"chrf": 99.0}} for stage in ("copy", "base")}
        return compared_stages({**untrained, **scores})["en-es"]

    assert compared(parallel=1, round_1=3, round_2=2, control_1=2, control_2=4) == ("control-2", "round-1")
    assert compared(parallel=5, round_1=3, control_1=4) == ("parallel", "parallel")
    assert compared(round_1=3, final=4, control_1=5, control_final=5) == ("control-1", "final")
    assert compared_stages({"copy": {"en-es": {"chrf": 1.0}}, "parallel": {"en-es": {"chrf": 2.0}}}) == {}


def test_the_control_follows_rounds_and_epochs_that_end_early(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of four rounds and the second of four last epochs bring nothing; the warm-up has one epoch."""
    losses = {name: [3.0, 3.0, 3.5] for name in NAMES}
    score = dev_scoring.score_translations

    def scores(context: RunContext, part: str, stage: str) -> Any:
        return {name: of | {"chrf": 5.0} for name, of in score(context, part, stage).items()}

    monkeypatch.setattr(dev_scoring, "dev_loss", lambda context, direction: losses[direction.name].pop(0))
    monkeypatch.setattr(dev_scoring, "score_translations", scores)
    overrides = ("rounds.count=4", "rounds.monolingual_lines=4", "train.patience=1", "train.final_epochs=4")
    go(write_recipe(), tmp_path / "run", overrides=(*overrides, "evaluation.control=true"))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["dev"])[2:] == ["parallel", "round-1", "final", "control-1", "control-final"]
    for name in NAMES:
        assert losses[name] == [], "the control has no patience"
        for stage in ("1", "final"):
            theirs = steps(tmp_path / "run", stage if stage == "final" else "round-1", name)
            ours = steps(tmp_path / "run", f"control-{stage}", name)
            assert [each["lr"] for each in ours] == [each["lr"] for each in theirs] != []


def test_rounds_may_begin_with_the_bare_base(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = write_recipe()
    overrides = ("train.parallel_epochs=0", "rounds.monolingual_lines=9")
    go(recipe, tmp_path / "run", overrides=(*overrides, "evaluation.control=true"))
    for name in NAMES:
        ours, theirs = (steps(tmp_path / "run", stage, name) for stage in ("control-1", "round-1"))
        assert [each["step"] for each in ours] == [each["step"] for each in theirs] == [1]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["dev"])[2:] == ["round-1", "control-1"]


def test_an_optimizer_that_returns_to_its_first_step_has_no_moments() -> None:
    def step(optimizer: Optimizer, weight: torch.nn.Parameter) -> torch.Tensor:
        weight.grad = torch.tensor([[1.0, -2.0]])
        optimizer.step(1.0)
        return weight.detach().clone()

    weight = torch.nn.Parameter(torch.ones(1, 2))
    optimizer = Optimizer({"weight": weight}, Train(), 10)
    start = {name: value.clone() for name, value in optimizer.state().items()}
    first, second = step(optimizer, weight), step(optimizer, weight)
    assert not torch.equal(first, second)
    optimizer.restore(start, 0)
    assert torch.equal(step(optimizer, weight), first) and torch.equal(step(optimizer, weight), second)
