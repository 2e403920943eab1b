"""python -m roundtrip.translate RUN --to LANGUAGE < in.txt > out.txt: uses what was trained."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from roundtrip.cookbook import keep_off_hub
from roundtrip.door import open_door
from roundtrip.errors import TextError, printable
from roundtrip.recipe import Generate
from roundtrip.run import BEST, Run
from roundtrip.text.clean import clean
from roundtrip.text.codes import is_spaceless

if TYPE_CHECKING:
    from roundtrip.translator import Translator

# Lines are read, sorted by length and written in pieces of this size, so that output flows while input comes.
LINES_AT_ONCE = 512


def main() -> None:
    """The door."""
    parser = argparse.ArgumentParser(
        prog="python -m roundtrip.translate",
        description="Translate lines from standard input to standard output: one in, one out, in order.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--to", required=True, metavar="LANGUAGE", help="code of the language to translate into")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda:0, ...")
    parser.add_argument("--stage", default=BEST, help="which adapters: best (default), parallel, round-1, ...")
    open_door(_work, parser)


def _work(arguments: argparse.Namespace) -> None:
    run = Run(arguments.run)
    recipe, folder = run.recipe()
    keep_off_hub(recipe, folder)
    # Seconds of imports, for which nobody should wait to read about a typo.
    from roundtrip import trained
    from roundtrip.scorer import greedy

    one = trained.load(run, trained.into(run, arguments.to), arguments.stage, arguments.device)
    settings = greedy(recipe)
    lines = iter(sys.stdin.buffer)
    refused: list[str] = []
    cut: list[str] = []
    start = 0
    while piece := list(islice(lines, LINES_AT_ONCE)):
        texts = [decode(line, start + number + 1) for number, line in enumerate(piece)]
        for text in translate(one, texts, settings, refused, cut, start):
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


def translate(
    one: Translator,
    texts: Sequence[str],
    settings: Generate,
    refused: list[str],
    cut: list[str],
    start: int = 0,
) -> Iterator[str]:
    """Translate clean lines; an empty one stays empty, one too long for the model goes sentence by sentence.

    Args:
        refused: gets a message for each line with a sentence too long for the model; the line comes out empty.
        cut: gets a message for each line whose translation reached its length limit.
        start: number of lines before these, for messages.

    Returns:
        One translation per text, in order.
    """
    pieces: list[list[str]] = []
    for number, text in enumerate(texts):
        parts = [text] if text else []
        if text and not fits(one, text, settings):
            parts = sentences(text, one.direction.source)
            long = [part for part in parts if not fits(one, part, settings)]
            if long:
                refused.append(f"line {start + number + 1}: a sentence of {len(long[0].split())} words is too long")
                parts = []
        pieces.append(parts)
    flat = [part for parts in pieces for part in parts]
    whole = one.write(flat, settings, 0) if flat else None
    written = zip(whole.texts, whole.finished, strict=True) if whole else iter(())
    joint = "" if is_spaceless(one.direction.target) else " "
    for number, parts in enumerate(pieces):
        found = [next(written) for _ in parts]
        if not all(finished for _, finished in found):
            cut.append(f"line {start + number + 1}: the translation was cut at its length limit")
        # Clean, so that a terminal has nothing to obey.
        yield joint.join(" ".join(clean(text).split()) for text, _ in found)


def fits(one: Translator, text: str, settings: Generate) -> bool:
    """Return whether a text and its translation fit into the model."""
    return one.fits(one.num_needed(one.template.prompts([text])[0], settings))


def sentences(text: str, language: str) -> list[str]:
    """Split a text into sentences."""
    import sentencex

    return [part for piece in sentencex.segment(language.partition("-")[0], text) if (part := piece.strip())]


if __name__ == "__main__":
    main()
