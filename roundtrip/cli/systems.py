"""What is to be scored: a test set from files, and the translations of a system, from a file or by asking a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from roundtrip.data.normalize import clean
from roundtrip.data.text_files import read_text_lines
from roundtrip.recipe.plan import Direction
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.downloads import forbid_hub, is_hub_id
from roundtrip.runtime.errors import RunError, TextError

if TYPE_CHECKING:
    from roundtrip.engine.translator import Translator


@dataclass(frozen=True)
class EvaluationSet:
    """Sources and references, line by line."""

    sources: list[str]
    references: list[str]


def read_test(source: Path | None, reference: Path | None, pairs: Path | None) -> EvaluationSet:
    """Read a test set: two files, or one of source, tab, reference.

    Raises:
        TextError: it is not named, cannot be read, or its sides do not fit.
    """
    if (pairs is None) == (source is None and reference is None) or (source is None) != (reference is None):
        raise TextError(
            "a test set is wanted, once", place="--test", cure="give --source and --reference, or --test pairs.tsv"
        )
    if pairs is not None:
        rows = [line.split("\t") for line in read_lines(pairs)]
        for number, row in enumerate(rows, start=1):
            if len(row) != 2:
                raise TextError(
                    f"{len(row)} columns where source and reference are wanted",
                    place=f"{pairs}:{number}",
                    cure="part them by one tab",
                )
        test = EvaluationSet([row[0].strip() for row in rows], [row[1].strip() for row in rows])
    else:
        assert source is not None and reference is not None
        test = EvaluationSet(read_lines(source), read_lines(reference))
        same_length(test.references, test.sources, reference, f"{source} has")
    if not test.sources:
        raise TextError("no line in it", place=str(pairs or source), cure="name another file")
    return test


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file, empty ones too, as many as `wc -l` counts.

    Raises:
        TextError: it cannot be read.
    """
    return [line.rstrip("\r\n").strip(" ") for line in read_text_lines(path)]


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
            cure="line N of each file belongs to line N of the others; where there is nothing, an empty line",
        )


def language(places: Iterable[Path], to: str | None) -> str | None:
    """Return the language that systems translate into: the one asked for, else what exported directions say.

    Raises:
        RunError: an exported direction is into another.
    """
    for place in places:
        if is_exported(place):
            to = exported_direction(place, to).target
    return to


def own_tokenizer(places: Iterable[Path], to: str | None) -> str | None:
    """Return the BLEU tokenizer that the recipe of a run among the systems names for a language.

    Raises:
        RunError: a folder is not a run.
    """
    from roundtrip.backtranslation.run_folder import RunFolder

    if to is None:
        return None
    runs = [RunFolder(place).recipe() for place in places if place.is_dir() and not is_exported(place)]
    named = [one for recipe in runs if (one := recipe.evaluation.bleu_tokenize.get(to)) is not None]
    return named[0] if named else None


def is_exported(place: Path) -> bool:
    """Return whether a folder is what `roundtrip.cli.export` wrote for one direction."""
    return (place / "template.json").is_file()


def exported_direction(place: Path, to: str | None) -> Direction:
    """Return the direction of an exported folder.

    Raises:
        RunError: it is into another language than the one asked for, or does not say.
    """
    try:
        name = str(json.loads((place / "template.json").read_text(encoding="utf-8"))["direction"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"its template.json names no direction ({error})", place=str(place)) from error
    if to is None and name.count("-") == 1:
        to = name.partition("-")[2]
    if to is None or not name.endswith(f"-{to}"):
        asked = f"not into '{to}'" if to else "which can be read in two ways"
        raise RunError(f"translates {name}, {asked}", place=str(place), cure="say --to with the code of its target")
    return Direction(name.removesuffix(f"-{to}"), to)


def translations(
    place: Path, test: EvaluationSet, to: str | None, stage: str, device: str, cut: list[str] | None = None
) -> list[str]:
    """Return what a system makes of the sources.

    Args:
        place: a file of translations, or the folder of a run or of an exported direction, which is asked.
        to: the language to translate into, where a run is asked.
        stage, device: see `trained.load`.
        cut: gets a message for each line whose translation reached its length limit.

    Raises:
        TextError, RunError: there is no such system, or it is of another test set.
    """
    if not place.is_dir():
        found = read_lines(place)
        same_length(found, test.sources, place, "the test set has")
        return found
    one, settings = _load(place, to, stage, device)
    from roundtrip.engine.long_inputs import translate_any_length

    refused: list[str] = []
    found = list(
        translate_any_length(one, [clean(text) for text in test.sources], settings, refused, [] if cut is None else cut)
    )
    if refused:
        raise TextError(f"{len(refused)} sources are too long: {refused[0]}", place=str(place), cure="leave them out")
    return found


def _load(place: Path, to: str | None, stage: str, device: str) -> tuple[Translator, Generate]:
    if is_exported(place):
        direction = exported_direction(place, to)
        config = place / "adapter_config.json"
        if not config.exists() or not is_hub_id(_base_of(config), place):
            forbid_hub()
        from roundtrip.backtranslation import trained_models

        return trained_models.load_exported(place, direction, device), Generate()
    if to is None:
        raise TextError(
            f"{place} is a folder: a run translates, into which language?", place="--to", cure="give its code, --to fr"
        )
    from roundtrip.backtranslation import trained_models
    from roundtrip.backtranslation.dev_scoring import greedy_settings
    from roundtrip.backtranslation.run_folder import RunFolder
    from roundtrip.recipe.loader import forbid_unused_hub

    run = RunFolder(place)
    direction = trained_models.direction_into(run, to)
    manifest = run.manifest()
    recipe, folder = run.recipe(manifest), Path(manifest.folder)
    forbid_unused_hub(recipe, folder)
    return trained_models.load(run, direction, stage, device), greedy_settings(recipe)


def _base_of(config: Path) -> str:
    """Return the base that an exported adapter names; nothing where it cannot be read, which loading will tell."""
    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
