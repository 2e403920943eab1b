"""What a phase learns from: real pairs, or new lines with synthetic sources and real pairs among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from roundtrip.choose import choose
from roundtrip.engine.generate import Hypotheses
from roundtrip.engine.work import repeated
from roundtrip.judge import judge
from roundtrip.plan import Direction, Phase, num_real
from roundtrip.recipe import Recipe
from roundtrip.text.prepare import Corpora
from roundtrip.text.store import Row
from roundtrip.text.stream import Cursor, derive, take
from roundtrip.tokens.template import Template
from roundtrip.translator import Translator

REAL, SYNTHETIC, PLAIN = "real", "synthetic", "plain"


@dataclass(frozen=True)
class Block:
    """The rows of one phase.

    Attributes:
        rows: (kind, source, target); kind is REAL, SYNTHETIC or PLAIN (no source: text as it is), the target is always
            real text.
        cursors: where the streams stand behind this block.
        rejected: how many synthetic sources were thrown away, by reason.
        wraps: names of the streams that started over.
        hypotheses: the synthetic sources as written, which are the sources of the first rows; None where none were
            written, or the block was read back.
        prompts: of these sources, where the guard on the host asked for them.
    """

    rows: list[list[str]]
    cursors: dict[str, Cursor]
    rejected: dict[str, int] = field(default_factory=dict)
    wraps: tuple[str, ...] = ()
    hypotheses: Hypotheses | None = None
    prompts: list[list[int]] | None = None


def of_pairs(corpora: Corpora, direction: Direction, first: str) -> Block:
    """Return all real pairs, turned the way the direction reads them.

    Args:
        first: the first language of the recipe, whose text is the first of each pair.
    """
    return Block([_real(row, direction, first) for row in corpora.train], {})


def of_text(phase: Phase, recipe: Recipe, corpora: Corpora, cursors: dict[str, Cursor]) -> Block:
    """Read plain lines of both languages: what a model without a past learns its languages from.

    Args:
        cursors: where the streams stand; those of this phase are its own, so that the rounds read all text.
    """
    rows: list[list[str]] = []
    after = {}
    wraps = []
    for language in recipe.languages:
        name = f"text.{language}.{phase.direction.name}"
        seed = derive(recipe.seed, "order", name)
        taken, after[name] = take(corpora.mono[language], cursors.get(name, Cursor()), recipe.train.text_lines, seed)
        rows += [[PLAIN, "", line] for (line,) in taken]
        if after[name].epoch > cursors.get(name, Cursor()).epoch:
            wraps.append(name)
    return Block(rows, after, wraps=tuple(wraps))


def of_round(
    phase: Phase,
    recipe: Recipe,
    corpora: Corpora,
    cursors: dict[str, Cursor],
    writer: Translator,
    learner: Translator,
    tell: Callable[[int, int], None],
    *,
    reader: Template | None = None,
    halved: Callable[[int], None] = lambda rows: None,
) -> Block:
    """Read new target lines, let the reverse direction write their sources, judge these and mix in real pairs.

    Args:
        cursors: where the streams stand; unchanged here.
        writer: the reverse direction.
        learner: the direction itself.
        tell, reader, halved: see `Translator.write`.
    """
    direction = phase.direction
    lines, after_lines = _lines(phase, recipe, corpora, cursors)
    lines, num_long = _short_enough(lines, recipe, writer)
    seed = derive(recipe.seed, "sources", phase.number)
    written = writer.write(lines, recipe.generate, seed, reader=reader, tell=tell, halved=halved)
    targets = repeated(lines, recipe.generate.samples)
    usual_ratio = _usual_ratio(corpora, recipe.languages.index(direction.source))
    judged = judge(written.texts, written.finished, targets, recipe.judge, usual_ratio)
    judged = choose(judged, written, recipe, learner, tell)
    rejected = judged.rejected | ({"target too long": num_long} if num_long else {})
    wanted = num_real(recipe, len(judged.pairs), len(corpora.train))
    real, after_pairs = _pairs(phase, recipe, corpora, cursors, wanted)
    rows = [[SYNTHETIC, source, target] for source, target in judged.pairs]
    rows += [_real(row, direction, recipe.languages[0]) for row in real]
    after = after_lines | after_pairs
    wraps = tuple(name for name, cursor in after.items() if cursor.epoch > cursors.get(name, Cursor()).epoch)
    prompts = [written.prompts[place] for place in judged.places] if written.prompts is not None else None
    return Block(rows, after, rejected, wraps, written.hypotheses.pick(judged.places), prompts)


def encode(
    phase: Phase,
    recipe: Recipe,
    corpora: Corpora,
    cursors: dict[str, Cursor],
    writer: Translator,
    learner: Translator,
) -> None:
    """Encode the real text that `of_round` will read, for who writes from it and for who learns it.

    Args:
        cursors: where the streams will stand.
    """
    lines, _ = _lines(phase, recipe, corpora, cursors)
    pairs, _ = _pairs(phase, recipe, corpora, cursors, num_real(recipe, len(lines), len(corpora.train)))
    rows = [_real(row, phase.direction, recipe.languages[0]) for row in pairs]
    writer.template.expect(sources=lines)
    learner.template.expect(targets=lines, pairs=[(source, target) for _, source, target in rows])


def _lines(
    phase: Phase, recipe: Recipe, corpora: Corpora, cursors: dict[str, Cursor]
) -> tuple[list[str], dict[str, Cursor]]:
    """Read the real lines of a round, and return where their stream stands behind them."""
    language = phase.direction.target
    name = f"mono.{language}"
    seed = derive(recipe.seed, "order", name)
    taken, after = take(corpora.mono[language], cursors.get(name, Cursor()), recipe.rounds.lines, seed)
    return [line for (line,) in taken], {name: after}


def _pairs(
    phase: Phase, recipe: Recipe, corpora: Corpora, cursors: dict[str, Cursor], number: int
) -> tuple[list[Row], dict[str, Cursor]]:
    """Read real pairs to mix in, and return where their stream stands behind them."""
    name = f"train.{phase.direction.name}"
    taken, after = take(corpora.train, cursors.get(name, Cursor()), number, derive(recipe.seed, "order", name))
    return taken, {name: after}


def _usual_ratio(corpora: Corpora, side: int) -> float:
    """Return how many characters of one language the dev pairs have for each of the other."""
    sizes = [sum(len(row[place]) for row in corpora.dev) for place in (side, 1 - side)]
    return sizes[0] / sizes[1]


def _real(row: Sequence[str], direction: Direction, first: str) -> list[str]:
    source, target = row if direction.source == first else reversed(row)
    return [REAL, source, target]


def _short_enough(lines: list[str], recipe: Recipe, writer: Translator) -> tuple[list[str], int]:
    """Drop lines that would fill a whole training row by themselves."""
    prompts = writer.template.prompts(lines)
    kept = [
        line
        for line, prompt in zip(lines, prompts, strict=True)
        if 2 * writer.num_source_tokens(prompt) <= recipe.train.max_row_tokens
        and writer.fits(writer.num_needed(prompt, recipe.generate))
    ]
    return kept, len(lines) - len(kept)
