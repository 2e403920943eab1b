"""What a run promises under faults: nothing is lost, nothing is wrong in silence, and the end is the same."""

from __future__ import annotations

import io
import json
import os
import random
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

from roundtrip.backtranslation import checkpoint, session
from roundtrip.backtranslation.run_folder import RunFolder, run_lock
from roundtrip.backtranslation.trainer import Trainer
from roundtrip.engine import train_step as stepping
from roundtrip.recipe import loader
from roundtrip.runtime import atomic_io, disk_space, interrupts
from roundtrip.runtime.errors import DiskError, Interrupted, RunError, TrainingError
from roundtrip.runtime.event_log import EventLog
from tests.conftest import RECIPE, WriteRecipe, toy_pairs
from tests.runs import assert_same, end_state, go


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Path, Path]:
    """One finished run with many checkpoints: its recipe and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "toy.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in toy_pairs()), encoding="utf-8")
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE.format(model=model_folder) + "keep = 20\n", encoding="utf-8")
    go(recipe, folder / "run")
    return recipe, folder / "run"


# The campaign


def test_ten_faults_each_end_as_if_there_had_been_none(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = finished[0].with_name("one.toml")
    recipe.write_text(finished[0].read_text().replace("keep = 20", "keep = 1"))
    command = [sys.executable, "-m", "tests.tools.faults", str(recipe), str(tmp_path / "runs"), "--faults", "10"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    logs = "".join(path.read_text()[-2000:] for path in tmp_path.glob("runs/*.log"))
    assert done.returncode == 0, done.stderr + logs
    found = json.loads(done.stdout)
    assert found["total"] >= 10 and len(found["faults"]) >= 3


def test_the_campaign_can_fail(finished: tuple[Path, Path]) -> None:
    one = end_state(finished[1])
    other = end_state(finished[1])
    name, tensors = next(iter(other["tensors"].items()))
    key, value = next(iter(tensors.items()))
    tensors[key] = value.clone()
    tensors[key].view(-1)[0] += 1e-6
    with pytest.raises(AssertionError, match=key):
        assert_same(one, other)


# Checkpoints

PARTS = ["en-es.safetensors", "es-en.safetensors", "pairs.safetensors", "state.json", "whole.json"]


@pytest.fixture
def inside(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the finished run as it stood inside of a round: the newest checkpoint has taken a step in it."""
    recipe, whole = finished
    shutil.copytree(whole, tmp_path / "run")
    for name in checkpoint.names(tmp_path / "run" / "checkpoints"):
        if name > "0002-000002":
            shutil.rmtree(tmp_path / "run" / "checkpoints" / name)
    (tmp_path / "run" / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "run" / "adapters" / "round-1")
    shutil.rmtree(tmp_path / "run" / "adapters" / "best")
    return recipe, tmp_path / "run"


def test_a_checkpoint_names_each_of_its_files(inside: tuple[Path, Path]) -> None:
    folder = inside[1] / "checkpoints" / "0002-000002"
    assert sorted(path.name for path in folder.iterdir()) == PARTS
    marker = json.loads((folder / checkpoint.MARKER).read_text())
    assert sorted(marker["files"]) == PARTS[:-1]
    state = json.loads((folder / checkpoint.STATE).read_text())
    assert "blocks/0002-round-1-en-es.jsonl" in state["files"]
    assert "adapters/parallel/es-en/adapter_model.safetensors" in state["files"]


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "flip"])
@pytest.mark.parametrize("part", [*PARTS, "../../blocks/0002-round-1-en-es.jsonl"])
def test_a_damaged_file_is_named_and_the_run_goes_on_from_before(
    finished: tuple[Path, Path], inside: tuple[Path, Path], part: str, damage: str
) -> None:
    recipe, folder = inside
    path = (folder / "checkpoints" / "0002-000002" / part).resolve()
    content = bytearray(path.read_bytes())
    dice = random.Random(f"{part} {damage}")
    if damage == "gone":
        path.unlink()
    elif damage == "flip":
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: 0 if damage == "empty" else dice.randrange(1, len(content) - 2)])
    shown = go(recipe, folder, resume=True)
    assert "checkpoint 0002-000002 is passed over: " in shown and path.name in shown
    assert_same(end_state(folder), end_state(finished[1]))


