"""Several processes do what one does: the same synthetic text, the same weights up to rounding, one end for all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from roundtrip.backtranslation import checkpoint
from roundtrip.runtime.distributed import SINGLE_PROCESS, ProcessGroup, join_processes
from roundtrip.runtime.errors import DistributedError
from tests.conftest import WriteRecipe
from tests.runs import end_state, go

TRAIN = "from roundtrip.__main__ import main; main('roundtrip.cli.train')"
# Sums in another order: the last bits of a float32, after ten steps of Adam.
CLOSE = 2e-6
# Sampling, and selection by the reverse direction: all work that processes share.
SAMPLED = ("[filter]", "[generate]\ntemperature = 0.9\nnum_candidates = 3\nmax_tokens_per_batch = 900\n[filter]")
PLAIN = ("dropout = 0.1", "dropout = 0.0")


@contextmanager
def started(number: int, *arguments: str, code: str = TRAIN) -> Iterator[list[subprocess.Popen[str]]]:
    """Start training in `number` processes, as a launcher does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    common |= {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(number)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def go_together(number: int, recipe: Path, out: Path, *more: str) -> str:
    """Run a recipe in `number` processes, and return what the main process showed."""
    with started(number, str(recipe), "--out", str(out), *more) as processes:
        shown = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * number, shown
    assert all(output == "" for output, _ in shown[1:]), "the main process alone shows anything"
    return shown[0][0]


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Compare two end states: all but the weights equal, these as sums in another order are."""
    assert {k: v for k, v in one.items() if k != "tensors"} == {k: v for k, v in other.items() if k != "tensors"}
    assert one["tensors"].keys() == other["tensors"].keys()
    for name, tensors in one["tensors"].items():
        for key, value in tensors.items():
            apart = (value - other["tensors"][name][key]).abs()
            assert apart.max() < CLOSE and apart.mean() < CLOSE / 10, (name, key, apart.max())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Path, Path]:
    """A recipe and its run in one process."""
    from tests.conftest import RECIPE, toy_pairs

    folder = tmp_path_factory.mktemp("alone")
    (folder / "toy.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in toy_pairs()), encoding="utf-8")
    text = RECIPE.format(model=model_folder).replace(*PLAIN).replace(*SAMPLED)
    (folder / "small.toml").write_text(text, encoding="utf-8")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    go(folder / "small.toml", folder / "run")
    torch.set_num_threads(before)
    return folder / "small.toml", folder / "run"


@pytest.mark.parametrize("number", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_end_as_one_process(alone: tuple[Path, Path], tmp_path: Path, number: int) -> None:
    recipe, whole = alone
    shown = go_together(number, recipe, tmp_path / "run")
    assert "Test scores" in shown
    assert_close(end_state(tmp_path / "run"), end_state(whole))


def test_torchrun_and_processes_without_rows(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """With two rows a step for three processes one has none, and contributes zeros."""
    recipe = write_recipe(
        PLAIN, ("batch_size = 16", "batch_size = 2"), ("monolingual_lines = 24", "monolingual_lines = 3")
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    go(recipe, tmp_path / "alone")
    torch.set_num_threads(before)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    done = subprocess.run(
        [*command, "-m", "roundtrip.train", str(recipe), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert_close(end_state(tmp_path / "run"), end_state(tmp_path / "alone"))


def wait_for_steps(out: Path, number: int, processes: Sequence[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert any(process.poll() is None for process in processes)
        if (out / "events.jsonl").exists() and (out / "events.jsonl").read_text().count('"event": "step"') >= number:
            return
        time.sleep(0.005)
    pytest.fail("no steps")


# Slows each step down, so that a signal comes in the middle of a run.
SLOW = (
    "import time; from roundtrip.backtranslation import trainer; step = trainer.train_step; "
    "trainer.train_step = lambda *a, **b: (time.sleep(0.4), step(*a, **b))[1]; "
)


@pytest.mark.parametrize("dead", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_others_and_another_number_can_resume(
    alone: tuple[Path, Path], tmp_path: Path, dead: int
) -> None:
    recipe, whole = alone
    out = tmp_path / "run"
    with started(2, str(recipe), "--out", str(out), code=SLOW + TRAIN) as processes:
        wait_for_steps(out, 3, processes)
        processes[dead].kill()
        _, errors = processes[1 - dead].communicate(timeout=60)
    assert processes[1 - dead].returncode == 3
    assert "another process of this run has ended" in errors and "--resume" in errors and "Traceback" not in errors
    assert checkpoint.names(out / "checkpoints")
    shown = go_together(3, recipe, out, "--resume") if dead else go(recipe, out, resume=True)
    assert "resumed at" in shown
    assert_close(end_state(out), end_state(whole))


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [[0], [1], [0, 1]])
def test_a_signal_to_any_process_stops_all_at_the_same_step(
    alone: tuple[Path, Path], tmp_path: Path, signalled: list[int]
) -> None:
    recipe, whole = alone
    out = tmp_path / "run"
    changes = ("--set", "checkpoint.every_steps=1000")
    with started(2, str(recipe), "--out", str(out), *changes, code=SLOW + TRAIN) as processes:
        wait_for_steps(out, 6, processes)
        for number in signalled:
            processes[number].send_signal(signal.SIGTERM)
        shown = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], shown
    state, _ = checkpoint.newest(out / "checkpoints", lambda text: pytest.fail(text))  # type: ignore[misc]
    assert state.total_steps() >= 6
    go_together(2, recipe, out, "--resume", *changes)
    assert_close(end_state(out), end_state(whole))


def test_an_error_of_the_main_process_ends_all(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("dear")
    with started(2, str(write_recipe()), "--out", str(tmp_path / "run")) as processes:
        shown = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [2, 3], shown
    assert "is not empty and not a run" in shown[0][1] and "another process of this run has ended" in shown[1][1]
    assert "Traceback" not in shown[0][1] + shown[1][1]


LATE = (
    "import time; from roundtrip.backtranslation import checkpoint; save = checkpoint.save; "
    "checkpoint.save = lambda *a: (time.sleep(2), save(*a))[1]; "
)


def test_a_signal_waits_for_a_slow_checkpoint(alone: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = ("--set", "checkpoint.every_steps=1000")
    with started(2, str(alone[0]), "--out", str(out), *changes, code=SLOW + LATE + TRAIN) as processes:
        wait_for_steps(out, 1, processes)
        processes[1].send_signal(signal.SIGTERM)
        shown = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], shown
    names = checkpoint.names(out / "checkpoints")
    assert names[-1] > "0000-000000" and not list((out / "checkpoints").glob(".*"))


def test_the_error_is_shown_under_torchrun(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """torchrun ends the other processes when one has ended; the error must have been shown by then."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("dear")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "roundtrip.train", str(write_recipe()), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "is not empty and not a run" in done.stderr and "name another folder with --out" in done.stderr


DRIFTING = (
    "import os; from roundtrip.models.optimizer import Optimizer; digest = Optimizer.digest; "
    "Optimizer.digest = lambda self: digest(self) + os.environ['RANK']; "
)


def test_processes_with_different_weights_are_refused(alone: tuple[Path, Path], tmp_path: Path) -> None:
    with started(2, str(alone[0]), "--out", str(tmp_path / "run"), code=DRIFTING + TRAIN) as processes:
        shown = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [3, 3]
    assert any("differ between the processes" in errors for _, errors in shown)


SHORT = (
    "import os; from roundtrip.engine import train_step as step; loss_sum = step.loss_sum\n"
    "def small(model, batch, **settings):\n"
    "    if os.environ['RANK'] == '1' and batch.ids_BT.numel() > 150:\n"
    "        raise MemoryError\n"
    "    return loss_sum(model, batch, **settings)\n"
    "step.loss_sum = small\n"
)


def test_memory_that_runs_out_in_one_process_changes_nothing(alone: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, whole = alone
    with started(2, str(recipe), "--out", str(tmp_path / "run"), code=SHORT + TRAIN) as processes:
        shown = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], shown
    assert "out of memory; from here on microbatches have at most" in shown[0][0], (
        "the main process reports it for the other"
    )
    assert_close(end_state(tmp_path / "run"), end_state(whole))


def test_nonfinite_steps_are_the_same_for_all(alone: tuple[Path, Path], tmp_path: Path) -> None:
    """Where the loss is not finite in one process, no process takes the step."""
    broken = (
        "import os, torch; from roundtrip.engine import train_step as step; loss_sum = step.loss_sum\n"
        "calls = iter(range(10**6))\n"
        "def bad(*a, **b):\n"
        "    loss = loss_sum(*a, **b)\n"
        "    worse = torch.is_grad_enabled() and next(calls) == 0 and os.environ['RANK'] == '1'\n"
        "    return loss * torch.nan if worse else loss\n"
        "step.loss_sum = bad\n"
    )
    with started(2, str(alone[0]), "--out", str(tmp_path / "run"), code=broken + TRAIN) as processes:
        shown = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], shown
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["nonfinite_steps"] == {"en-es": 1}
    assert len(list((tmp_path / "run" / "nonfinite_steps").iterdir())) == 1


def test_a_single_process_communicates_with_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_processes(True) as processes:
        assert processes is SINGLE_PROCESS and processes.is_main
        assert processes.shard([1, 2, 3]) == [1, 2, 3] and processes.gather(5) == [5]
        value = torch.ones(2)
        assert processes.all_reduce(value) is value
    assert "accelerate.state" not in sys.modules or not torch.distributed.is_initialized()


def test_shards_hold_everything_once_and_may_be_empty() -> None:
    for count in (1, 2, 5):
        shards = [ProcessGroup(number, count).shard(range(3)) for number in range(count)]
        assert sorted(value for shard in shards for value in shard) == [0, 1, 2]
    assert ProcessGroup(4, 5).shard(range(3)) == []


def test_processes_that_cannot_connect_name_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DistributedError, match=r"cannot connect(.|\n)*MASTER_ADDR"), join_processes(True):
        pass


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_a_rank_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(DistributedError, match=r"not a number: .*'x'(.|\n)*torchrun"), join_processes(True):
        pass
