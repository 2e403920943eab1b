"""roundtrip check RECIPE: the dry run, which tells what a run would do, how long it takes and what it needs."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console

from roundtrip.cli.app import run_cli
from roundtrip.recipe import loader
from roundtrip.runtime.event_log import EventLog


def main() -> None:
    """Parse the arguments and make a dry run."""
    parser = argparse.ArgumentParser(
        prog="roundtrip check",
        description="Load everything, try one batch of each kind, and tell what a run would do, how long it takes, "
        "how much memory it needs, and whether generated tokens can become training rows without going through text.",
    )
    parser.add_argument("recipe", help="a recipe file, or the name of a shipped recipe such as 'quickstart'")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change a key, e.g. template.kind=chat"
    )
    parser.add_argument("--json", action="store_true", help="write the report to standard output as JSON")
    run_cli(dry_run_recipe, parser)


def dry_run_recipe(arguments: argparse.Namespace) -> None:
    """Make a dry run of the recipe that the arguments name."""
    loaded = loader.load_recipe(arguments.recipe, arguments.set)
    events = EventLog(Console(stderr=arguments.json))
    events.say(f"recipe {loaded.path}: valid")
    loader.forbid_unused_hub(loaded.recipe, loaded.folder)
    # Imported late: these take seconds, and a typo should be reported at once.
    from roundtrip.backtranslation.dry_run import dry_run

    report = dry_run(loaded, events)
    if arguments.json:
        sys.stdout.write(json.dumps(report, ensure_ascii=False, indent=1) + "\n")