def test_every_flipped_bit_of_the_marker_is_harmless_or_seen(inside: tuple[Path, Path]) -> None:
    """The marker has no hash of its own: whatever befalls it, no other state comes of it."""
    folder = inside[1] / "checkpoints"
    path = folder / "0002-000002" / checkpoint.MARKER
    content = path.read_bytes()
    right = checkpoint.load(path.parent)
    dice = random.Random(5)
    num_seen = 0
    for _ in range(300):
        flipped = bytearray(content)
        flipped[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(flipped)
        told: list[str] = []
        found = checkpoint.newest(folder, told.append)
        assert found is not None
        if told:
            num_seen += 1
            assert found[0].step == 1
        else:
            assert found[0] == right[0] and found[1].keys() == right[1].keys()
    assert num_seen > 250


def test_where_none_is_whole_all_are_named(inside: tuple[Path, Path]) -> None:
    recipe, folder = inside
    for path in folder.glob("checkpoints/*/state.json"):
        path.write_text("{}")
    shown = io.StringIO()
    loaded = loader.load(str(recipe))
    with pytest.raises(RunError, match=r"no checkpoint is whole\n  bring back what is named above"):
        session.train(folder, loaded, EventLog(Console(file=shown, width=160)), resume=True)
    assert shown.getvalue().count("is passed over: state.json has been changed") == len(
        checkpoint.names(folder / "checkpoints")
    )


def test_damaged_weights_of_an_earlier_stage_are_made_again(
    finished: tuple[Path, Path], inside: tuple[Path, Path]
) -> None:
    recipe, folder = inside
    path = folder / "adapters" / "parallel" / "en-es" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    shown = go(recipe, folder, resume=True)
    assert shown.count("passed over: adapters/parallel/en-es/adapter_model.safetensors has been changed") == 3
    assert_same(end_state(folder), end_state(finished[1]))


def test_damaged_text_is_refused(inside: tuple[Path, Path]) -> None:
    recipe, folder = inside
    path = folder / "data" / "mono.es.txt"
    path.write_text(path.read_text().replace("casa", "cosa", 1))
    with pytest.raises(RunError, match=r"is damaged: data/mono\.es\.txt has been changed"):
        go(recipe, folder, resume=True)


def test_the_best_is_copied_again(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, whole = finished
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapters" / "best" / "en-es")
    assert "is copied there again" in go(recipe, tmp_path / "run", resume=True)
    assert_same(end_state(tmp_path / "run"), end_state(whole))


def test_checkpoints_of_another_format_are_passed_over(inside: tuple[Path, Path]) -> None:
    folder = inside[1] / "checkpoints"
    marker = folder / "0002-000002" / checkpoint.MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"format": 1}))
    told: list[str] = []
    checkpoint.newest(folder, told.append)
    assert told == ["checkpoint 0002-000002 is passed over: it is of format 1, this version reads 2"]


def test_a_moved_run_goes_on(finished: tuple[Path, Path], inside: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, folder = inside
    moved = tmp_path / "elsewhere" / "of another name"
    moved.parent.mkdir()
    folder.rename(moved)
    go(recipe, moved, resume=True)
    assert_same(end_state(moved), end_state(finished[1]))


def test_files_are_whole_or_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    atomic_io.write_json(path, {"a": 1})
    before = path.read_bytes()
    order: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), sync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, other: (order.append("rename"), replace(self, other))[1])
    with pytest.raises(TypeError):
        atomic_io.write_json(path, {"a": object()})
    with pytest.raises(ValueError), atomic_io.atomic_path(tmp_path / "folder") as beside:
        beside.mkdir()
        (beside / "half").write_text("x")
        raise ValueError
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["a.json"]
    assert order == []
    atomic_io.write_json(path, {"a": 2})
    assert order == ["fsync", "rename", "fsync"], "on disk before the rename, and the rename itself after it"
    assert json.loads(path.read_text()) == {"a": 2}


# Signals


def stopping_twice(pause: float) -> subprocess.CompletedProcess[str]:
    """Send two signals to a process that works and never looks whether it should stop."""
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


def test_a_second_signal_ends_at_once() -> None:
    done = stopping_twice(1.1)
    assert done.returncode == 130 and "ended by a second signal" in done.stderr
    assert done.stdout == "stopping at the next step; a second signal ends the process\n"


def test_a_signal_passed_on_twice_is_one() -> None:
    done = stopping_twice(0.0)
    assert done.returncode == 0 and "still here" in done.stdout and done.stderr == ""


def test_a_hangup_stops_in_good_order_and_handlers_are_put_back() -> None:
    # Whoever runs the tests may have asked to ignore it.
    usual = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with interrupts.catch_signals(lambda text: None) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Interrupted) as caught:
            stop.leave_if_asked()
    assert caught.value.exit_code == 129
    assert signal.signal(signal.SIGHUP, usual) is signal.SIG_DFL


