"""roundtrip train RECIPE: trains both directions of a recipe, or tells what that would take."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console

from roundtrip.cli.app import run_cli
from roundtrip.cli.check import dry_run_recipe
from roundtrip.recipe import loader
from roundtrip.runtime.event_log import EventLog


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(
        prog="roundtrip train",
        description="Train two translation directions that generate training data for each other.",
    )
    parser.add_argument("recipe", help="a recipe file, or the name of a shipped recipe such as 'quickstart'")
    parser.add_argument("--out", metavar="RUN", type=Path, help="folder of the run (default: runs/NAME-OF-RECIPE)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change a key, e.g. train.lr=1e-4"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run, with identical results")
    parser.add_argument(
        "--dry-run", action="store_true", help="load everything, try one batch of each kind, report, and write nothing"
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: write the report to standard output")
    run_cli(_train, parser)


def _train(arguments: argparse.Namespace) -> None:
    if arguments.dry_run:
        dry_run_recipe(arguments)
        return
    loaded = loader.load_recipe(arguments.recipe, arguments.set)
    # Of several processes only the first one prints.
    events = EventLog(Console(quiet=os.environ.get("RANK", "0") != "0"))
    events.say(f"recipe {loaded.path}: valid")
    loader.forbid_unused_hub(loaded.recipe, loaded.folder)
    # torch takes seconds to import, for which neither --help nor a typo should wait.
    from roundtrip.backtranslation import session

    session.train(loaded, arguments.out or Path("runs") / loaded.path.stem, resume=arguments.resume, events=events)
