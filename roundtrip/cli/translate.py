"""roundtrip translate RUN [IN OUT] --to LANGUAGE: translates files, or standard input, with a trained run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from rich.console import Console

from roundtrip.cli.app import ArgumentParser, open_run, run_cli
from roundtrip.cli.file_plan import plan_files
from roundtrip.data.normalize import clean
from roundtrip.data.text_files import decoded_lines, without_markup
from roundtrip.runtime.errors import TextError, UsageError, quantity
from roundtrip.runtime.event_log import print_line

if TYPE_CHECKING:
    from roundtrip.backtranslation.run_folder import RunFolder

# Lines are read, translated and written in chunks of this size, so that output streams.
CHUNK_LINES = 512
_PLACE = "standard input"
_FILES_ONLY = ("in_place", "force", "from_column", "to_column", "retranslate", "no_mark")


def main() -> None:
    description = (
        "Translate files, or lines from standard input to standard output: one output line per input line, in order."
    )
    epilog = (
        "With PATHs, the last one is written, as by cp: IN OUT, or several files or a folder into the folder OUT. What "
        "is translated already stays as it is. Formats: po, xliff, tmx, tsv, csv, jsonl, srt, vtt, and lines of text."
    )
    parser = ArgumentParser(prog="roundtrip translate", description=description, epilog=epilog)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("paths", type=Path, metavar="PATH", nargs="*", help="files or folders: IN ... OUT")
    parser.add_argument("--to", required=True, metavar="LANGUAGE", help="code of the language to translate into")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda:0, ...")
    parser.add_argument("--stage", default="best", help="which adapters: best (default), parallel, round-1, ...")
    parser.add_argument(
        "--explain", choices=("columns", "json"), help="print source, translation, translation back and chrF of each"
    )
    parser.add_argument(
        "--samples",
        type=_count,
        default=0,
        metavar="K",
        help="choose among K samples by how well they restore the source",
    )
    parser.add_argument("--keep-broken", action="store_true", help="also write translations that break placeholders")
    files = parser.add_argument_group("files")
    files.add_argument("--in-place", action="store_true", help="every PATH is changed; there is no OUT")
    files.add_argument("--force", action="store_true", help="replace outputs that exist")
    files.add_argument("--from-column", metavar="NAME", help="column of the source in a table, or its number from 0")
    files.add_argument("--to-column", metavar="NAME", help="column of the translations; it is added if it is missing")
    choices = ("none", "fuzzy", "all")
    files.add_argument("--retranslate", choices=choices, default="none", help="what is translated again (none)")
    files.add_argument("--no-mark", action="store_true", help="do not mark translations as fuzzy, or to be reviewed")
    run_cli(_translate, parser)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000")
    return int(text)


def _translate(arguments: argparse.Namespace) -> None:
    if not arguments.paths:
        given = [
            name for name, value in vars(arguments).items() if name in _FILES_ONLY and value not in (0, None, "none")
        ]
        if given:
            cure = "name the files too: translate RUN IN OUT --to LANGUAGE"
            raise UsageError("is for files, not for standard input", place=f"--{given[0].replace('_', '-')}", cure=cure)
        translate_stdin(arguments, open_run(arguments.run)[0])
        return
    plan = plan_files(arguments.paths, in_place=arguments.in_place)
    run, _ = open_run(arguments.run)
    # Here and below: it imports torch, for which no mistake in a path should wait.
    from roundtrip.cli.translate_files import translate_files

    translate_files(arguments, plan, run)


def translate_stdin(arguments: argparse.Namespace, run: RunFolder) -> None:
    """Translate standard input to standard output; lines without a translation are refused after all are written."""
    from roundtrip.backtranslation.dev_scoring import search_settings
    from roundtrip.backtranslation.trained_models import direction_into
    from roundtrip.cli.translate_files import Models, explain
    from roundtrip.engine.checked_translation import translate_checked
    from roundtrip.engine.long_inputs import CUT, MAX_LINE_CHARS

    models = Models(arguments, run, direction_into(run, arguments.to))
    settings, forward = search_settings(run.recipe()), models.get(models.direction)
    reverse = models.get(models.direction.reverse) if arguments.samples else None
    lines = _ShortLines(sys.stdin.buffer, MAX_LINE_CHARS)
    refused, named, start = list[str](), list[str](), 0
    try:
        for chunk in _chunks(decoded_lines(lines, _PLACE)):
            texts = []
            results = translate_checked(forward, chunk, settings, reverse, arguments.samples)
            for number, each in enumerate(results, start + 1):
                is_written = not each.problem or each.problem == CUT or (arguments.keep_broken and each.text)
                texts.append(each.text if is_written else "")
                if each.problem:
                    (named if is_written else refused).append(f"line {number}: {each.problem}")
            if arguments.explain:
                explain(models, list(zip(chunk, texts, strict=True)), settings)
            else:
                sys.stdout.buffer.writelines(text.encode("utf-8") + b"\n" for text in texts)
                sys.stdout.buffer.flush()
            start += len(chunk)
    finally:
        for problem in refused + named:
            print_line(Console(stderr=True), problem)
    if refused:
        problem = f"{quantity(len(refused), 'line')} without a translation; the output has an empty line for each"
        cure = "split those named above that are too long; --keep-broken writes those that break placeholders"
        raise TextError(problem, place=_PLACE, cure=cure)


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
