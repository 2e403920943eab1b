"""Limits of time, memory and size on calls with hostile input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roundtrip.runtime import limits
from roundtrip.runtime.limits import LimitedCallError, call_limited

MIB = 1 << 20


def recurse(depth: int = 0) -> int:
    return recurse(depth + 1)


def loop() -> None:
    while True:
        pass


def exit_at_once() -> None:
    os._exit(3)


def raise_panic() -> None:
    raise BaseException("a panic")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (loop, "more than (0.5|1.5) seconds"),
        (lambda: time.sleep(60), "more than 1.5 seconds"),
        (lambda: bytearray(1 << 33), "too much memory"),
        (lambda: "a" * (1 << 40), "too much memory"),
        (recurse, "nested too deeply"),
        (lambda: 1 / 0, "division by zero"),
        (raise_panic, "a panic"),
        (exit_at_once, "exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), f"signal {int(signal.SIGSEGV)}"),
        (lambda: "a" * (2 * MIB), "more than 1 MiB"),
        (object, "not JSON serializable"),
    ],
)
def test_a_call_beyond_its_limits_is_an_error(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[], Any], words: str
) -> None:
    monkeypatch.setattr(limits, "RESULT_BYTES", MIB)
    start = time.monotonic()
    with pytest.raises(LimitedCallError, match=words):
        call_limited(function, 0.5, 64 * MIB)
    assert time.monotonic() - start < 5
    with pytest.raises(ChildProcessError):  # none is left
        os.waitpid(-1, os.WNOHANG)


def test_a_call_that_waits_ends_at_the_limit_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.CLOCK_SECONDS == 20
    monkeypatch.setattr(limits, "CLOCK_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(LimitedCallError, match="more than 0.5 seconds"):
        call_limited(lambda: time.sleep(60), 15)
    assert time.monotonic() - start < 5


def test_a_result_comes_back_though_it_is_larger_than_a_pipe() -> None:
    value = {"text": "línea \ud800 \0" * 300_000, "list": [1, None, 2.5]}
    assert call_limited(lambda: value) == value


def test_a_call_prints_nothing_and_changes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    changed: list[int] = []

    def call() -> int:
        changed.append(1)
        sys.stdout.write("printed")
        os.write(2, b"printed")
        return len(changed)

    assert call_limited(call) == 1
    assert changed == [] and capfd.readouterr() == ("", "")
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_a_handler_that_raises_ends_the_call() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            call_limited(loop, 30)
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_signals_of_the_terminal_do_not_end_a_call() -> None:
    def call() -> str:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        return "done"

    assert call_limited(call) == "done"


def test_calls_of_several_threads_do_not_mix() -> None:
    results: list[int] = []
    threads = [threading.Thread(target=lambda n=n: results.append(call_limited(lambda: n * 10**6))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [n * 10**6 for n in range(8)]


@pytest.mark.skipif(sys.platform != "linux", reason="lists open files")
def test_a_call_holds_no_open_file_of_its_caller(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w"):
        assert not call_limited(lambda: [1 for file in [*Path("/proc/self/fd").iterdir()] if "lock" in _target(file)])


def _target(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:
        return ""


def test_without_fork_errors_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    assert call_limited(lambda: (1, "a")) == [1, "a"]
    with pytest.raises(LimitedCallError, match="division by zero"):
        call_limited(lambda: 1 / 0)


def test_a_tokenizer_can_be_tried_on_a_machine_of_many_cores(model_folder: Path) -> None:
    """Its library starts a thread for each core, and those of the parent are not in the child."""
    script = (
        "import sys; from transformers import AutoTokenizer; from roundtrip.runtime.limits import call_limited\n"
        "load = lambda: AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "texts = [str(number) * 50 for number in range(64)]\n"
        "expected = load()(texts)['input_ids']\n"  # in threads of the parent
        "assert call_limited(lambda: load()(texts)['input_ids']) == expected\n"
    )
    command = [sys.executable, "-c", script, str(model_folder)]
    environment = os.environ | {"RAYON_NUM_THREADS": "256", "TOKENIZERS_PARALLELISM": "true"}
    subprocess.run(command, check=True, timeout=120, env=environment)


def test_half_of_a_result_is_an_error() -> None:
    with pytest.raises(LimitedCallError, match="ended while it returned"):
        limits._outcome(b'{"result": [1, 2')
