"""roundtrip translate RUN --to LANGUAGE < in.txt > out.txt: translates with a trained run."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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
    from roundtrip.engine.long_inputs import MAX_LINE_CHARS, translate_any_length

    lines = _ShortLines(sys.stdin.buffer, MAX_LINE_CHARS)
    refused: list[str] = []
    truncated: list[str] = []
    start = 0
    try:
        for chunk in _chunks(decoded_lines(lines, _PLACE)):
            for text in translate_any_length(translator, chunk, settings, refused, truncated, start):
                sys.stdout.buffer.write(text.encode("utf-8") + b"\n")
            sys.stdout.buffer.flush()
            start += len(chunk)
    finally:
        for problem in refused + truncated:
            print_line(Console(stderr=True), problem)
    if refused:
        problem = f"{quantity(len(refused), 'line')} too long to translate; the output has an empty line for each"
        raise TextError(
            problem, place=_PLACE, cure="split the lines named above, or their sentences, into shorter ones"
        )


class _ShortLines:
    """A file of lines, of which each with more than a number of characters becomes one that is refused for that."""

    def __init__(self, file: BinaryIO, max_chars: int) -> None:
        self._file, self._max_chars = file, max_chars

    def readline(self, size: int) -> bytes:
        # A character has at most four bytes in UTF-8.
        size = min(size, 4 * self._max_chars + 2)
        line = rest = self._file.readline(size)
        while len(rest) == size and not rest.endswith(b"\n"):
            line, rest = b"x" * (self._max_chars + 1) + b"\n", self._file.readline(size)
        return line


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
