"""roundtrip check RECIPE: the dry run, which reports what a run would do, how long it takes and what it needs."""

import argparse
import json
import sys

from rich.console import Console

from roundtrip.cli.app import ArgumentParser, add_recipe_arguments, open_recipe, run_cli


def main() -> None:
    description = (
        "Load everything, try one batch of each kind, and report what a run would do, how long it takes, how much "
        "memory it needs, and whether generated tokens can become training rows without going through text."
    )
    parser = ArgumentParser(prog="roundtrip check", description=description)
    add_recipe_arguments(parser)
    parser.add_argument("--json", action="store_true", help="write the report to standard output as JSON")
    run_cli(dry_run_recipe, parser)


def dry_run_recipe(arguments: argparse.Namespace) -> None:
    loaded, events = open_recipe(arguments, Console(stderr=arguments.json))
    from roundtrip.backtranslation.dry_run import dry_run

    report = dry_run(loaded, events)
    if arguments.json:
        # JSON is UTF-8 whatever the terminal is, and a surrogate is its escape.
        text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
