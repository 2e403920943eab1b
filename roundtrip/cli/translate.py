"""roundtrip translate RUN --to LANGUAGE < in.txt > out.txt: translates with a trained run."""

import argparse
import sys
from itertools import islice
from pathlib import Path

from rich.console import Console

from roundtrip.cli.app import load_translator, run_cli
from roundtrip.data.normalize import clean
from roundtrip.data.text_files import decoded_lines
from roundtrip.runtime.errors import TextError
from roundtrip.runtime.event_log import print_line

# Lines are read, translated and written in chunks of this size, so that output streams.
CHUNK_LINES = 512


def main() -> None:
    description = "Translate lines from standard input to standard output: one output line per input line, in order."
    parser = argparse.ArgumentParser(prog="roundtrip translate", description=description)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--to", required=True, metavar="LANGUAGE", help="code of the language to translate into")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda:0, ...")
    parser.add_argument("--stage", default="best", help="which adapters: best (default), parallel, round-1, ...")
    run_cli(translate_stdin, parser)


def translate_stdin(arguments: argparse.Namespace) -> None:
    """Translate standard input to standard output; lines that are too long are refused after all others are written."""
    translator, settings = load_translator(arguments.run, arguments.to, arguments.stage, arguments.device)
    from roundtrip.engine.long_inputs import translate_any_length

    lines = decoded_lines(sys.stdin.buffer, "standard input")
    refused: list[str] = []
    truncated: list[str] = []
    start = 0
    while chunk := [clean(line) for line in islice(lines, CHUNK_LINES)]:
        for text in translate_any_length(translator, chunk, settings, refused, truncated, start):
            sys.stdout.buffer.write(text.encode("utf-8") + b"\n")
        sys.stdout.buffer.flush()
        start += len(chunk)
    for problem in refused + truncated:
        print_line(Console(stderr=True), problem)
    if refused:
        problem = f"{len(refused)} line(s) were too long to translate; empty lines were written for them"
        raise TextError(problem, place="standard input", cure="split the sentences named above into shorter ones")
