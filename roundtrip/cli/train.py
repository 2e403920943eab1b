"""roundtrip train RECIPE: trains both directions of a recipe, or resumes a run."""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from roundtrip.cli.app import run_cli
from roundtrip.recipe import loader
from roundtrip.runtime.event_log import EventLog


def main() -> None:
    """Parse the arguments of `roundtrip train` and run it."""
    parser = argparse.ArgumentParser(
        prog="roundtrip train", description="Train two translation directions by back-translation."
    )
    parser.add_argument("recipe", help="a recipe file, or the name of a shipped recipe such as 'quickstart'")
    parser.add_argument("--out", metavar="RUN", type=Path, help="folder of the run (default: runs/NAME-OF-RECIPE)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change a key, e.g. train.lr=1e-4"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--check", action="store_true", help="validate everything, show what would run, and exit")
    run_cli(train_recipe, parser)


def train_recipe(arguments: argparse.Namespace) -> None:
    """Train a recipe into its run folder, in one process or as one of several."""
    loaded = loader.load(arguments.recipe, arguments.set)
    # Of several processes only the first prints.
    events = EventLog(Console(quiet=os.environ.get("RANK", "0") != "0"))
    events.say(f"recipe {loaded.path}: valid")
    loader.forbid_unused_hub(loaded.recipe, loaded.folder)
    # torch takes seconds to import, for which neither --help nor a typo should wait.
    from roundtrip.backtranslation import session
    from roundtrip.backtranslation.run_folder import run_lock
    from roundtrip.models.base_model import choose_device
    from roundtrip.runtime.distributed import join_processes

    if arguments.check:
        session.check(loaded, events)
        return
    path = arguments.out or Path("runs") / loaded.path.stem
    on_cpu = all(choose_device(model.device).type == "cpu" for model in loaded.recipe.model.values())
    with join_processes(on_cpu) as processes, run_lock(path) if processes.is_main else nullcontext():
        session.train(path, loaded, events, resume=arguments.resume, processes=processes)
