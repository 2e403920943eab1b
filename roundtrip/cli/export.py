"""roundtrip export RUN OUT: writes directions for other software, with tokenizer, prompt and model card."""

import argparse
from pathlib import Path

from rich.console import Console

from roundtrip.cli.app import ArgumentParser, open_run, run_cli
from roundtrip.recipe.plan import directions
from roundtrip.runtime.event_log import print_line


def main() -> None:
    description = "Write folders that transformers, PEFT and vLLM read: OUT/en-es and OUT/es-en."
    parser = ArgumentParser(prog="roundtrip export", description=description)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a run")
    add("out", type=Path, metavar="OUT", help="folder to write, new or empty")
    add("--to", metavar="LANGUAGE", help="only the direction into this language (default: both)")
    add("--stage", default="best", help="which weights: best (default), parallel, round-1, ...")
    add("--merged", action="store_true", help="one plain model instead of an adapter for the base")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of a merged model (default: as the base)")
    run_cli(_export_run, parser)


def _export_run(arguments: argparse.Namespace) -> None:
    """Write one direction of a run, or both, each into a folder of its own, or none."""
    run, recipe = open_run(arguments.run)
    from roundtrip.backtranslation import trained_models
    from roundtrip.backtranslation.export import base_off_hub, export_all, is_model

    chosen = [trained_models.direction_into(run, arguments.to)] if arguments.to else list(directions(recipe))
    folders = {direction.name: arguments.out / direction.name for direction in chosen}
    has_template = export_all(run.path, folders, arguments.stage, arguments.merged, arguments.dtype)
    for name, folder in folders.items():
        print_line(Console(), f"{folder}: {'a model' if is_model(folder) else 'an adapter'}")
        if base := base_off_hub(folder):
            problem = f"warning: its base {base} is not on the hub, and whoever uses the adapter needs it"
            print_line(Console(), f"  {problem}; --merged writes a model that needs no base")
        if not has_template[name]:
            problem = "no chat template, since its tokenizer would not reproduce our prompts; see README.md"
            print_line(Console(), f"  {problem}")
