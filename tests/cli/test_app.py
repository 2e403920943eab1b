"""The top-level command line: its list of commands, `--help` without heavy imports, and exit codes of errors."""

from __future__ import annotations

import argparse
import errno
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from roundtrip import __version__
from roundtrip.cli import app
from roundtrip.cli.app import COMMANDS, exit_with, run_cli
from roundtrip.runtime import errors
from roundtrip.runtime.errors import Interrupted, TextError, TrainingError
from tests import ROOT
from tests.tools.attack_cli import EXIT_CODES


def run_main(arguments: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_info:
        patch.setattr(sys, "argv", ["roundtrip", *arguments])
        app.main()
    return int(exit_info.value.code or 0)


def test_help_lists_every_command_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, summary in COMMANDS.items():
        assert f" {name} {summary}" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_imports_no_torch(name: str) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['roundtrip', '{name}', '--help']\n"
        "try: runpy.run_module('roundtrip', run_name='__main__')\n"
        "except SystemExit as error: assert not error.code\n"
        "assert not {'torch', 'transformers', 'sacrebleu', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--offline" in done.stdout


@pytest.mark.parametrize(("arguments", "message"), [(["trian"], "invalid choice: 'trian'"), ([], "required: COMMAND")])
def test_unknown_and_missing_commands_exit_with_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(arguments) == 2
    assert message in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(["--version"]) == 0
    assert capsys.readouterr().out == f"roundtrip {__version__}\n"


def test_console_script_and_train_module_have_the_same_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"roundtrip": "roundtrip.__main__:main"}
    import roundtrip.__main__
    from roundtrip.cli import streams, train

    calls: list[str] = []
    monkeypatch.setattr(app, "main", lambda: calls.append("app"))
    monkeypatch.setattr(train, "main", lambda: calls.append("train"))
    monkeypatch.setattr(streams, "protect_streams", lambda: calls.append("streams"))
    monkeypatch.delitem(sys.modules, "roundtrip.train", raising=False)
    usual = signal.getsignal(signal.SIGINT)
    try:
        for start in (roundtrip.__main__.main, lambda: runpy.run_module("roundtrip.train", run_name="__main__")):
            with pytest.raises(SystemExit):
                start()
    finally:
        signal.signal(signal.SIGINT, usual)
    assert calls == ["streams", "app", "streams", "train"]


def raising(error: BaseException) -> Callable[[argparse.Namespace], None]:
    def command(arguments: argparse.Namespace) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (TextError("bad line", place="a.txt:3", cure="fix it"), 2, "error: a.txt:3: bad line\n  fix it\n"),
        (TrainingError("nothing to train on"), 3, "error: nothing to train on\n"),
        (Interrupted(15), 143, "stopped: received SIGTERM\n  repeat the command with --resume"),
        (KeyboardInterrupt(), 130, "stopped: interrupted before there was anything to save"),
        (OSError(errno.ENOSPC, "No space left on device"), 3, "free disk space"),
        (OSError(errno.EIO, "Input/output error"), 3, "check the disk"),
        (PermissionError(errno.EACCES, "Permission denied"), 3, "change its permissions"),
        (OSError(errno.EMFILE, "Too many open files"), 3, "ulimit -a"),
        (OSError(errno.EFBIG, "File too large"), 3, "ulimit -f"),
        (ValueError("I/O error: Too many open files (os error 24)"), 3, "ulimit -a"),
        (RuntimeError("Could not determine home directory."), 3, "without ~"),
        (ImportError("a.so: failed to map segment from shared object"), 3, "pip check"),
        (MemoryError(), 3, "error: memory ran out (MemoryError)\n  end other programs"),
    ],
)
def test_run_cli_prints_errors_and_exits_with_their_code(
    error: BaseException,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["roundtrip"])
    with pytest.raises(SystemExit) as exit_info:
        exit_with(lambda: run_cli(raising(error), argparse.ArgumentParser()))
    captured = capsys.readouterr()
    assert exit_info.value.code == code and message in captured.err and not captured.out
    assert captured.err.count("stopped") <= 1


@pytest.mark.parametrize(
    ("names", "cure"), [([], "--device cpu"), (["recipe"], "lower train.max_tokens_per_microbatch")]
)
def test_the_cure_of_exhausted_memory_is_one_that_the_command_has(
    names: list[str], cure: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["roundtrip", *names])
    parser = argparse.ArgumentParser()
    for name in names:
        parser.add_argument(name)
    with pytest.raises(SystemExit) as exit_info:
        exit_with(lambda: run_cli(raising(torch.OutOfMemoryError("CUDA out of memory.")), parser))
    assert exit_info.value.code == 3 and cure in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(TextError("bad line"), 2), (KeyboardInterrupt(), 130), (ZeroDivisionError(), 70)]
)
def test_debug_shows_the_traceback(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["roundtrip", "--debug"])
    with pytest.raises(SystemExit) as exit_info:
        exit_with(lambda: run_cli(raising(error), argparse.ArgumentParser()))
    assert exit_info.value.code == code
    assert "Traceback (most recent call last):\n" in capsys.readouterr().err


def test_every_exit_code_is_documented() -> None:
    section = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split("## Exit codes")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    codes = {int(code) for row in rows for code in re.findall(r"\d+", row)}
    kinds = [getattr(errors, name) for name in dir(errors)]
    raised = {kind.exit_code for kind in kinds if isinstance(kind, type) and issubclass(kind, errors.RoundtripError)}
    signals = {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    assert codes == raised | signals | {0, 3, app.EXIT_FAULT, 141} == EXIT_CODES


@pytest.mark.parametrize("folder_exists", [True, False])
def test_an_unexpected_error_asks_for_a_report(
    folder_exists: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path if folder_exists else tmp_path / "missing"))
    monkeypatch.setattr(sys, "argv", ["roundtrip", "\udcff"])
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    with pytest.raises(SystemExit) as exit_info:
        exit_with(lambda: run_cli(raising(ValueError("of\x1b[31m")), parser))
    shown = capsys.readouterr().err
    assert exit_info.value.code == 70 and "Traceback" not in shown
    assert "a fault of roundtrip: ValueError: of\\x1b[31m\n" in shown
    assert re.search(r"roundtrip \S+, python \S+, torch \S+, transformers \S+, peft \S+\n", shown)
    reports = list(tmp_path.glob("roundtrip-*.txt"))
    assert len(reports) == folder_exists
    if folder_exists:
        report = reports[0].read_text(encoding="utf-8")
        assert str(reports[0]) in shown and "Traceback" in report and "roundtrip '\\udcff'\n" in report
    else:
        assert "please report it with what --debug shows" in shown
