"""The command line: its subcommands, and what they share: quiet libraries, opened runs, printed errors, exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shlex
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from roundtrip import __version__
from roundtrip.runtime.disk_space import cure_of
from roundtrip.runtime.downloads import go_offline, is_offline
from roundtrip.runtime.errors import (
    Interrupted,
    OutputError,
    RoundtripError,
    TrainingError,
    UsageError,
    first_line,
    printable,
)
from roundtrip.runtime.event_log import EventLog, print_line

if TYPE_CHECKING:
    from roundtrip.backtranslation.run_folder import RunFolder
    from roundtrip.engine.translator import Translator
    from roundtrip.recipe.loader import LoadedRecipe
    from roundtrip.recipe.schema import Generate, Recipe

# Each is a module of this folder, which is imported only when its command is given.
COMMANDS = {
    "init": "look at text files, and write a recipe that trains on them",
    "train": "train both directions of a recipe, or resume a run",
    "check": "dry run: what a run would do, how long it takes and what memory it needs",
    "translate": "translate files or standard input with a trained run",
    "serve": "translate for other programs over HTTP, with a page for people",
    "evaluate": "score one or two systems on a test set",
    "report": "write a page about a run: its verdict, scores, curves and samples; or compare runs",
    "export": "write a trained direction for transformers, PEFT and vLLM",
}

# Of an error that nobody expected; EX_SOFTWARE of sysexits.h.
EXIT_FAULT = 70
_REPORTED = ("torch", "transformers", "peft")


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors quote arguments shortened and without control characters."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(str(UsageError(message))))


def main() -> None:
    """Run the subcommand that the first argument names."""
    description = "Train two translation directions by back-translation."
    epilog = "`roundtrip COMMAND --help` lists the options of a command."
    parser = ArgumentParser(prog="roundtrip", description=description, epilog=epilog)
    parser.add_argument("--version", action="version", version=f"roundtrip {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    command = parser.parse_args(sys.argv[1:2]).command
    del sys.argv[1]
    importlib.import_module(f"roundtrip.cli.{command}").main()


def run_cli(run: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Parse the arguments, and run a subcommand with them."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--offline", action="store_true", help="no network access: use only what is in the caches")
    arguments = parser.parse_args()
    _quiet_libraries()
    if arguments.offline or is_offline():
        go_offline()
    try:
        run(arguments)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" or "recipe" not in arguments:
            raise
        cure = "lower train.max_tokens_per_microbatch and generate.max_tokens_per_batch, and start a new run"
        raise TrainingError(first_line(error), cure=cure) from error


def exit_with(run: Callable[[], None]) -> NoReturn:
    """Run a command line, print the error that it ends with, and exit with a code: see docs/reliability.md."""
    code: int | str | None = 0
    ctrl_c_ends = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    try:
        if ctrl_c_ends:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            run()
        except SystemExit as error:
            code = error.code
        finally:
            # From here on a further Ctrl-C ends the process without a traceback.
            if ctrl_c_ends:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        message, code = _message_and_code(error)
        if "--debug" in sys.argv:
            traceback.print_exception(error)
        if message:
            print_line(Console(stderr=True), message, "bold")
    sys.exit(code)


def _message_and_code(error: BaseException) -> tuple[str, int]:
    """Return what to print about an error, and the exit code."""
    match error:
        case OutputError(exit_code=141):
            return "", 141
        case RoundtripError():
            return f"{'stopped' if isinstance(error, Interrupted) else 'error'}: {error}", error.exit_code
        case KeyboardInterrupt():
            return "stopped: interrupted before there was anything to save", 130
        case _ if type(error).__name__ == "OutOfMemoryError":
            cure = "end other programs that use the device, or name another one, such as --device cpu"
        case MemoryError():
            cure = "end other programs, or raise the limit of memory (ulimit -v)"
        case ImportError():
            cure = "repair the installation (pip check), or raise the limit of memory (ulimit -v)"
        case _ if system_cure := cure_of(error):
            cure = system_cure
        case RuntimeError() if "home directory" in str(error):  # of pathlib, about `~nobody`
            cure = "write the path without ~"
        case _:
            return _report(error), EXIT_FAULT
    problem = first_line(error) if str(error) else f"memory ran out ({type(error).__name__})"
    return f"error: {RoundtripError(problem, cure=cure)}", 3


def _report(error: BaseException) -> str:
    """Write a traceback to a file for a report, and return what to print about an error that nobody expected."""
    numbers = [f"{name} {version}" for name in _REPORTED if (version := _version(name))]
    versions = ", ".join([f"roundtrip {__version__}", f"python {platform.python_version()}", *numbers])
    cure = "please report it with what --debug shows"
    with suppress(OSError):
        settings: dict[str, Any] = {"prefix": "roundtrip-", "suffix": ".txt", "delete": False}
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", errors="backslashreplace", **settings) as file:
            file.write(f"{shlex.join(sys.argv)}\n{versions}\n\n{''.join(traceback.format_exception(error))}")
        cure = f"please report it with the file {file.name}, which has the command and the traceback"
    problem = f"an unexpected error, a fault of roundtrip: {type(error).__name__}: {first_line(error)}"
    return f"error: {RoundtripError(problem, cure=cure)}\n  {versions}"


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _quiet_libraries() -> None:
    """Turn off progress bars of libraries, and their warnings unless `--debug` is given."""
    # Libraries that are not imported yet, which would take seconds, are configured through the environment.
    variables = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_VERBOSITY": "error"}
    for name, value in (variables | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}).items():
        os.environ.setdefault(name, value)
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    if "--debug" not in sys.argv:
        warnings.filterwarnings("ignore", module=r"(transformers|peft|torch|accelerate|huggingface_hub)(\..*)?")


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `open_recipe` reads."""
    parser.add_argument("recipe", help="a recipe file, or the name of a shipped recipe such as 'quickstart'")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change a key: train.lr=1e-4")


def open_recipe(arguments: argparse.Namespace, console: Console) -> tuple[LoadedRecipe, EventLog]:
    """Read and check a recipe, before torch is imported: it takes seconds, for which no typo should wait."""
    from roundtrip.recipe import loader

    loaded = loader.load_recipe(arguments.recipe, arguments.set)
    events = EventLog(console)
    events.say(f"recipe {loaded.path}: valid")
    loader.forbid_unused_hub(loaded.recipe, loaded.folder)
    return loaded, events


def open_run(path: Path) -> tuple[RunFolder, Recipe]:
    """Open a run for use, before torch is imported."""
    from roundtrip.backtranslation.run_folder import RunFolder
    from roundtrip.recipe.loader import forbid_unused_hub

    run = RunFolder(path)
    manifest = run.manifest()
    recipe = run.recipe(manifest)
    forbid_unused_hub(recipe, Path(manifest.folder))
    return run, recipe


def load_translator(path: Path, to: str, stage: str, device: str) -> tuple[Translator, Generate]:
    """Load the direction of a run into a language, and the settings of its search."""
    run, recipe = open_run(path)
    from roundtrip.backtranslation import trained_models
    from roundtrip.backtranslation.dev_scoring import search_settings

    direction = trained_models.direction_into(run, to)
    return trained_models.load(run, direction, stage, device), search_settings(recipe)