def test_a_library_call_from_a_thread_catches_nothing() -> None:
    found = []

    def work() -> None:
        with interrupts.catch_signals(lambda text: None) as stop:
            found.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


# Numbers


def breaking(monkeypatch: pytest.MonkeyPatch, numbers: set[int], how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let the loss of some steps be what `how` makes of it."""
    loss_sum, calls = stepping.loss_sum, iter(range(10**6))

    def broken(*arguments: Any, **settings: Any) -> torch.Tensor:
        loss = loss_sum(*arguments, **settings)
        return how(loss) if torch.is_grad_enabled() and next(calls) in numbers else loss

    monkeypatch.setattr(stepping, "loss_sum", broken)


HOW = {
    "loss is nan": lambda loss: loss * torch.nan,
    "loss is inf": lambda loss: loss * torch.inf,
    "loss is inf, gradient is not": lambda loss: loss + torch.inf,
    "gradient is nan, loss is not": lambda loss: loss + (loss * 0 - 1e-30).sqrt().nan_to_num(),
}


@pytest.mark.parametrize("how", HOW)
def test_a_step_without_finite_numbers_is_skipped_counted_and_kept(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    breaking(monkeypatch, {1}, HOW[how])
    before: list[dict[str, torch.Tensor]] = []
    step = Trainer.step

    def watching(self: Trainer, *arguments: Any) -> Any:
        parameters = self.translators["en-es"].direction_model.parameters()
        before.append({name: value.detach().clone() for name, value in parameters.items()})
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", watching)
    shown = go(write_recipe(), tmp_path / "run")
    assert "at step 2: skipped; its rows are in" in shown
    assert "en-es: 1 of 5 steps were skipped" in shown
    assert all(torch.equal(before[1][name], before[2][name]) for name in before[1]), "the step changed nothing"
    assert not all(torch.equal(before[0][name], before[1][name]) for name in before[0])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["skipped"] == {"en-es": 1} and metrics["steps"] == {"en-es": 5, "es-en": 5}
    (kept,) = (tmp_path / "run" / "skipped").iterdir()
    assert kept.name == "parallel-en-es-000002.json"
    rows = json.loads(kept.read_text())["rows"]
    train_text = (tmp_path / "run" / "data" / "train.tsv").read_text().splitlines()
    assert len(rows) == 16 and all(0 < row["loss"] < 20 for row in rows)
    assert all(any(line.split("\t")[0] in row["text"] for line in train_text) for row in rows)
    logged = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (step_event,) = [
        one for one in logged if one["event"] == "step" and one["step"] == 2 and one["direction"] == "en-es"
    ]
    assert isinstance(step_event["loss"], str) or isinstance(step_event["grad_norm"], str)


def test_more_skipped_steps_than_allowed_end_the_run_with_advice(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, {0, 1}, HOW["loss is nan"])
    path = write_recipe(("parallel_epochs = 1", "parallel_epochs = 3\nmax_nonfinite_steps = 1"))
    with pytest.raises(
        TrainingError, match=r"the 2\. of this phase(.|\n)*look at the rows in .*skipped.*lower train\.lr"
    ):
        go(path, tmp_path / "run")
    assert len(list((tmp_path / "run" / "skipped").iterdir())) == 2


def test_a_phase_without_a_single_sound_step_ends_the_run(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, {0, 1}, HOW["loss is nan"])
    with pytest.raises(TrainingError, match=r"all 2 steps were skipped(.|\n)*start anew"):
        go(write_recipe(), tmp_path / "run")


def test_a_rate_that_breaks_the_weights_ends_the_run(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe(("lr = 5e-3", "lr = 1e30\nlr_warmup_steps = 0\nmax_grad_norm = 1e30\nmax_nonfinite_steps = 0"))
    with pytest.raises(TrainingError, match=r"loss (nan|inf)(.|\n)*lower train\.lr"):
        go(path, tmp_path / "run")


def test_skipped_steps_survive_a_resume(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(("parallel_epochs = 1", "parallel_epochs = 2\nmax_nonfinite_steps = 1"))
    with monkeypatch.context() as patch:
        breaking(patch, {0}, HOW["loss is nan"])
        step = Trainer.step

        def stopping(self: Trainer, *arguments: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *arguments)

        patch.setattr(Trainer, "step", stopping)
        with pytest.raises(Interrupted):
            go(path, tmp_path / "run")
    breaking(monkeypatch, {0}, HOW["loss is nan"])
    with pytest.raises(TrainingError, match=r"the 2\. of this phase"):
        go(path, tmp_path / "run", resume=True)


def test_one_line_of_everything_is_enough(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    own = "[data]\ntrain='one.tsv'\ndev='dev.tsv'\ntest='test.tsv'\nmono={en='mono.en',es='mono.es'}"
    (tmp_path / "one.tsv").write_text("The house\tLa casa\n")
    (tmp_path / "dev.tsv").write_text("The moon\tLa luna\n")
    (tmp_path / "test.tsv").write_text("The door\tLa puerta\n")
    (tmp_path / "mono.en").write_text("I see the red flower.\n")
    (tmp_path / "mono.es").write_text("Veo la flor roja.\n")
    cut = '[data.split]\ncorpus = { path = "toy.tsv" }\ntrain = 32\ndev = 12\ntest = 12'
    shown = go(write_recipe((cut, own)), tmp_path / "run")
    assert "mono.es is read through and starts over" in shown and "Test scores" in shown


def test_rows_without_labels_are_left_out(write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: Any) -> None:
    from roundtrip.backtranslation import token_rows
    from roundtrip.tokens.prompt_template import TokenRow

    of_block = token_rows.token_rows_of

    def with_an_empty_one(block: Any, template: Any, *others: Any) -> Any:
        table, counts = of_block(block, template, *others)
        return table.plus(type(table).of([TokenRow([5], 1)])), counts

    monkeypatch.setattr("roundtrip.backtranslation.trainer.token_rows_of", with_an_empty_one)
    assert "1 rows" in go(write_recipe(), tmp_path / "run")


# Disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for 1.5 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(place)]).returncode:
        pytest.skip("a file system can be mounted by root only")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_file_system_keeps_the_checkpoint_and_says_how_much_is_missing(
    finished: tuple[Path, Path], small_disk: Path
) -> None:
    recipe, whole = finished
    # The last step of the first phase fills it.
    step = Trainer.step

    def filling(self: Trainer, *arguments: Any) -> Any:
        result = step(self, *arguments)
        if self.state.total_steps() == 6:
            with pytest.raises(OSError), (small_disk / "other").open("wb", buffering=0) as file:
                for _ in range(4000):
                    file.write(bytes(1024))
                    os.fsync(file)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", filling)
        with pytest.raises(
            DiskError, match=r"bytes are needed, \S+ are free, \S+ are missing(.|\n)*--resume"
        ) as caught:
            go(recipe, small_disk / "run", overrides=("checkpoint.keep=1",))
    assert caught.value.exit_code == 3
    kept = checkpoint.names(small_disk / "run" / "checkpoints")
    assert len(kept) == 1, "the one before is whole, and nothing else takes room"
    assert not list((small_disk / "run" / "checkpoints").glob(".*"))
    (small_disk / "other").unlink()
    shown = go_on(recipe, small_disk / "run", "checkpoint.keep=1")
    assert "passed over" not in shown
    assert_same(end_state(small_disk / "run"), end_state(whole))


def go_on(recipe: Path, folder: Path, *overrides: str) -> str:
    shown = io.StringIO()
    session.train(folder, loader.load(str(recipe), overrides), EventLog(Console(file=shown, width=160)), resume=True)
    return shown.getvalue()


def test_a_quota_is_called_one(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskError, match="a quota, or a limit of the file system"),
        disk_space.report_full_disk(tmp_path / "a", 10),
    ):
        raise OSError(122, "Disk quota exceeded")
    with pytest.raises(OSError, match="Input/output"), disk_space.report_full_disk(tmp_path / "a", 10):
        raise OSError(5, "Input/output error")


def test_half_an_event_is_dropped(tmp_path: Path) -> None:
    voice = EventLog(Console(file=io.StringIO()), tmp_path / "events.jsonl")
    voice.log("one", value=1)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": 3, "event": "tw')
    voice.log("three", value=3)
    kinds = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert kinds == ["one", "three"]


def test_a_jumping_clock_changes_nothing(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, dice = time.time, random.Random(3)
    monkeypatch.setattr(time, "time", lambda: clock() + dice.choice([-1e8, 0.0, 1e8]))
    go(finished[0], tmp_path / "run")
    assert_same(end_state(tmp_path / "run"), end_state(finished[1]))


def test_one_run_one_process(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """The lock goes with its process, also one that was killed."""
    recipe, _ = finished
    command = [sys.executable, "-m", "roundtrip.train", str(recipe), "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not (tmp_path / "run" / "run.json").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        second = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=200)
        process.kill()
    assert second.returncode == 2 and "in use by another process" in second.stderr
    with run_lock(tmp_path / "run"):
        pass


def test_what_a_killed_process_has_left_is_swept(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, whole = finished
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / ".0002-000003.tmp").mkdir()
    (tmp_path / "run" / "adapters" / ".best.old").mkdir()
    (tmp_path / "run" / ".metrics.json.tmp").write_text("{")
    go(recipe, tmp_path / "run", resume=True)
    assert not list((tmp_path / "run").rglob(".*"))
    old, new = tmp_path / ".fetch-old", tmp_path / ".fetch-new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    atomic_io.remove_stale(tmp_path, ".fetch-")
    assert new.exists() and not old.exists()


ON_A_GPU = """
import os, signal, sys
import torch
torch.use_deterministic_algorithms(True)
from pathlib import Path
import pytest
from roundtrip.errors import Interrupted
from roundtrip.trip import Trip
from tests.runs import assert_same, end_state, go
recipe, folder = map(Path, sys.argv[1:])
device = ("model.device=cuda",)
go(recipe, folder / "whole", overrides=device)
step = Trip.step
def stopping(self, *arguments):
    if self.state.total_steps() in (3, 6):
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, *arguments)
Trip.step = stopping
with pytest.raises(Interrupted):
    go(recipe, folder / "run", overrides=device)
