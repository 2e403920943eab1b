"""The top-level command line: its list of commands, `--help` without heavy imports, and exit codes of errors."""

from __future__ import annotations

import argparse
import errno
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable

import pytest
import torch

from roundtrip import __version__
from roundtrip.cli import app
from roundtrip.cli.app import COMMANDS, run_cli
from roundtrip.runtime.errors import Interrupted, TextError, TrainingError
from tests import ROOT


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
    from roundtrip.cli import train

    assert roundtrip.__main__.main is app.main
    calls: list[str] = []
    monkeypatch.setattr(train, "main", lambda: calls.append("train"))
    monkeypatch.delitem(sys.modules, "roundtrip.train", raising=False)
    runpy.run_module("roundtrip.train", run_name="__main__")
    assert calls == ["train"]


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
        run_cli(raising(error), argparse.ArgumentParser())
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
        run_cli(raising(torch.OutOfMemoryError("CUDA out of memory.")), parser)
    assert exit_info.value.code == 3 and cure in capsys.readouterr().err


@pytest.mark.parametrize("error", [TextError("bad line"), KeyboardInterrupt()])
def test_debug_raises_the_error(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["roundtrip", "--debug"])
    with pytest.raises(type(error)):
        run_cli(raising(error), argparse.ArgumentParser())


def test_unexpected_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["roundtrip"])
    with pytest.raises(ZeroDivisionError):
        run_cli(raising(ZeroDivisionError()), argparse.ArgumentParser())
