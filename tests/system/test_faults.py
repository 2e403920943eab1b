"""Reliability under faults: nothing is lost, damage is reported, and a resumed run ends bit-equal."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from roundtrip.backtranslation import checkpoint, session, trainer
from roundtrip.backtranslation.run_folder import FORMAT, RunFolder, run_lock
from roundtrip.backtranslation.trainer import Trainer
from roundtrip.engine import train_step as engine_step
from roundtrip.recipe import loader
from roundtrip.runtime import atomic_io, disk_space, interrupts
from roundtrip.runtime.errors import DiskError, Interrupted, RoundtripError, RunError, TrainingError
from roundtrip.runtime.event_log import EventLog
from roundtrip.tokens.prompt_template import TokenRow
from tests.conftest import WriteRecipe
from tests.runs import assert_same, change_json, end_state, go

Finished = tuple[Path, Path, str]


# The campaign


def test_ten_faults_change_no_result(finished: Finished, tmp_path: Path) -> None:
    recipe = finished[0].with_name("keep-one.toml")
    recipe.write_text(finished[0].read_text().replace("keep = 20", "keep = 1"))
    command = [sys.executable, "-m", "tests.tools.faults", str(recipe), str(tmp_path / "runs"), "--faults", "10"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    logs = "".join(path.read_text()[-2000:] for path in tmp_path.glob("runs/*.log"))
    assert done.returncode == 0, done.stderr + logs
    counts = json.loads(done.stdout)
    assert counts["total"] >= 10 and len(counts["faults"]) >= 3


def test_the_campaign_detects_a_changed_weight(finished: Finished) -> None:
    expected, changed = end_state(finished[1]), end_state(finished[1])
    tensors = next(iter(changed["tensors"].values()))
    key, value = next(iter(tensors.items()))
    tensors[key] = value.clone()
    tensors[key].view(-1)[0] += 1e-6
    with pytest.raises(AssertionError, match=key):
        assert_same(expected, changed)


# Checkpoints

PARTS = ["complete.json", "en-es.safetensors", "es-en.safetensors", "pairs.safetensors", "state.json"]
NEWEST = "0002-000002"
EXAMPLES = "examples/0002-round-1-en-es.jsonl"


@pytest.fixture
def interrupted(finished: Finished, tmp_path: Path) -> tuple[Path, Path]:
    """Return the recipe and a copy of the finished run as it was in the middle of a round, with NEWEST the newest."""
    shutil.copytree(finished[1], tmp_path / "run")
    for name in checkpoint.names(tmp_path / "run" / "checkpoints"):
        if name > NEWEST:
            shutil.rmtree(tmp_path / "run" / "checkpoints" / name)
    (tmp_path / "run" / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "run" / "adapters" / "round-1")
    shutil.rmtree(tmp_path / "run" / "adapters" / "best")
    return finished[0], tmp_path / "run"


def damage(path: Path, how: str) -> None:
    """Truncate, empty, delete a file, or flip one of its bits; the same at each call."""
    content = bytearray(path.read_bytes())
    rng = random.Random(f"{path.name} {how}")
    match how:
        case "deleted":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(content[: rng.randrange(1, len(content) - 2)])
        case "flipped bit":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)


def test_a_checkpoint_names_each_of_its_files(interrupted: tuple[Path, Path]) -> None:
    folder = interrupted[1] / "checkpoints" / NEWEST
    assert sorted(path.name for path in folder.iterdir()) == PARTS
    marker = json.loads((folder / checkpoint.MARKER).read_text())
    assert sorted(marker["files"]) == PARTS[1:]
    state = json.loads((folder / checkpoint.STATE).read_text())
    assert EXAMPLES in state["files"]
    assert "adapters/parallel/es-en/adapter_model.safetensors" in state["files"]


@pytest.mark.parametrize("how", ["truncated", "empty", "deleted", "flipped bit"])
@pytest.mark.parametrize("part", [*PARTS, f"../../{EXAMPLES}"])
def test_a_damaged_file_is_named_and_its_checkpoint_skipped(
    interrupted: tuple[Path, Path], part: str, how: str
) -> None:
    folder = interrupted[1] / "checkpoints"
    path = (folder / NEWEST / part).resolve()
    damage(path, how)
    messages: list[str] = []
    newest = checkpoint.newest(folder, messages.append)
    assert messages[0].startswith(f"checkpoint {NEWEST} is skipped: ") and path.name in messages[0]
    # The examples of a phase belong to all its checkpoints but the first.
    expected = "0002-000000" if part.endswith(EXAMPLES) else "0002-000001"
    assert newest is not None and newest[0].name == expected
    assert newest[0] == checkpoint.load(folder / expected)[0]


@pytest.mark.parametrize(
    ("part", "how"),
    [("es-en.safetensors", "flipped bit"), ("complete.json", "truncated"), (f"../../{EXAMPLES}", "deleted")],
)
def test_a_run_with_a_damaged_file_resumes_from_the_checkpoint_before(
    finished: Finished, interrupted: tuple[Path, Path], part: str, how: str
) -> None:
    recipe, folder = interrupted
    path = (folder / "checkpoints" / NEWEST / part).resolve()
    damage(path, how)
    shown = go(recipe, folder, resume=True)
    assert f"checkpoint {NEWEST} is skipped: " in shown and path.name in shown
    assert_same(end_state(folder), end_state(finished[1]))


def test_every_flipped_bit_of_the_marker_is_harmless_or_detected(interrupted: tuple[Path, Path]) -> None:
    folder = interrupted[1] / "checkpoints"
    path = folder / NEWEST / checkpoint.MARKER
    content = path.read_bytes()
    expected, expected_tensors = checkpoint.load(path.parent)
    rng = random.Random(5)
    num_detected = 0
    for _ in range(300):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        messages: list[str] = []
        newest = checkpoint.newest(folder, messages.append)
        assert newest is not None
        if messages:
            num_detected += 1
            assert newest[0].step == 1
        else:
            assert newest[0] == expected and newest[1].keys() == expected_tensors.keys()
    assert num_detected > 250


def test_a_run_without_a_complete_checkpoint_names_them_all(interrupted: tuple[Path, Path]) -> None:
    recipe, folder = interrupted
    for path in folder.glob("checkpoints/*/state.json"):
        path.write_text("{}")
    shown = io.StringIO()
    loaded = loader.load_recipe(str(recipe))
    with pytest.raises(RunError, match=r"no checkpoint is complete\n  restore the files named above"):
        session.train(loaded, folder, resume=True, events=EventLog(Console(file=shown, width=160)))
    assert shown.getvalue().count("is skipped: state.json has been changed") == len(
        checkpoint.names(folder / "checkpoints")
    )


def test_damaged_weights_of_an_earlier_stage_are_trained_again(
    finished: Finished, interrupted: tuple[Path, Path]
) -> None:
    recipe, folder = interrupted
    path = folder / "adapters" / "parallel" / "en-es" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    shown = go(recipe, folder, resume=True)
    assert shown.count("skipped: adapters/parallel/en-es/adapter_model.safetensors has been changed") == 3
    assert_same(end_state(folder), end_state(finished[1]))


def test_damaged_text_is_refused(interrupted: tuple[Path, Path]) -> None:
    recipe, folder = interrupted
    path = folder / "data" / "mono.es.txt"
    path.write_text(path.read_text().replace("casa", "cosa", 1))
    with pytest.raises(RunError, match=r"is damaged: data/mono\.es\.txt has been changed"):
        go(recipe, folder, resume=True)


def test_a_damaged_best_stage_is_copied_again(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapters" / "best" / "en-es")
    with pytest.raises(RunError, match=r"is damaged: adapters/best/en-es/\S+ is missing\n.*without metrics.json"):
        go(finished[0], tmp_path / "run", resume=True)
    (tmp_path / "run" / "metrics.json").unlink()
    assert "is copied there again" in go(finished[0], tmp_path / "run", resume=True)
    assert_same(end_state(tmp_path / "run"), end_state(finished[1]))


def test_checkpoints_of_another_format_are_skipped(interrupted: tuple[Path, Path]) -> None:
    folder = interrupted[1] / "checkpoints"
    marker = folder / NEWEST / checkpoint.MARKER
    change_json(marker, format=1)
    messages: list[str] = []
    checkpoint.newest(folder, messages.append)
    assert messages == [f"checkpoint {NEWEST} is skipped: it has format 1, this version reads {checkpoint.FORMAT}"]


@pytest.mark.parametrize("number", [None, 2])
def test_a_run_of_another_format_is_refused(interrupted: tuple[Path, Path], number: int | None) -> None:
    recipe, folder = interrupted
    change_json(folder / "run.json", format=number)
    with pytest.raises(
        RunError, match=rf"has format {number}, this version reads {FORMAT}(.|\n)*the version of roundtrip"
    ):
        go(recipe, folder, resume=True)


def test_a_moved_run_resumes(finished: Finished, interrupted: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, folder = interrupted
    moved = tmp_path / "elsewhere" / "of another name"
    moved.parent.mkdir()
    folder.rename(moved)
    go(recipe, moved, resume=True)
    assert_same(end_state(moved), end_state(finished[1]))


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    atomic_io.write_json(path, {"a": 1})
    before = path.read_bytes()
    order: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), sync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, other: (order.append("rename"), replace(self, other))[1])
    with pytest.raises(TypeError):
        atomic_io.write_json(path, {"a": object()})
    with pytest.raises(ValueError), atomic_io.atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("x")
        raise ValueError
    assert path.read_bytes() == before and [item.name for item in tmp_path.iterdir()] == ["a.json"]
    assert order == []
    atomic_io.write_json(path, {"a": 2})
    assert order == ["fsync", "rename", "fsync"], "on disk before the rename, and the rename itself after it"
    assert json.loads(path.read_text()) == {"a": 2}


def test_hidden_files_of_others_beside_what_is_written_stay(tmp_path: Path) -> None:
    names = (".a.json.tmp", ".a.json.old", ".folder.tmp", ".folder.old")
    for name in names:
        (tmp_path / name).write_text(name)
    for _ in range(2):
        atomic_io.write_json(tmp_path / "a.json", {})
        with atomic_io.atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((*names, "a.json", "folder"))
    assert all((tmp_path / name).read_text() == name for name in names)


# Signals


def stop_twice(pause: float) -> subprocess.CompletedProcess[str]:
    """Send two signals to a process that never checks whether it should stop."""
    code = (
        "import os, signal, threading, time\n"
        "from roundtrip.runtime.interrupts import catch_signals\n"
        "with catch_signals(lambda text: print(text, flush=True)) as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        f"    time.sleep({pause})\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        print('still here')\n"
        "    except BaseException:\n"
        "        print('an exception can be caught')\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_a_second_signal_stops_at_once() -> None:
    done = stop_twice(1.1)
    assert done.returncode == 130 and "ended by a second signal" in done.stderr
    assert done.stdout == "stopping at the next step; a second signal ends the process\n"


def test_a_repeated_signal_within_a_second_counts_once() -> None:
    done = stop_twice(0.0)
    assert done.returncode == 0 and "still here" in done.stdout and done.stderr == ""


def test_a_hangup_stops_the_run_and_handlers_are_restored() -> None:
    # Under nohup it is ignored.
    usual = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with interrupts.catch_signals(lambda text: None) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Interrupted) as caught:
            stop.raise_if_requested()
    assert caught.value.exit_code == 129
    assert signal.signal(signal.SIGHUP, usual) is signal.SIG_DFL


def test_signals_are_not_caught_outside_the_main_thread() -> None:
    handlers = [signal.getsignal(signal.SIGTERM)]

    def work() -> None:
        with interrupts.catch_signals(lambda text: None) as stop:
            handlers.append(signal.getsignal(signal.SIGTERM))
            assert not stop.requested

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(handlers) == 2 and handlers[0] is handlers[1]


# Numbers


def break_loss(monkeypatch: pytest.MonkeyPatch, numbers: set[int], how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace the loss of some steps, counted from 0, by what `how` returns for it."""
    loss_sum, calls = engine_step.loss_sum, iter(range(10**6))

    def broken(*arguments: Any, **settings: Any) -> torch.Tensor:
        loss = loss_sum(*arguments, **settings)
        return how(loss) if torch.is_grad_enabled() and next(calls) in numbers else loss

    monkeypatch.setattr(engine_step, "loss_sum", broken)


