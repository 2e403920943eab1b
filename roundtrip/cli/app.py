"""The command line: its subcommands, and what they share: quiet libraries, printed errors and exit codes."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from roundtrip import __version__
from roundtrip.runtime.disk_space import error_numbers, is_full
from roundtrip.runtime.downloads import go_offline, is_offline
from roundtrip.runtime.errors import Interrupted, RoundtripError, first_line, printable

# Each is a module of this folder, which is imported only when its command is given.
COMMANDS = {
    "train": "train both directions of a recipe, or resume a run",
    "check": "dry run: what a run would do, how long it takes and what memory it needs",
    "translate": "translate standard input with a trained run",
    "evaluate": "score one or two systems on a test set",
    "export": "write a trained direction for transformers, PEFT and vLLM",
}


def main() -> None:
    """Run the subcommand that the first argument names."""
    parser = argparse.ArgumentParser(
        prog="roundtrip",
        description="Train two translation directions by back-translation.",
        epilog="`roundtrip COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"roundtrip {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    command = parser.parse_args(sys.argv[1:2]).command
    del sys.argv[1]
    importlib.import_module(f"roundtrip.cli.{command}").main()


def run_cli(run: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> NoReturn:
    """Parse the arguments, run a subcommand with them, and exit with a code.

    0: success. 2: what was asked for cannot be done. 3: training cannot continue. 129, 130, 143: stopped by a signal.
    """
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--offline", action="store_true", help="no network access: use only what is in the caches")
    arguments = parser.parse_args()
    _quiet_libraries()
    if arguments.offline or is_offline():
        go_offline()
    code = 0
    try:
        run(arguments)
    except RoundtripError as error:
        if arguments.debug:
            raise
        kind = "stopped" if isinstance(error, Interrupted) else "error"
        _print_error(f"{kind}: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        _print_error("stopped: interrupted before there was anything to save")
        code = 130
    except BrokenPipeError:
        # The reader of our output is gone; redirect it so that closing it does not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        cure = _cure(error)
        if cure is None or arguments.debug:
            raise
        _print_error(f"error: {first_line(error)}\n  {cure}")
        code = 3
    sys.exit(code)


def _print_error(text: str) -> None:
    Console(stderr=True).print(Text(printable(text), style="bold"), soft_wrap=True)


def _cure(error: Exception) -> str | None:
    """Return what to do about a machine that has run out of something; None for an unexpected error."""
    match type(error).__name__:
        case "OutOfMemoryError":
            return "lower train.max_tokens_per_microbatch and generate.max_tokens_per_batch, and start a new run"
        case _ if is_full(error):
            return "free disk space and repeat the command; add --resume to continue a run that has a checkpoint"
        case _ if errno.EIO in error_numbers(error):
            return "check the disk; add --resume to continue a run that has a checkpoint"
        case _ if isinstance(error, PermissionError):
            return "name another folder, or change its permissions"
    return None


def _quiet_libraries() -> None:
    """Turn off the progress bars of libraries, and their warnings about their own internals unless `--debug` is given.

    Libraries that are not imported yet, which would take seconds, are configured through the environment.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    # A model's configuration may name kernels on the hub, which would be downloaded and executed.
    os.environ["USE_HUB_KERNELS"] = "0"
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    if "--debug" not in sys.argv:
        warnings.filterwarnings("ignore", module=r"(transformers|peft|torch|accelerate|huggingface_hub)(\..*)?")
