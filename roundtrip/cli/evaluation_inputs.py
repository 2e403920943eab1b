"""What `evaluate` scores: a test set from files, and translations from a file, a run or an exported direction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.data.normalize import clean
from roundtrip.data.text_files import read_text_lines
from roundtrip.evaluation.comparison import EvaluationSet
from roundtrip.recipe.loader import forbid_unused_hub
from roundtrip.recipe.plan import Direction
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.downloads import forbid_hub, is_hub_id
from roundtrip.runtime.errors import RunError, TextError

if TYPE_CHECKING:
    from roundtrip.engine.translator import Translator


@dataclass(frozen=True)
class System:
    """Where translations come from.

    Attributes:
        path: a file of translations, or the folder of a run or of an exported direction, which then translates.
        stage: which adapters of a run.
        truncated: gets a message for each line whose translation reached its length limit.
    """

    path: Path
    stage: str
    truncated: list[str] = field(default_factory=list)

    @property
    def is_exported(self) -> bool:
        """Whether this is a folder that `roundtrip export` wrote for one direction."""
        return (self.path / "template.json").is_file()

    @property
    def is_run(self) -> bool:
        return self.path.is_dir() and not self.is_exported


def read_test_set(
    source: Path | None, reference: Path | None, pairs: Path | None, slices: Path | None = None
) -> EvaluationSet:
    """Read a test set: two files, or one of source, tab, reference; and the file of its slice labels.

    Raises:
        TextError: it is not named, cannot be read, or its files do not have equally many lines.
    """
    if pairs is not None and source is None and reference is None:
        test_path, (sources, references) = pairs, _read_columns(pairs)
    elif pairs is None and source is not None and reference is not None:
        test_path, sources, references = source, read_lines(source), read_lines(reference)
        check_length(references, sources, reference, f"{source} has")
    else:
        raise TextError(
            "exactly one test set is needed", place="--test", cure="give --source and --reference, or --test pairs.tsv"
        )
    if not sources:
        raise TextError("the file is empty", place=str(test_path), cure="name another file")
    if slices is None:
        return EvaluationSet(sources, references)
    labels = read_lines(slices)
    check_length(labels, sources, slices, "the test set has")
    if "" in labels:
        raise TextError(
            "a line without a label", place=f"{slices}:{labels.index('') + 1}", cure="give each line a label"
        )
    return EvaluationSet(sources, references, labels)


def _read_columns(path: Path) -> tuple[list[str], list[str]]:
    rows = [line.split("\t") for line in read_lines(path)]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise TextError(
                f"{len(row)} column(s) where source and reference are expected",
                place=f"{path}:{number}",
                cure="separate them by one tab",
            )
    return [row[0].strip() for row in rows], [row[1].strip() for row in rows]


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file, empty ones too, as many as `wc -l` counts.

    Raises:
        TextError: it cannot be read.
    """
    return [line.rstrip("\r\n").strip(" ") for line in read_text_lines(path)]


def check_length(lines: Sequence[str], expected: Sequence[str], path: Path, owner: str) -> None:
    """Refuse a file that does not have as many lines as another.

    Args:
        owner: what has the expected number of lines, and the verb, for the message.

    Raises:
        TextError: the numbers of lines differ.
    """
    if len(lines) != len(expected):
        raise TextError(
            f"{len(lines)} lines, and {owner} {len(expected)}",
            place=str(path),
            cure="line N of each file belongs to line N of the others; where there is nothing, an empty line",
        )


def target_language(systems: Iterable[System], to: str | None) -> str | None:
    """Return the language that systems translate into: the given one, else the one of an exported direction.

    Raises:
        RunError: an exported direction is into another.
    """
    for system in systems:
        if system.is_exported:
            to = exported_direction(system.path, to).target
    return to


def tokenizer_of_runs(systems: Iterable[System], to: str | None) -> str | None:
    """Return the BLEU tokenizer that the recipe of a run among the systems names for a language.

    Raises:
        RunError: a folder is not a run.
    """
    if to is None:
        return None
    recipes = [RunFolder(system.path).recipe() for system in systems if system.is_run]
    return next((name for recipe in recipes if (name := recipe.evaluation.bleu_tokenize.get(to))), None)


def exported_direction(path: Path, to: str | None) -> Direction:
    """Return the direction of an exported folder.

    Raises:
        RunError: it is into another language than the one asked for, or does not say.
    """
    try:
        name = str(json.loads((path / "template.json").read_text(encoding="utf-8"))["direction"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"its template.json names no direction ({error})", place=str(path)) from error
    if to is None and name.count("-") == 1:
        to = name.partition("-")[2]
    if to is None or not name.endswith(f"-{to}"):
        reason = f"not into '{to}'" if to else "which is ambiguous"
        raise RunError(f"translates {name}, {reason}", place=str(path), cure="set --to to the code of its target")
    return Direction(name.removesuffix(f"-{to}"), to)


def translations(system: System, test: EvaluationSet, to: str | None, device: str) -> list[str]:
    """Return the translations of the sources of a test set by a system.

    Args:
        to: the language to translate into, where a run translates.
        device: where a folder translates, see `trained_models.load`.

    Raises:
        TextError, RunError: there is no such system, or it does not fit the test set.
    """
    if not system.path.is_dir():
        lines = read_lines(system.path)
        check_length(lines, test.sources, system.path, "the test set has")
        return lines
    translator, settings = _load(system, to, device)
    from roundtrip.engine.long_inputs import translate_any_length

    refused: list[str] = []
    sources = [clean(text) for text in test.sources]
    hypotheses = list(translate_any_length(translator, sources, settings, refused, system.truncated))
    if refused:
        raise TextError(
            f"{len(refused)} source(s) are too long: {refused[0]}", place=str(system.path), cure="leave them out"
        )
    return hypotheses


def _load(system: System, to: str | None, device: str) -> tuple[Translator, Generate]:
    if system.is_exported:
        direction = exported_direction(system.path, to)
        config = system.path / "adapter_config.json"
        if not config.exists() or not is_hub_id(_base_of(config), system.path):
            forbid_hub()
        from roundtrip.backtranslation import trained_models

        return trained_models.load_exported(system.path, direction, device), Generate()
    if to is None:
        raise TextError(
            f"{system.path} is a run, which translates into either of two languages",
            place="--to",
            cure="give the code of one, such as --to fr",
        )
    run = RunFolder(system.path)
    manifest = run.manifest()
    recipe, folder = run.recipe(manifest), Path(manifest.folder)
    forbid_unused_hub(recipe, folder)
    from roundtrip.backtranslation import trained_models
    from roundtrip.backtranslation.dev_scoring import greedy_settings

    direction = trained_models.direction_into(run, to)
    return trained_models.load(run, direction, system.stage, device), greedy_settings(recipe)


def _base_of(config: Path) -> str:
    """Return the base that an exported adapter names; empty where it cannot be read, which loading will report."""
    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
