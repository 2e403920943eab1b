"""What `evaluate` scores: a test set from files, and translations from a file, a run or an exported direction."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.cli.app import load_translator
from roundtrip.data.normalize import clean
from roundtrip.data.text_files import read_text_lines
from roundtrip.evaluation.comparison import EvaluationSet
from roundtrip.recipe.plan import Direction
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.downloads import forbid_hub, is_hub_id
from roundtrip.runtime.errors import RunError, TextError, UsageError


@dataclass(frozen=True)
class System:
    """Where translations come from: a file, or the folder of a run or of an exported direction, which translates."""

    path: Path
    stage: str  # of a run
    truncated: list[str] = field(default_factory=list)  # a message for each translation that reached its length limit

    @property
    def is_exported(self) -> bool:
        return (self.path / "template.json").is_file()


def read_test_set(
    source: Path | None, reference: Path | None, pairs: Path | None, slices: Path | None
) -> EvaluationSet:
    """Read a test set: two files, or one of source, tab, reference; and the file of its slice labels."""
    if pairs and not source and not reference:
        path, rows = pairs, [line.split("\t") for line in read_lines(pairs)]
        for number, row in enumerate(rows, start=1):
            if len(row) != 2:
                problem = f"{len(row)} column(s) where source and reference are expected"
                raise TextError(problem, place=f"{path}:{number}", cure="separate them by one tab")
        sources, references = [row[0].strip() for row in rows], [row[1].strip() for row in rows]
    elif source and reference and not pairs:
        path, sources = source, read_lines(source)
        references = _read_as_many(reference, sources, str(source))
    else:
        cure = "give --source and --reference, or --test pairs.tsv"
        raise UsageError("exactly one test set is needed", place="--test", cure=cure)
    if not sources:
        raise TextError("the file is empty", place=str(path), cure="name another file")
    labels = _read_as_many(slices, sources, "the test set") if slices else []
    if "" in labels:
        place = f"{slices}:{labels.index('') + 1}"
        raise TextError("a line without a label", place=place, cure="give each line a label")
    return EvaluationSet(sources, references, labels)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file, empty ones too, as many as `wc -l` counts."""
    return [line.rstrip("\r\n").strip(" ") for line in read_text_lines(path)]


def _read_as_many(path: Path, expected: Sequence[str], owner: str) -> list[str]:
    """Read a file that has as many lines as its `owner`."""
    lines = read_lines(path)
    if len(lines) != len(expected):
        problem = f"{len(lines)} lines, and {owner} has {len(expected)}"
        cure = "line N of each file belongs to line N of the others; where there is nothing, an empty line"
        raise TextError(problem, place=str(path), cure=cure)
    return lines


def target_language(systems: Iterable[System], to: str | None) -> str | None:
    """Return the language that systems translate into: the given one, else the one of an exported direction."""
    for system in systems:
        if system.is_exported:
            to = exported_direction(system.path, to).target
    return to


def tokenizer_of_runs(systems: Iterable[System], to: str | None) -> str | None:
    """Return the BLEU tokenizer that the recipe of a run among the systems names for a language."""
    runs = [RunFolder(system.path) for system in systems if system.path.is_dir() and not system.is_exported]
    names = [run.recipe().evaluation.bleu_tokenize.get(to) for run in runs] if to else []
    return next(filter(None, names), None)


def exported_direction(path: Path, to: str | None) -> Direction:
    """Return the direction of an exported folder, which is into the language asked for, if any is."""
    try:
        document = json.loads((path / "template.json").read_text(encoding="utf-8"))
        direction = Direction(str(document["source"]), str(document["target"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"its template.json names no direction ({error})"
        raise RunError(problem, place=str(path), cure="export it again") from error
    if to not in {None, direction.target}:
        cure = f"omit --to, or set it to {direction.target}"
        raise RunError(f"translates {direction.name}, not into '{to}'", place=str(path), cure=cure)
    return direction


def translations(system: System, test: EvaluationSet, to: str | None, device: str) -> list[str]:
    """Return the translations of the sources of a test set by a system, on a device where it is a model."""
    if not system.path.is_dir():
        return _read_as_many(system.path, test.sources, "the test set")
    if system.is_exported:
        try:
            config = json.loads((system.path / "adapter_config.json").read_text(encoding="utf-8"))
            base = str(config["base_model_name_or_path"])
        except (OSError, ValueError, KeyError, TypeError):
            base = ""  # a model without a base, or a broken adapter, which loading will report
        if not is_hub_id(base, system.path):
            forbid_hub()
        from roundtrip.backtranslation import trained_models

        translator, settings = trained_models.load_exported(system.path, device), Generate()
    elif to is not None:
        translator, settings = load_translator(system.path, to, system.stage, device)
    else:
        problem = f"{system.path} is a run, which translates into either of two languages"
        raise UsageError(problem, place="--to", cure="give the code of one, such as --to fr")
    from roundtrip.engine.long_inputs import translate_any_length

    refused: list[str] = []
    sources = [clean(text) for text in test.sources]
    hypotheses = list(translate_any_length(translator, sources, settings, refused, system.truncated))
    if refused:
        problem = f"{len(refused)} source(s) are too long: {refused[0]}"
        raise TextError(problem, place=str(system.path), cure="leave them out")
    return hypotheses
