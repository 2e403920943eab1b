"""roundtrip train RECIPE: trains both directions of a recipe, or reports what that would take."""

import argparse
import os
from pathlib import Path

from rich.console import Console

from roundtrip.cli.app import ArgumentParser, add_recipe_arguments, open_recipe, run_cli
from roundtrip.cli.check import dry_run_recipe
from roundtrip.cli.streams import outlive_output
from roundtrip.runtime.errors import UsageError


def main() -> None:
    description = "Train two translation directions that generate training data for each other."
    parser = ArgumentParser(prog="roundtrip train", description=description)
    add_recipe_arguments(parser)
    parser.add_argument("--out", metavar="RUN", type=Path, help="folder of the run (default: runs/NAME-OF-RECIPE)")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="continue an interrupted run, with identical results")
    either.add_argument("--dry-run", action="store_true", help="the same as `roundtrip check`: write nothing")
    parser.add_argument("--json", action="store_true", help="with --dry-run: write the report to standard output")
    run_cli(_train, parser)


def _train(arguments: argparse.Namespace) -> None:
    if arguments.dry_run:
        dry_run_recipe(arguments)
        return
    if arguments.json:
        raise UsageError("applies to a dry run only", place="--json", cure="add --dry-run, or omit --json")
    outlive_output()
    # Of several processes only the first one prints.
    loaded, events = open_recipe(arguments, Console(quiet=os.environ.get("RANK", "0") != "0"))
    from roundtrip.backtranslation import session
    from roundtrip.report.page import live_writer

    folder = arguments.out or Path("runs") / loaded.path.stem
    session.train(loaded, folder, resume=arguments.resume, events=events, on_evaluation=live_writer(events))
