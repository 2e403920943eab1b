"""roundtrip translate RUN --to LANGUAGE < in.txt > out.txt: translates with a trained run."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from roundtrip.cli.app import ArgumentParser, load_translator, run_cli
from roundtrip.data.normalize import clean
from roundtrip.data.text_files import decoded_lines, without_markup
from roundtrip.runtime.errors import TextError, quantity
from roundtrip.runtime.event_log import print_line

# Lines are read, translated and written in chunks of this size, so that output streams.
CHUNK_LINES = 512
_PLACE = "standard input"


def main() -> None:
    description = "Translate lines from standard input to standard output: one output line per input line, in order."
    parser = ArgumentParser(prog="roundtrip translate", description=description)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--to", required=True, metavar="LANGUAGE", help="code of the language to translate into")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda:0, ...")
    parser.add_argument("--stage", default="best", help="which adapters: best (default), parallel, round-1, ...")
    run_cli(translate_stdin, parser)


def translate_stdin(arguments: argparse.Namespace) -> None:
    """Translate standard input to standard output; lines that are too long are refused after all others are written."""
    translator, settings = load_translator(arguments.run, arguments.to, arguments.stage, arguments.device)
    from roundtrip.engine.long_inputs import translate_any_length

    refused: list[str] = []
    truncated: list[str] = []
    start = 0
    try:
        for chunk in _chunks(decoded_lines(sys.stdin.buffer, _PLACE)):
            for text in translate_any_length(translator, chunk, settings, refused, truncated, start):
                sys.stdout.buffer.write(text.encode("utf-8") + b"\n")
            sys.stdout.buffer.flush()
            start += len(chunk)
    finally:
        for problem in refused + truncated:
            print_line(Console(stderr=True), problem)
    if refused:
        problem = f"{quantity(len(refused), 'line')} too long to translate; the output has an empty line for each"
        raise TextError(problem, place=_PLACE, cure="split the sentences named above into shorter ones")


def _chunks(lines: Iterator[str]) -> Iterator[list[str]]:
    """Yield clean lines in chunks; the error of one that cannot be read comes after the lines before it."""

    def refusal(kind: str) -> TextError:
        cure = "pipe its text alone, one sentence or paragraph per line"
        return TextError(f"this is {kind}, which would be translated tag by tag", place=_PLACE, cure=cure)

    chunk: list[str] = []
    try:
        for line in without_markup(lines, refusal):
            chunk.append(clean(line))
            if len(chunk) == CHUNK_LINES:
                yield chunk
                chunk = []
    except TextError:
        yield chunk
        raise
    yield chunk
