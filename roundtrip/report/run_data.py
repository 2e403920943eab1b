"""A run folder as values for its report: what its files say, and what of them is missing or damaged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from roundtrip.backtranslation.results import ScoresOfStage
from roundtrip.backtranslation.run_folder import RunFolder, RunManifest
from roundtrip.data.row_store import RowStore
from roundtrip.evaluation.comparison import EvaluationSet, EvaluationSettings, changed_lines
from roundtrip.recipe.language_codes import bleu_tokenizer
from roundtrip.recipe.plan import BASE, Direction, directions, start_stage
from roundtrip.recipe.schema import Recipe
from roundtrip.report.event_history import EventHistory, read_history
from roundtrip.runtime.errors import RoundtripError, quantity
from roundtrip.runtime.seeding import derive_seed, permuted_index

# Lines of each direction on the page: as many of the largest gains as of the largest losses, and others at random.
NUM_CHANGED, NUM_RANDOM = 20, 30
# Of a direction, the lines that are scored for these: a score takes a fifth of a millisecond, and the run waits.
MAX_SCORED, MAX_SCORED_IN_PROGRESS = 3000, 300
# Characters of a text on the page.
MAX_CHARS = 600


@dataclass(frozen=True)
class Sample:
    """One line of dev or test, with its translations by two stages and their chrF++."""

    line: int  # from 1
    source: str
    before: str
    after: str
    reference: str
    chrf_before: float
    chrf_after: float

    @property
    def change(self) -> float:
        return self.chrf_after - self.chrf_before


@dataclass(frozen=True)
class Samples:
    """Some lines of a direction: those that changed most from one stage to another, and others at random."""

    direction: Direction
    part: str  # `dev` or `test`
    before: str  # a stage; so is after
    after: str
    lines: list[Sample]
    num_lines: int  # of dev or test
    num_scored: int  # from which those with the largest changes were taken


@dataclass(frozen=True)
class RunData:
    """All that a report says of a run.

    Attributes:
        results: `metrics.json`; empty where the run has not finished, or the file is damaged.
        problems: what is missing, damaged or unfinished, in sentences.
    """

    run: RunFolder
    manifest: RunManifest
    recipe: Recipe
    recipe_text: str
    results: dict[str, Any]
    history: EventHistory
    problems: list[str]

    @property
    def is_finished(self) -> bool:
        """Whether the run has come to its end, even if its results are damaged."""
        return "metrics.json" in self.manifest.files

    @property
    def name(self) -> str:
        return self.run.path.resolve().name

    @property
    def directions(self) -> tuple[Direction, Direction]:
        return directions(self.recipe)

    @property
    def dev(self) -> dict[str, ScoresOfStage]:
        """Dev scores by stage and direction; those of round trips where there are no dev pairs."""
        dev: dict[str, ScoresOfStage] = self.results.get("dev") or self.history.dev
        return dev

    @property
    def test(self) -> dict[str, ScoresOfStage]:
        test: dict[str, ScoresOfStage] = self.results.get("test", {})
        return test

    @property
    def best(self) -> dict[str, str]:
        return self.results.get("best") or self.history.best

    @property
    def start(self) -> str:
        """The stage that the rounds began from."""
        return start_stage(list(self.dev))

    @property
    def seconds(self) -> dict[str, float]:
        return dict(self.history.seconds)

    @property
    def as_of(self) -> str:
        """When the last event was logged, in UTC."""
        try:
            return datetime.fromtimestamp(self.history.last_time, UTC).strftime("%Y-%m-%d %H:%M UTC")
        except (ValueError, OverflowError, OSError):
            return "an unknown time"

    @cached_property
    def pairs(self) -> dict[str, list[tuple[str, str]]]:
        """The pairs of dev and test in the order of the languages, of a part that is not damaged."""
        parts = ["test"] if self.recipe.without_dev else ["dev", "test"]
        return {part: pairs for part in parts if (pairs := self._read_pairs(part))}

    def oriented(self, part: str, direction: Direction) -> EvaluationSet:
        """Return sources and references of `dev` or `test` for a direction."""
        columns = list(zip(*self.pairs[part], strict=True))
        side = self.recipe.languages.index(direction.source)
        return EvaluationSet(columns[side], columns[1 - side])

    def translations(self, part: str, stage: str, direction: Direction) -> list[str] | None:
        """Return the translations of `dev` or `test` by a stage, None where they are missing or damaged."""
        path = self.run.translation_file(part, stage, direction.name)
        text = self._read_recorded(path)
        lines = None if text is None else text.split("\n")[:-1]
        if lines is not None and len(lines) != len(self.pairs[part]):
            self._add_problem(f"{path.name} has {quantity(len(lines), 'line')} for {len(self.pairs[part])} of {part}.")
            return None
        return lines

    def samples(self) -> list[Samples]:
        """Return the samples of both directions: of test where the run has finished, else of dev."""
        part = "test" if self.test else "dev"
        chosen = [self._samples(part, direction) for direction in self.directions if part in self.pairs and self.best]
        return [each for each in chosen if each is not None]

    def _samples(self, part: str, direction: Direction) -> Samples | None:
        after = self.best[direction.name]
        before = self.start if self.start != after else BASE
        both = [self.translations(part, stage, direction) for stage in (before, after)]
        texts = [text for text in both if text is not None]
        if after == before or len(texts) < 2:
            return None
        data, seed = self.oriented(part, direction), derive_seed(self.recipe.seed, "report")
        num_lines, limit = len(data.sources), MAX_SCORED if self.is_finished else MAX_SCORED_IN_PROGRESS
        order = [permuted_index(i, num_lines, seed, 0) for i in range(min(num_lines, limit))]
        columns = [[column[i] for i in order] for column in (data.sources, data.references, *texts)]
        scored = EvaluationSet(columns[0], columns[1])
        settings = EvaluationSettings(bleu_tokenizer(direction.target), num_changed=NUM_CHANGED)
        changed = changed_lines(scored, columns[2], columns[3], settings)
        most = [line["line"] - 1 for line in changed["gained"] + changed["lost"]]
        others = [i for i in range(len(order)) if i not in set(most)][:NUM_RANDOM]
        chrf = settings.metrics()["chrF++"]
        lines = [_sample(order[i] + 1, [column[i] for column in columns], chrf) for i in most + others]
        lines.sort(key=lambda sample: -sample.change)
        return Samples(direction, part, before, after, lines, num_lines, len(order))

    def _read_pairs(self, part: str) -> list[tuple[str, str]]:
        path = self.run.data / f"{part}.tsv"
        if not self.manifest.lines.get(part, {}).get("kept"):
            return []
        try:
            if problem := self.run.first_damaged(path, path.with_name(f"{path.name}.starts")):
                raise ValueError(problem)
            return [(row[0], row[1]) for row in RowStore(path)]
        except (OSError, ValueError, IndexError, RoundtripError) as error:
            self._add_problem(f"The text of {part} cannot be read, so that none of it is shown: {error}.")
            return []

    def _read_recorded(self, path: Path) -> str | None:
        """Return the text of a file of the run that is as it was written, None for any other."""
        name = path.relative_to(self.run.path).as_posix()
        try:
            if name not in self.manifest.files or ".." in path.parts:
                raise ValueError(f"{name} is not recorded in run.json")
            if problem := self.run.first_damaged(path):
                raise ValueError(problem)
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            self._add_problem(f"Left out: {error}.")
            return None

    def _add_problem(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def _sample(line: int, texts: Sequence[str], chrf: Any) -> Sample:
    """Return a line for the page: of source, reference and two translations."""
    first, second = (float(chrf.sentence_score(text, [texts[1]]).score) for text in texts[2:])
    source, reference, *both = (text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}…" for text in texts)
    return Sample(line, source, both[0], both[1], reference, first, second)


def read_run(path: Path) -> RunData:
    """Read the folder of a run; of a damaged or unfinished one, what can be read.

    Raises:
        RunError: it is not a run folder, its run.json is damaged, or another version made it.
    """
    run = RunFolder(path)
    manifest = run.manifest()
    recipe, problems = run.recipe(manifest), list[str]()
    names = [direction.name for direction in directions(recipe)]
    results: dict[str, Any] = {}
    try:
        results = run.results()
    except (OSError, RoundtripError) as error:
        reason = error.problem if isinstance(error, RoundtripError) else str(error)
        problems.append(f"The final figures cannot be read, so that there are none of test: {reason}.")
    try:
        with run.events.open(encoding="utf-8", errors="replace") as file:
            history = read_history(file, names)
        if problem := run.first_damaged(run.events):
            problems.append(f"{problem}, so that the curves may not be those of the run.")
    except OSError as error:
        history = EventHistory()
        problems.append(f"The events of the run cannot be read, so that there are no curves: {error.strerror}.")
    if "metrics.json" not in manifest.files:
        stages = [stage for stage in history.dev if stage != BASE]
        after = f"after the stage “{stages[-1]}”" if stages else "before its first trained stage was scored"
        problems.insert(0, f"The run has not finished; this is its state {after}.")
    if history.num_resumed:
        again = "what was done again after that is shown once, as it was done last"
        problems.append(f"The run was resumed {quantity(history.num_resumed, 'time')}; {again}.")
    if history.num_damaged:
        problems.append(f"{quantity(history.num_damaged, 'line')} of events.jsonl cannot be read, and were left out.")
    if history.nonfinite_steps:
        count = quantity(len(history.nonfinite_steps), "step")
        problems.append(f"{count} had a loss or gradient that is not finite and changed nothing; see nonfinite_steps/.")
    data = RunData(run, manifest, recipe, "", results, history, problems)
    return replace(data, recipe_text=data._read_recorded(run.recipe_file) or "")
