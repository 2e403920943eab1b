"""roundtrip translate RUN --to LANGUAGE < in.txt > out.txt: translates with a trained run."""

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

# Lines are read, translated and written in chunks of this size, so that output streams.
CHUNK_LINES = 512


def main() -> None:
    """Parse the arguments of `roundtrip translate` and run it."""
    parser = argparse.ArgumentParser(
        prog="roundtrip translate",
        description="Translate lines from standard input to standard output: one output line per input line, in order.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--to", required=True, metavar="LANGUAGE", help="code of the language to translate into")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda:0, ...")
    parser.add_argument("--stage", default=BEST, help="which adapters: best (default), parallel, round-1, ...")
    run_cli(translate_stdin, parser)


def translate_stdin(arguments: argparse.Namespace) -> None:
    """Translate standard input to standard output.

    Raises:
        RunError: not a run, or not into this language.
        TextError: a line is not UTF-8, or one or more are too long; the other lines are written.
    """
    run = RunFolder(arguments.run)
    manifest = run.manifest()
    recipe, folder = run.recipe(manifest), Path(manifest.folder)
    forbid_unused_hub(recipe, folder)
    # torch takes seconds to import, for which neither --help nor a typo should wait.
    from roundtrip.backtranslation import trained_models
    from roundtrip.backtranslation.dev_scoring import greedy_settings
    from roundtrip.engine.long_inputs import translate_any_length

    direction = trained_models.direction_into(run, arguments.to)
    translator = trained_models.load(run, direction, arguments.stage, arguments.device)
    settings = greedy_settings(recipe)
    lines = iter(sys.stdin.buffer)
    refused: list[str] = []
    truncated: list[str] = []
    start = 0
    while chunk := list(islice(lines, CHUNK_LINES)):
        texts = [decode(line, number) for number, line in enumerate(chunk, start=start + 1)]
        for text in translate_any_length(translator, texts, settings, refused, truncated, start):
            sys.stdout.buffer.write(text.encode("utf-8") + b"\n")
        sys.stdout.buffer.flush()
        start += len(chunk)
    for problem in refused + truncated:
        Console(stderr=True).print(Text(printable(problem)), soft_wrap=True)
    if refused:
        raise TextError(
            f"{len(refused)} line(s) were too long to translate; empty lines were written for them",
            place="standard input",
        )


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
