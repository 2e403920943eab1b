"""What is to be scored: a test set from files, and the translations of a system, from a file or by asking a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roundtrip.errors import TextError
from roundtrip.text.clean import clean
from roundtrip.text.lines import lines


@dataclass(frozen=True)
class HeldOut:
    """Sources and references, line by line."""

    sources: list[str]
    references: list[str]


def read_test(source: Path | None, reference: Path | None, pairs: Path | None) -> HeldOut:
    """Read a test set: two files, or one of source, tab, reference.

    Raises:
        TextError: it is not named, cannot be read, or its sides do not fit.
    """
    if (pairs is None) == (source is None and reference is None) or (source is None) != (reference is None):
        raise TextError(
            "a test set is wanted, once", place="--test", cure="give --source and --reference, or --test pairs.tsv"
        )
    if pairs is not None:
        rows = [line.split("\t") for line in read(pairs)]
        for number, row in enumerate(rows, start=1):
            if len(row) != 2:
                raise TextError(
                    f"{len(row)} columns where source and reference are wanted",
                    place=f"{pairs}:{number}",
                    cure="part them by one tab",
                )
        test = HeldOut([row[0].strip() for row in rows], [row[1].strip() for row in rows])
    else:
        assert source is not None and reference is not None
        test = HeldOut(read(source), read(reference))
        same_length(test.references, test.sources, reference, f"{source} has")
    if not test.sources:
        raise TextError("no line in it", place=str(pairs or source), cure="name another file")
    return test


def read(path: Path) -> list[str]:
    """Return the lines of a file, empty ones too, as many as `wc -l` counts.

    Raises:
        TextError: it cannot be read.
    """
    return [line.rstrip("\r\n").strip(" ") for line in lines(path)]


def same_length(found: Sequence[str], wanted: Sequence[str], place: Path, whose: str) -> None:
    """Refuse a file that cannot stand beside another.

    Args:
        whose: who has the wanted number of lines, and the verb.

    Raises:
        TextError: their numbers of lines differ.
    """
    if len(found) != len(wanted):
        raise TextError(
            f"{len(found)} lines, and {whose} {len(wanted)}",
            place=str(place),
            cure="one translation a line, an empty one where there is none",
        )


def translations(place: Path, test: HeldOut, to: str | None, stage: str, device: str) -> list[str]:
    """Return what a system makes of the sources.

    Args:
        place: a file of translations, or the folder of a run, which is asked.
        to: the language to translate into, where a run is asked.
        stage, device: see `trained.load`.

    Raises:
        TextError, RunError: there is no such system, or it is of another test set.
    """
    if not place.is_dir():
        found = read(place)
        same_length(found, test.sources, place, "the test set has")
        return found
    if to is None:
        raise TextError(
            f"{place} is a folder: a run translates, into which language?", place="--to", cure="give its code, --to fr"
        )
    from roundtrip import trained
    from roundtrip.cookbook import keep_off_hub
    from roundtrip.longer import translate
    from roundtrip.run import Run
    from roundtrip.scorer import greedy

    run = Run(place)
    direction = trained.into(run, to)
    recipe, folder = run.recipe()
    keep_off_hub(recipe, folder)
    one = trained.load(run, direction, stage, device)
    refused: list[str] = []
    found = list(translate(one, [clean(text) for text in test.sources], greedy(recipe), refused, []))
    if refused:
        raise TextError(f"{len(refused)} sources are too long: {refused[0]}", place=str(place), cure="leave them out")
    return found
