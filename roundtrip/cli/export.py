"""roundtrip export RUN OUT: writes directions for other software, with tokenizer, prompt and model card."""

import argparse
import os
from pathlib import Path

from rich.console import Console

from roundtrip.cli.app import ArgumentParser, open_run, run_cli
from roundtrip.recipe.plan import directions
from roundtrip.runtime.downloads import is_offline
from roundtrip.runtime.errors import UsageError
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
    add("--push", metavar="ORG/NAME", help="upload each to the hub too, as ORG/NAME-en-es, private")
    add("--public", action="store_true", help="make public what --push creates on the hub")
    run_cli(_export_run, parser)


def _export_run(arguments: argparse.Namespace) -> None:
    """Write one direction of a run, or both, each into a folder of its own, or none."""
    if arguments.public and not arguments.push:
        raise UsageError("applies to --push only", place="--public", cure="add --push ORG/NAME, or omit it")
    if arguments.push and (os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"} or is_offline()):
        cure = "omit --offline (ROUNDTRIP_OFFLINE, HF_HUB_OFFLINE), or push later: hf upload ORG/NAME FOLDER ."
        raise UsageError("network access is off", place="--push", cure=cure)
    run, recipe = open_run(arguments.run)
    from roundtrip.backtranslation import trained_models
    from roundtrip.backtranslation.export import base_off_hub, export_all, is_model, refuse_used
    from roundtrip.backtranslation.push import check_target, push, repository_name

    chosen = [trained_models.direction_into(run, arguments.to)] if arguments.to else list(directions(recipe))
    folders = {direction.name: arguments.out / direction.name for direction in chosen}
    for folder in folders.values():
        refuse_used(folder)
    repositories = {each.name: repository_name(arguments.push, each) for each in chosen} if arguments.push else {}
    for each in chosen if arguments.push else ():  # before anything is written
        check_target(repositories[each.name], each)
    has_template = export_all(run.path, folders, arguments.stage, arguments.merged, arguments.dtype)
    for name, folder in folders.items():
        print_line(Console(), f"{folder}: {'a model' if is_model(folder) else 'an adapter'}")
        if base := base_off_hub(folder):
            problem = f"warning: its base {base} is not on the hub, and whoever uses the adapter needs it"
            print_line(Console(), f"  {problem}; --merged writes a model that needs no base")
        if not has_template[name]:
            problem = "no chat template, since its tokenizer would not reproduce our prompts; see README.md"
            print_line(Console(), f"  {problem}")
    for name, repository in repositories.items():
        print_line(Console(), f"{folders[name]}: pushed, {push(folders[name], repository, public=arguments.public)}")
