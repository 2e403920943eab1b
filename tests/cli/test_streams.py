"""Standard streams of real processes: closed, full, without a reader, of small character sets; and signals at start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import ROOT
from tests.runs import assert_same, end_state
from tests.tools.attack_cli import ENVIRONMENTS

Finished = tuple[Path, Path, str]
READ_ONE_LINE = '"$@" 2>&1 | head -1; exit ${PIPESTATUS[0]}'


def start(shell: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m` with arguments as a line of the shell says."""
    command = ["bash", "-c", shell, "bash", sys.executable, "-m", *arguments]
    settings = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        command,
        cwd=folder,
        input="I see the moon.\n",
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=100,
        env=settings,
    )


@pytest.mark.parametrize(
    "shell", [ENVIRONMENTS["no streams"], pytest.param('"$@" >/dev/full', marks=pytest.mark.slow), READ_ONE_LINE]
)
def test_training_continues_without_its_output(finished: Finished, tmp_path: Path, shell: str) -> None:
    done = start(shell, tmp_path, "roundtrip", "train", str(finished[0]), "--out", "run")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert_same(end_state(tmp_path / "run"), end_state(finished[1]))


@pytest.mark.slow
def test_a_run_outlives_its_terminal(finished: Finished, tmp_path: Path) -> None:
    """With progress bars, which a thread draws; under nohup, so that there is no hangup."""
    terminal, end = os.openpty()
    command = ["bash", "-c", 'trap "" HUP; exec "$@"', "bash", sys.executable, "-m", "roundtrip.train"]
    command += [str(finished[0]), "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, start_new_session=True) as process:
        os.close(end)
        shown = b""
        while b"reading" not in shown:
            shown += os.read(terminal, 1000)
        os.close(terminal)
        assert process.wait(timeout=100) == 0
    assert_same(end_state(tmp_path / "run"), end_state(finished[1]))


def test_a_limit_of_file_sizes_ends_a_run_that_can_be_resumed(finished: Finished, tmp_path: Path) -> None:
    arguments = ["roundtrip", "train", str(finished[0]), "--out", "run"]
    done = start('ulimit -f 60; "$@"', tmp_path, *arguments)
    assert done.returncode == 3 and "ulimit -f" in done.stderr and "--resume" in done.stderr
    assert not list((tmp_path / "run").rglob(".*"))
    done = start('"$@"', tmp_path, *arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same(end_state(tmp_path / "run"), end_state(finished[1]))


@pytest.mark.parametrize(
    ("environment", "code", "shown"),
    [
        ("closed pipe", 141, ""),
        ("full stdout", 3, "standard output: cannot be written: No space left on device"),
        ("no stdout", 3, "standard output: cannot be written: Bad file descriptor"),
        ("no stdin", 2, "standard input: cannot be read: Bad file descriptor"),
        ("no stderr", 0, ""),
    ],
)
def test_translate_says_where_a_stream_fails(
    finished: Finished, tmp_path: Path, environment: str, code: int, shown: str
) -> None:
    done = start(ENVIRONMENTS[environment], tmp_path, "roundtrip", "translate", str(finished[1]), "--to", "es")
    assert done.returncode == code and shown in done.stderr and "Traceback" not in done.stderr
    assert bool(done.stderr) == bool(shown) and bool(done.stdout) == (code == 0)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("environment", "code"), [("closed pipe", 141), ("full stdout", 3), ("full stderr", 0)])
def test_help_that_cannot_be_written(tmp_path: Path, environment: str, code: int, unbuffered: str) -> None:
    for arguments in (["--help"], ["train", "--help"]):
        done = start(ENVIRONMENTS[environment], tmp_path, "roundtrip", *arguments, PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == code and "Exception" not in done.stderr


@pytest.mark.parametrize("environment", ["ascii", "cp1252", "C"])
def test_characters_without_a_code_are_replaced(tmp_path: Path, environment: str) -> None:
    done = start(ENVIRONMENTS[environment], tmp_path, "roundtrip", "train", "naïve-→.toml")
    assert done.returncode == 2 and done.stderr.startswith("error: no recipe 'na")
    # In the C locale the argument itself consists of bytes.
    assert ("\\xe2\\x86\\x92.toml" if environment == "C" else "ve-?.toml") in done.stderr


def test_bytes_that_are_not_utf_8_in_a_path_are_shown_and_written(tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    Path(folder).mkdir()
    (Path(folder) / "t.tsv").write_text("a house\tuna casa\n" * 9)
    (Path(folder) / "s.es").write_text("una cosa\n" * 9)
    done = start('"$@"', Path(folder), "roundtrip", "train", f"{folder}/r.toml")
    assert done.returncode == 2 and f"no recipe '{tmp_path}/\\xff/r.toml'" in done.stderr
    files = ["--test", f"{folder}/t.tsv", "--system", f"{folder}/s.es", "--json", f"{folder}/o.json"]
    done = start('"$@"', Path(folder), "roundtrip", "evaluate", *files, "--samples", "10")
    assert done.returncode == 0, done.stderr
    document = json.loads((Path(folder) / "o.json").read_text(encoding="utf-8"))
    assert document["command"]["json"] == f"{folder}/o.json"


def test_an_export_into_a_path_that_is_not_utf_8_is_refused(finished: Finished, tmp_path: Path) -> None:
    done = start('"$@"', tmp_path, "roundtrip", "export", str(finished[1]), os.fsdecode(b"\xff"))
    assert done.returncode == 2 and "\\xff/en-es: has control characters, or bytes" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_start_ends_the_process_without_a_traceback(tmp_path: Path, number: signal.Signals) -> None:
    """Once our first line has run: before, the interpreter shows its own."""
    code = (
        "import sys; print(flush=True); sys.argv = ['roundtrip', 'train', 'missing']\n"
        "from roundtrip.__main__ import main; main()"
    )
    for step in range(0, 20, 2):
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.readline()
            time.sleep(0.03 + step * 0.01)
            process.send_signal(number)
            errors = process.stderr.read().decode()
        assert process.wait() in (-number, 128 + number, 2) and "Traceback" not in errors, (step, errors)