Trip.step = step
go(recipe, folder / "run", resume=True, overrides=device)
assert_same(end_state(folder / "run"), end_state(folder / "whole"))
"""


@pytest.mark.gpu
def test_a_resumed_run_is_the_same_on_a_gpu_in_deterministic_mode(finished: tuple[Path, Path], tmp_path: Path) -> None:
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    command = [sys.executable, "-c", ON_A_GPU, str(finished[0]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("at", ["before the first rename", "between the renames"])
def test_a_checkpoint_that_is_written_again_is_never_lost(tmp_path: Path, at: str, monkeypatch: Any) -> None:
    """With a single checkpoint kept, the moment between two renames would be one without any."""
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
    atomic_io.remove_leftovers(tmp_path)
    assert checkpoint.names(folder) == ["0001-000002"] and not list(folder.glob(".*"))
    found = checkpoint.newest(folder, pytest.fail)
    assert found is not None and torch.equal(found[1]["en-es"]["a"], tensors["en-es"]["a"])


def test_resuming_writes_nothing_again(inside: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, folder = inside
    saved: list[str] = []
    save = checkpoint.save

    def watching(place: Path, state: checkpoint.State, *others: Any) -> Path:
        saved.append(checkpoint.name_of(state))
        return save(place, state, *others)

    monkeypatch.setattr(checkpoint, "save", watching)
    go(recipe, folder, resume=True)
    assert "0002-000002" not in saved and "0002-000003" in saved


def test_no_room_for_the_best_is_no_room(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying a folder gives the system's errors in a list of its own."""
    copy, calls = shutil.copy2, iter(range(10**6))

    def full(source: Any, target: Any, **more: Any) -> Any:
        if ".best.tmp" in str(target) and next(calls) == 1:
            raise OSError(28, "No space left on device", str(target))
        return copy(source, target, **more)

    monkeypatch.setattr(shutil, "copy2", full)
    monkeypatch.setattr(shutil.copytree, "__defaults__", (False, None, full, False, False))
    with pytest.raises(DiskError, match="adapters/best: the disk is full"):
        go(finished[0], tmp_path / "run")
    monkeypatch.undo()
    go(finished[0], tmp_path / "run", resume=True)
    assert_same(end_state(tmp_path / "run"), end_state(finished[1]))


def test_what_no_figure_depends_on_may_change_at_a_resume(
    finished: tuple[Path, Path], inside: tuple[Path, Path]
) -> None:
    recipe, folder = inside
    go_on(recipe, folder, "checkpoint.every_steps=2", "train.max_nonfinite_steps=3")
    assert_same(end_state(folder), end_state(finished[1]))
    assert RunFolder(folder).recipe()[0].checkpoint.every_steps == 2
    with pytest.raises(RunError, match=r"train\.lr: 0\.005 then"):
        go_on(recipe, folder, "train.lr=1e-4")


def test_a_damaged_start_of_an_adapter_is_refused(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """What PiSSA took out of the base is part of the weights, and no checkpoint has it."""
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


def test_a_second_signal_ends_also_where_the_terminal_is_gone() -> None:
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


def test_a_run_under_nohup_does_not_hear_of_hangups() -> None:
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interrupts.catch_signals(lambda text: None) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested
    signal.signal(signal.SIGHUP, usual)
