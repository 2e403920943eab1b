"""python -m roundtrip translate RUN --to LANGUAGE < in.txt > out.txt: uses what was trained."""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.text import Text

from roundtrip.backtranslation.run_folder import BEST, RunFolder
from roundtrip.cli.app import run_cli
from roundtrip.data.normalize import clean
from roundtrip.recipe.loader import forbid_unused_hub
from roundtrip.runtime.errors import TextError, printable

# Lines are read, sorted by length and written in pieces of this size, so that output flows while input comes.
LINES_AT_ONCE = 512


def main() -> None:
    """The door."""
    parser = argparse.ArgumentParser(
        prog="python -m roundtrip translate",
        description="Translate lines from standard input to standard output: one in, one out, in order.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--to", required=True, metavar="LANGUAGE", help="code of the language to translate into")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda:0, ...")
    parser.add_argument("--stage", default=BEST, help="which adapters: best (default), parallel, round-1, ...")
    run_cli(_work, parser)


def _work(arguments: argparse.Namespace) -> None:
    run = RunFolder(arguments.run)
    manifest = run.manifest()
    recipe, folder = run.recipe(manifest), Path(manifest.folder)
    forbid_unused_hub(recipe, folder)
    # Seconds of imports, for which nobody should wait to read about a typo.
    from roundtrip.backtranslation import trained_models
    from roundtrip.backtranslation.dev_scoring import greedy_settings
    from roundtrip.engine.long_inputs import translate_any_length

    one = trained_models.load(run, trained_models.direction_into(run, arguments.to), arguments.stage, arguments.device)
    settings = greedy_settings(recipe)
    lines = iter(sys.stdin.buffer)
    refused: list[str] = []
    cut: list[str] = []
    start = 0
    while piece := list(islice(lines, LINES_AT_ONCE)):
        texts = [decode(line, start + number + 1) for number, line in enumerate(piece)]
        for text in translate_any_length(one, texts, settings, refused, cut, start):
            sys.stdout.buffer.write(text.encode("utf-8") + b"\n")
        sys.stdout.buffer.flush()
        start += len(piece)
    for problem in refused + cut:
        Console(stderr=True).print(Text(printable(problem)), soft_wrap=True)
    if refused:
        raise TextError(f"{len(refused)} line(s) too long to translate were written empty", place="standard input")


def decode(line: bytes, number: int) -> str:
    """Return one line of input as clean text.

    Raises:
        TextError: it is not UTF-8.
    """
    try:
        return clean(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise TextError(
            f"not UTF-8: {error.reason} at byte {error.start + 1}",
            place=f"standard input, line {number}",
            cure="convert it first, for example with iconv -t utf-8",
        ) from error
