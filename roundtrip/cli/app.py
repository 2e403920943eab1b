"""What every door shares: libraries kept quiet, errors told to a person, exit codes."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from roundtrip.runtime.disk_space import error_numbers, is_full
from roundtrip.runtime.downloads import go_offline, is_offline
from roundtrip.runtime.errors import Interrupted, RoundtripError, first_line, printable


def run_cli(work: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> NoReturn:
    """Parse the arguments, do the work, and leave with an exit code.

    0: done. 2: something asked for cannot be done. 3: training could not go on. 129, 130, 143: stopped
    by a signal.
    """
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--offline", action="store_true", help="no network at all: what is in the caches has to do")
    arguments = parser.parse_args()
    _quiet_libraries()
    if arguments.offline or is_offline():
        go_offline()
    code = 0
    try:
        work(arguments)
    except RoundtripError as error:
        if arguments.debug:
            raise
        word = "stopped" if isinstance(error, Interrupted) else "error"
        _tell(f"{word}: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        _tell("stopped: nothing was under way that needs saving")
        code = 130
    except BrokenPipeError:
        # The reader of our output has gone; point it elsewhere so that closing it raises nothing more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        cure = _cure(error)
        if cure is None or arguments.debug:
            raise
        _tell(f"error: {first_line(error)}\n  {cure}")
        code = 3
    sys.exit(code)


def _tell(text: str) -> None:
    Console(stderr=True).print(Text(printable(text), style="bold"), soft_wrap=True)


def _cure(error: Exception) -> str | None:
    """Return what to do about a machine that has run out of something; None for what should not have happened."""
    match type(error).__name__:
        case "OutOfMemoryError":
            return "lower train.max_tokens_per_microbatch and generate.max_tokens_per_batch, and start anew"
        case _ if is_full(error):
            return "make room, and give the same command again; a run that has a checkpoint goes on with --resume"
        case _ if errno.EIO in error_numbers(error):
            return "look after the disk; a run that has a checkpoint goes on with --resume"
        case _ if isinstance(error, PermissionError):
            return "name another folder, or change its permissions"
    return None


def _quiet_libraries() -> None:
    """Leave the terminal to us: no bars of theirs, and warnings about their own insides only with --debug.

    Through the environment where they are not imported yet: that takes seconds.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Programs that a model's configuration may name, to be fetched and run.
    os.environ["USE_HUB_KERNELS"] = "0"
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    if "--debug" not in sys.argv:
        warnings.filterwarnings("ignore", module=r"(transformers|peft|torch|accelerate|huggingface_hub)(\..*)?")
