"""What `evaluate` scores: a test set from files, and translations from a file, a run or an exported direction."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roundtrip.cli.app import load_translator
from roundtrip.data.normalize import clean
from roundtrip.data.placeholders import count_intact, differences
from roundtrip.data.text_files import read_text_lines
from roundtrip.evaluation.comparison import EvaluationSet
from roundtrip.recipe.language_codes import match_rank
from roundtrip.recipe.plan import Direction
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.errors import RunError, TextError, UsageError, quantity


@dataclass(frozen=True)
class System:
    """Where translations come from: a file, or the folder of a run or of an exported direction, which translates."""

    path: Path
    stage: str  # of a run
    base: str | None = None  # of an exported adapter, instead of the one that it names
    truncated: list[str] = field(default_factory=list)  # a message for each translation that reached its length limit

    @property
    def is_exported(self) -> bool:
        return (self.path / "template.json").is_file()

    @property
    def is_run(self) -> bool:
        return self.path.is_dir() and not self.is_exported

    @property
    def label(self) -> str:
        return f"{self.path}, stage {self.stage}" if self.is_run else str(self.path)


def read_test_set(
    source: Path | None, reference: Path | None, pairs: Path | None, slices: Path | None
) -> EvaluationSet:
    """Read a test set: two files, or one of source, tab, reference; and the file of its slice labels."""
    if pairs and not source and not reference:
        path, rows = pairs, [line.rstrip("\r\n").split("\t") for line in read_text_lines(pairs)]
        for number, row in enumerate(rows, start=1):
            if len(row) != 2:
                problem = f"{quantity(len(row), 'column')} where source and reference are expected"
                raise TextError(problem, place=f"{path}:{number}", cure="separate them by one tab")
        sources, references = [clean(row[0]) for row in rows], [clean(row[1]) for row in rows]
    elif source and reference and not pairs:
        path, sources = source, _read_clean(source)
        references = _read_as_many(reference, sources, str(source))
    else:
        cure = "give --source and --reference, or --test pairs.tsv"
        raise UsageError("exactly one test set is needed", place="--test", cure=cure)
    if not sources:
        raise TextError("the file is empty", place=str(path), cure="name another file")
    labels = _read_as_many(slices, sources, "the test set") if slices else []
    if "" in labels:
        place = f"{slices}:{labels.index('') + 1}"
        raise TextError("a line without a label", place=place, cure="give each line a label, such as `other`")
    return EvaluationSet(sources, references, labels)


def _read_clean(path: Path) -> list[str]:
    """Return the lines of a file, empty ones too, as many as `wc -l` counts, each as a run would read it."""
    return [clean(line) for line in read_text_lines(path)]


def _read_as_many(path: Path, expected: Sequence[str], owner: str) -> list[str]:
    """Read a file that has as many lines as its `owner`."""
    lines = _read_clean(path)
    if len(lines) != len(expected):
        problem = f"{quantity(len(lines), 'line')}, and {owner} has {len(expected)}"
        cure = "line N of each file belongs to line N of the others; where there is nothing, an empty line"
        raise TextError(problem, place=str(path), cure=cure)
    return lines


def target_language(systems: Iterable[System], to: str | None) -> str | None:
    """Return the language that systems translate into: the given one, else the one of an exported direction."""
    for system in systems:
        if system.is_exported:
            to = exported_direction(system.path, to).target
    return to


def exported_direction(path: Path, to: str | None) -> Direction:
    """Return the direction of an exported folder, which is into the language asked for, if any is."""
    from roundtrip.backtranslation import trained_models

    direction = trained_models.read_template(path).direction
    if to is not None and to != direction.target and match_rank(to, direction.target) is None:
        cure = f"omit --to, or set it to {direction.target}"
        raise RunError(f"translates {direction.name}, not into '{to}'", place=str(path), cure=cure)
    return direction


def translations(system: System, test: EvaluationSet, to: str | None, device: str) -> list[str]:
    """Return the translations of the sources of a test set by a system, on a device where it is a model."""
    if not system.path.is_dir():
        return _read_as_many(system.path, test.sources, "the test set")
    if system.is_exported:
        from roundtrip.backtranslation import trained_models

        translator, settings = trained_models.load_exported(system.path, device, system.base), Generate()
    elif to is not None:
        translator, settings = load_translator(system.path, to, system.stage, device)
    else:
        problem = f"{system.path} is a run, which translates into either of two languages"
        raise UsageError(problem, place="--to", cure="give the code of one, such as --to fr")
    from roundtrip.engine.long_inputs import translate_any_length

    refused: list[str] = []
    hypotheses = list(translate_any_length(translator, test.sources, settings, refused, system.truncated))
    if refused:
        problem = f"{quantity(len(refused), 'source')} too long: {refused[0]}"
        raise TextError(problem, place=str(system.path), cure="leave them out")
    return hypotheses


def placeholder_counts(sources: Sequence[str], systems: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return how many sources have placeholders, how many translations keep all, and how many differ, by kind."""
    intact = {name: count_intact(sources, texts) for name, texts in systems.items()}
    found = {name: map(differences, sources, texts) for name, texts in systems.items()}
    by_kind = {name: Counter(each.kind.value for line in lines for each in line) for name, lines in found.items()}
    return {
        "lines": max(num_lines for _, num_lines in intact.values()),
        "intact": {name: kept for name, (kept, _) in intact.items()},
        "differences": {name: dict(counts.most_common()) for name, counts in by_kind.items()},
    }