HOW = {
    "loss is nan": lambda loss: loss * torch.nan,
    "loss is inf": lambda loss: loss * torch.inf,
    "loss is inf, gradient is not": lambda loss: loss + torch.inf,
    "gradient is nan, loss is not": lambda loss: loss + (loss * 0 - 1e-30).sqrt().nan_to_num(),
}


@pytest.mark.parametrize("how", HOW)
def test_a_nonfinite_step_changes_nothing_and_is_recorded(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    break_loss(monkeypatch, {1}, HOW[how])
    before: list[dict[str, torch.Tensor]] = []
    step = Trainer.train_step

    def recording(self: Trainer, *arguments: Any) -> Any:
        parameters = self.context.translators["en-es"].direction_model.parameters()
        before.append({name: value.detach().clone() for name, value in parameters.items()})
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", recording)
    shown = go(write_recipe(), tmp_path / "run")
    assert re.search(r"step 2: loss \S+, gradient norm \S+: no update; its rows are in", shown)
    assert "en-es: 1 of 5 steps had a non-finite loss or gradient: see" in shown
    assert all(torch.equal(before[1][name], before[2][name]) for name in before[1]), "the step changed nothing"
    assert not all(torch.equal(before[0][name], before[1][name]) for name in before[0])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["nonfinite_steps"] == {"en-es": 1} and metrics["steps"] == {"en-es": 5, "es-en": 5}
    (record,) = (tmp_path / "run" / "nonfinite_steps").iterdir()
    assert record.name == "parallel-en-es-000002.json"
    rows = json.loads(record.read_text())["rows"]
    train_text = (tmp_path / "run" / "data" / "train.tsv").read_text().splitlines()
    assert len(rows) == 16 and all(0 < row["loss"] < 20 for row in rows)
    assert all(any(line.split("\t")[0] in row["text"] for line in train_text) for row in rows)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (event,) = [
        event for event in events if event["event"] == "step" and (event["direction"], event["step"]) == ("en-es", 2)
    ]
    assert isinstance(event["loss"], str) or isinstance(event["grad_norm"], str)


def test_too_many_nonfinite_steps_end_the_run_with_advice(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_loss(monkeypatch, {0, 1}, HOW["loss is nan"])
    monkeypatch.setattr(trainer, "MAX_NONFINITE_STEPS", 1)
    path = write_recipe(("parallel_epochs = 1", "parallel_epochs = 3"))
    message = r"2 steps of this phase had a non-finite loss or gradient \(limit: 1\); step 2: loss nan(.|\n)*"
    with pytest.raises(TrainingError, match=message + r"look at the rows in .*nonfinite_steps.*lower train\.lr"):
        go(path, tmp_path / "run")
    assert len(list((tmp_path / "run" / "nonfinite_steps").iterdir())) == 2


def test_a_phase_without_a_finite_step_ends_the_run(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_loss(monkeypatch, {0, 1}, HOW["loss is nan"])
    with pytest.raises(TrainingError, match=r"all 2 steps of this phase had a non-finite(.|\n)*start a new run"):
        go(write_recipe(), tmp_path / "run")


def test_a_learning_rate_that_breaks_the_weights_ends_the_run(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "MAX_NONFINITE_STEPS", 0)
    path = write_recipe(("lr = 5e-3", "lr = 1e30\nlr_warmup_steps = 0"))
    with pytest.raises(TrainingError, match=r"loss (nan|inf)(.|\n)*lower train\.lr"):
        go(path, tmp_path / "run")


def test_the_count_of_nonfinite_steps_survives_a_resume(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(("parallel_epochs = 1", "parallel_epochs = 2"))
    monkeypatch.setattr(trainer, "MAX_NONFINITE_STEPS", 1)
    with monkeypatch.context() as patch:
        break_loss(patch, {0}, HOW["loss is nan"])
        step = Trainer.train_step

        def stopping(self: Trainer, *arguments: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *arguments)

        patch.setattr(Trainer, "train_step", stopping)
        with pytest.raises(Interrupted):
            go(path, tmp_path / "run")
    break_loss(monkeypatch, {0}, HOW["loss is nan"])
    with pytest.raises(TrainingError, match="2 steps of this phase had a non-finite loss"):
        go(path, tmp_path / "run", resume=True)


def test_one_line_of_each_text_is_enough(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    own = "[data]\ntrain='one.tsv'\ndev='dev.tsv'\ntest='test.tsv'\nmono={en='mono.en',es='mono.es'}"
    (tmp_path / "one.tsv").write_text("The house\tLa casa\n")
    (tmp_path / "dev.tsv").write_text("The moon\tLa luna\n")
    (tmp_path / "test.tsv").write_text("The door\tLa puerta\n")
    (tmp_path / "mono.en").write_text("I see the red flower.\n")
    (tmp_path / "mono.es").write_text("Veo la flor roja.\n")
    split = '[data.split]\ncorpus = { path = "toy.tsv" }\ntrain = 32\ndev = 12\ntest = 12'
    shown = go(write_recipe((split, own)), tmp_path / "run")
    assert "all lines of es were read; the next ones start over" in shown and "Test scores" in shown


def test_rows_without_labels_are_left_out(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_token_rows = trainer.build_token_rows

    def with_a_row_without_labels(*arguments: Any) -> Any:
        dataset, counts = build_token_rows(*arguments)
        return dataset.plus(type(dataset).of([TokenRow([5], 1)])), counts

    monkeypatch.setattr(trainer, "build_token_rows", with_a_row_without_labels)
    assert "  1 row over 96 tokens left out" in go(write_recipe(), tmp_path / "run")


# Disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system with 1.5 MB of space."""
    folder = tmp_path / "small"
    folder.mkdir()
    can_mount = shutil.which("mount") and os.geteuid() == 0
    if not can_mount or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)]).returncode:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_checkpoint_and_says_how_many_bytes_are_missing(
    finished: Finished, small_disk: Path
) -> None:
    step = Trainer.train_step

    def fill_disk(self: Trainer, *arguments: Any) -> Any:
        result = step(self, *arguments)
        if self.state.total_steps() == 6:
            with pytest.raises(OSError), (small_disk / "other").open("wb", buffering=0) as file:
                for _ in range(4000):
                    file.write(bytes(1024))
                    os.fsync(file)
        return result

    message = r"bytes are needed, \S+ are free, \S+ are missing(.|\n)*--resume"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", fill_disk)
        with pytest.raises(DiskError, match=message) as caught:
            go(finished[0], small_disk / "run", overrides=("checkpoint.keep=1",))
    assert caught.value.exit_code == 3
    kept = checkpoint.names(small_disk / "run" / "checkpoints")
    assert len(kept) == 1, "the checkpoint before is complete, and nothing else takes space"
    assert not list((small_disk / "run" / "checkpoints").glob(".*"))
    (small_disk / "other").unlink()
    shown = go(finished[0], small_disk / "run", resume=True, overrides=("checkpoint.keep=1",))
    assert "is skipped" not in shown
    assert_same(end_state(small_disk / "run"), end_state(finished[1]))


@pytest.mark.parametrize(("number", "has_checkpoint"), [(5, False), (20, True)])
def test_a_full_disk_while_saving_loses_no_earlier_checkpoint(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, has_checkpoint: bool
) -> None:
    fsync, calls, folder = atomic_io.fsync_path, iter(range(10**6)), tmp_path / "run" / "checkpoints"

    def full(path: Path) -> None:
        if folder in path.parents and next(calls) == number:
            raise OSError(28, "No space left on device", str(path))
        fsync(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_io, "fsync_path", full)
        with pytest.raises(DiskError, match=r"checkpoints: .*bytes(.|\n)*free disk space"):
            go(finished[0], tmp_path / "run", overrides=("checkpoint.keep=1",))
    assert not list(folder.glob(".*")) and bool(checkpoint.names(folder)) == has_checkpoint
    go(finished[0], tmp_path / "run", resume=has_checkpoint)
    assert_same(end_state(tmp_path / "run"), end_state(finished[1]))


def test_an_exceeded_quota_is_reported_as_one(tmp_path: Path) -> None:
    path, message = tmp_path / "a", "a quota or limit of the file system"
    with pytest.raises(DiskError, match=message), disk_space.report_full_disk(path, 10):
        raise OSError(122, "Disk quota exceeded")
    with pytest.raises(OSError, match="Input/output"), disk_space.report_full_disk(path, 10):
        raise OSError(5, "Input/output error")


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """As root, a rename would replace /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link"):
        assert not atomic_io.is_writable(path)
        with pytest.raises(RoundtripError, match="is a device, a pipe"):
            atomic_io.write_json(path, {})
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_an_incomplete_event_is_removed(tmp_path: Path) -> None:
    events = EventLog(Console(file=io.StringIO()), tmp_path / "events.jsonl")
    events.log("one", value=1)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": 3, "event": "tw')
    events.log("three", value=3)
    kinds = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert kinds == ["one", "three"]


def test_a_jumping_clock_changes_nothing(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rng = time.time, random.Random(3)
    monkeypatch.setattr(time, "time", lambda: clock() + rng.choice([-1e8, 0.0, 1e8]))
    go(finished[0], tmp_path / "run")
    assert_same(end_state(tmp_path / "run"), end_state(finished[1]))


HOLD_LOCK = """
import sys, time
from pathlib import Path
from roundtrip.backtranslation.run_folder import run_lock
with run_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_run_in_use_by_another_process_is_refused(interrupted: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, folder = interrupted
    command = [sys.executable, "-c", HOLD_LOCK, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "locked\n"
            with pytest.raises(RunError, match="is in use by another process") as caught:
                session.train(str(recipe), folder, resume=True)
        finally:
            process.kill()
    assert caught.value.exit_code == 2
    # The lock ends with its process.
    with run_lock(folder), pytest.raises(RunError, match="is in use by another process"), run_lock(folder):
        pass


def test_leftovers_of_a_killed_process_are_removed(finished: Finished, tmp_path: Path) -> None:
    """In every folder of a run; hidden files of other programs stay, whatever they are called, as does another run."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(finished[1], run.path)
    of_strangers = [run.path / "notes" / ".run.json.roundtrip-tmp", run.adapters / "best" / ".a.roundtrip-tmp"]
    for folder in (run.path, *run.folders):
        (folder / ".0002-000003.roundtrip-tmp").mkdir()
        (folder / ".lost.roundtrip-old").write_text("content")
        (folder / ".kept.roundtrip-old").mkdir()
        (folder / "kept").mkdir()
        of_strangers += [folder / name for name in (".x.tmp", ".backup.old", ".run.json.tmp", "a.roundtrip-tmp")]
    for path in of_strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)
    go(finished[0], run.path, resume=True)
    assert all(path.read_text() == path.name for path in of_strangers)
    assert {path.name for path in run.path.rglob(".*")} == {path.name for path in of_strangers if path.name[0] == "."}
    for folder in (run.path, *run.folders):
        assert not [*folder.glob(".*-old"), *folder.glob(".0*")] and (folder / "lost").read_text() == "content"


ON_A_GPU = """
import os, signal, sys
import torch
torch.use_deterministic_algorithms(True)
from pathlib import Path
import pytest
from roundtrip.backtranslation.trainer import Trainer
from roundtrip.runtime.errors import Interrupted
from tests.runs import assert_same, end_state, go
recipe, folder = map(Path, sys.argv[1:])
device = ("model.device=cuda",)
go(recipe, folder / "uninterrupted", overrides=device)
step = Trainer.train_step
def stopping(self, *arguments):
    if self.state.total_steps() in (3, 6):
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, *arguments)
Trainer.train_step = stopping
with pytest.raises(Interrupted):
    go(recipe, folder / "run", overrides=device)
Trainer.train_step = step
go(recipe, folder / "run", resume=True, overrides=device)
assert_same(end_state(folder / "run"), end_state(folder / "uninterrupted"))
"""


@pytest.mark.gpu
def test_a_resumed_run_is_bit_equal_on_a_gpu_in_deterministic_mode(finished: Finished, tmp_path: Path) -> None:
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    command = [sys.executable, "-c", ON_A_GPU, str(finished[0]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("at", ["before the first rename", "between the renames"])
def test_rewriting_a_checkpoint_never_loses_it(tmp_path: Path, at: str, monkeypatch: Any) -> None:
    """Where a single checkpoint is kept, a process killed between two renames must not leave none."""
    tensors = {"en-es": {"a": torch.arange(3.0)}}
    state = checkpoint.State(phase=1, step=2)
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder, state, tensors, 1)

    class Killed(BaseException):
        pass

    rename = Path.rename if at.startswith("before") else Path.replace
    name = rename.__name__

    def killed(self: Path, other: Path) -> Path:
        if self.parent == folder:
            raise Killed
        return rename(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(Path, name, killed)
        with pytest.raises(Killed):
            checkpoint.save(folder, state, tensors, 1)
    atomic_io.remove_leftovers(folder)
    assert checkpoint.names(folder) == ["0001-000002"] and not list(folder.glob(".*"))
    newest = checkpoint.newest(folder, pytest.fail)
    assert newest is not None and torch.equal(newest[1]["en-es"]["a"], tensors["en-es"]["a"])


def test_a_resumed_run_does_not_rewrite_its_checkpoint(
    interrupted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = interrupted
    saved: list[str] = []
    save = checkpoint.save

    def recording(target: Path, state: checkpoint.State, *others: Any) -> Path:
        saved.append(state.name)
        return save(target, state, *others)

    monkeypatch.setattr(checkpoint, "save", recording)
    go(recipe, folder, resume=True)
    assert NEWEST not in saved and "0002-000003" in saved


def test_a_full_disk_while_copying_the_best_stage_ends_the_run(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`shutil.copytree` raises a list of the system's errors, without an error number."""
    copy, calls = shutil.copy2, iter(range(10**6))

    def full(source: Any, target: Any, **more: Any) -> Any:
        if ".best.roundtrip-tmp" in str(target) and next(calls) == 1:
            raise OSError(28, "No space left on device", str(target))
        return copy(source, target, **more)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy2", full)
        patch.setattr(shutil.copytree, "__defaults__", (False, None, full, False, False))
        with pytest.raises(DiskError, match="adapters/best: the disk is full"):
            go(finished[0], tmp_path / "run")
    go(finished[0], tmp_path / "run", resume=True)
    assert_same(end_state(tmp_path / "run"), end_state(finished[1]))


def test_checkpoint_keys_may_change_at_a_resume_and_others_may_not(
    finished: Finished, interrupted: tuple[Path, Path]
) -> None:
    recipe, folder = interrupted
    go(recipe, folder, resume=True, overrides=("checkpoint.keep=3", "checkpoint.every_steps=2"))
    assert_same(end_state(folder), end_state(finished[1]))
    assert RunFolder(folder).recipe().checkpoint.keep == 3
    with pytest.raises(RunError, match=r"train\.lr: 0\.005 then"):
        go(recipe, folder, resume=True, overrides=("train.lr=1e-4",))


def test_a_damaged_residual_of_the_base_is_refused(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """What PiSSA subtracted from the base is part of the weights, and no checkpoint has it."""
    recipe = write_recipe(
        ("rank = 4", 'rank = 4\nmethod = "pissa"'), ('dtype = "float32"', 'dtype = "float32"\nshared = false')
    )
    go(recipe, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    path = tmp_path / "run" / "base" / "en-es-start.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 64
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"is damaged: base/en-es-start\.safetensors has been changed"):
        go(recipe, tmp_path / "run", resume=True)


def test_a_second_signal_stops_at_once_without_a_terminal() -> None:
    code = (
        "import os, signal, time\n"
        "from roundtrip.runtime import interrupts\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "with interrupts.catch_signals(lambda text: None):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    time.sleep(1.1)\n"
        "    os.close(2)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(5)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 143


def test_a_run_under_nohup_ignores_hangups() -> None:
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interrupts.catch_signals(lambda text: None) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested
    signal.signal(signal.SIGHUP, usual)
