"""Training examples of a phase: parallel pairs, monolingual lines, or new lines with synthetic sources."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roundtrip.backtranslation.filtering import Candidate
from roundtrip.data.corpora import Corpora
from roundtrip.data.denoising import add_noise
from roundtrip.data.row_store import TextRow
from roundtrip.data.sampler import Cursor, take_rows
from roundtrip.engine.translator import Translator
from roundtrip.recipe.plan import Direction, Phase, num_denoising, num_parallel
from roundtrip.recipe.schema import Generate, Recipe
from roundtrip.runtime.seeding import derive_seed

# A SYNTHETIC source was generated for this phase, a REPLAY one in an earlier round; a DENOISING one is the target
# itself with its words disturbed, and MONOLINGUAL text has none.
PARALLEL, SYNTHETIC, REPLAY, DENOISING, MONOLINGUAL = "parallel", "synthetic", "replay", "denoising", "monolingual"
KINDS = (SYNTHETIC, REPLAY, PARALLEL, DENOISING, MONOLINGUAL)
TARGET_TOO_LONG = "target_too_long"


@dataclass(frozen=True)
class Example:
    """One example; the target is always real text."""

    kind: str
    source: str
    target: str
    # Of a SYNTHETIC one, with the generated ids; None where it was read back from disk.
    candidate: Candidate | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class PhaseExamples:
    """The examples of one phase, and what is reported of them."""

    examples: list[Example]
    cursors: dict[str, Cursor]  # where the streams stand after this phase
    restarted: tuple[str, ...] = ()  # the streams that started over
    rejected: Counter[str] = field(default_factory=Counter)  # number of rejected candidates, by reason
    num_candidates: int = 0  # before any was rejected; 0 where none were generated or the phase was read back
    samples: Sequence[Candidate] = ()  # some rejected candidates, where all were


def examples_path(folder: Path, phase: Phase) -> Path:
    return folder / f"{phase.number:04d}-{phase.stage}-{phase.direction.name}.jsonl"


def oriented_pairs(rows: Iterable[TextRow], direction: Direction, recipe: Recipe) -> list[tuple[str, str]]:
    """Return rows in the order of the recipe's languages as (source, target) of a direction."""
    side = recipe.languages.index(direction.source)
    return [(row[side], row[1 - side]) for row in rows]


@dataclass(frozen=True)
class Streams:
    """The endless, reshuffled text streams of a run, read from `cursors` on; `after` has those that have moved."""

    recipe: Recipe
    corpora: Corpora
    cursors: Mapping[str, Cursor]
    after: dict[str, Cursor] = field(default_factory=dict)

    def lines(self, phase: Phase) -> list[str]:
        """Return the next target-language lines of a round."""
        language = phase.direction.target
        return self._lines(language, f"mono.{language}", self.recipe.rounds.monolingual_lines)

    def pairs(self, phase: Phase, num_synthetic: int) -> list[Example]:
        """Return the parallel pairs that go with so many synthetic examples."""
        num_pairs = num_parallel(self.recipe, num_synthetic, len(self.corpora.train))
        rows = self._read(self.corpora.train, f"train.{phase.direction.name}", num_pairs)
        return parallel_examples(rows, phase.direction, self.recipe)

    def denoising(self, phase: Phase, num_others: int) -> list[Example]:
        """Return the denoising examples that go with so many others."""
        num_lines, language = num_denoising(self.recipe, num_others), phase.direction.target
        lines = self._lines(language, f"noised.{language}", num_lines) if num_lines else []
        seeds = [derive_seed(self.recipe.seed, "noise", phase.number, i) for i in range(len(lines))]
        return [Example(DENOISING, add_noise(line, seed), line) for line, seed in zip(lines, seeds, strict=True)]

    def monolingual(self, phase: Phase) -> list[Example]:
        """Return monolingual lines of both languages: what a model from scratch learns its languages from.

        Their cursors belong to this phase alone, so that the rounds read all text.
        """
        num_lines, name = self.recipe.train.pretrain_lines, phase.direction.name
        lines = [self._lines(language, f"text.{language}.{name}", num_lines) for language in self.recipe.languages]
        return [Example(MONOLINGUAL, "", line) for of_language in lines for line in of_language]

    def restarted(self) -> tuple[str, ...]:
        """Return the names of the streams that have started over."""
        before = self.cursors
        return tuple(name for name, now in self.after.items() if now.epoch > before.get(name, Cursor()).epoch)

    def _lines(self, language: str, name: str, num_lines: int) -> list[str]:
        return [line for (line,) in self._read(self.corpora.mono[language], name, num_lines)]

    def _read(self, rows: Sequence[TextRow], name: str, num_rows: int) -> list[TextRow]:
        seed = derive_seed(self.recipe.seed, "order", name)
        taken, self.after[name] = take_rows(rows, self.cursors.get(name, Cursor()), num_rows, seed)
        return taken


def parallel_examples(rows: Iterable[TextRow], direction: Direction, recipe: Recipe) -> list[Example]:
    return [Example(PARALLEL, source, target) for source, target in oriented_pairs(rows, direction, recipe)]


def mix(phase: Phase, streams: Streams, candidates: Sequence[Candidate], replayed: Sequence[Example]) -> list[Example]:
    """Return new synthetic examples, replayed ones unless their target has a new source, pairs and denoising ones."""
    synthetic = [Example(SYNTHETIC, candidate.source, candidate.target, candidate) for candidate in candidates]
    new_targets = {example.target for example in synthetic}
    synthetic += [example for example in replayed if example.target not in new_targets]
    others = synthetic + streams.pairs(phase, len(synthetic))
    return others + streams.denoising(phase, len(others))


def short_lines(lines: list[str], recipe: Recipe, settings: Generate, reverse: Translator) -> list[str]:
    """Drop lines that would fill more than half of a training row, or do not fit into the model."""
    prompts, max_length = reverse.template.prompts(lines), recipe.train.max_length
    return [
        line
        for line, prompt in zip(lines, prompts, strict=True)
        if 2 * reverse.num_source_tokens(prompt) <= max_length and reverse.fits(reverse.num_needed(prompt, settings))
    ]


def usual_length_ratio(pairs: Sequence[TextRow], recipe: Recipe, direction: Direction) -> float:
    """Return the characters of the source language per character of the target language; 1 without pairs."""
    side = recipe.languages.index(direction.source)
    source, target = (sum(len(row[column]) for row in pairs) for column in (side, 1 - side))
    return source / target if source and target else 1.0
