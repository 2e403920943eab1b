"""What a phase learns from: real pairs, or new lines with synthetic sources, and other rows among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from roundtrip.backtranslation.candidate_selection import select_candidates
from roundtrip.backtranslation.echo import round_trip_chrf
from roundtrip.backtranslation.filtering import filter_candidates
from roundtrip.data.corpora import Corpora
from roundtrip.data.denoising import add_noise
from roundtrip.data.language_id import LanguageIdentifier
from roundtrip.data.row_store import TextRow
from roundtrip.data.sampler import Cursor, take_rows
from roundtrip.engine.hypotheses import Hypotheses
from roundtrip.engine.request import Callbacks, repeat_each
from roundtrip.engine.translator import Translator
from roundtrip.recipe.plan import Direction, Phase, num_denoising, num_parallel
from roundtrip.recipe.schema import Generate, Recipe
from roundtrip.runtime.seeding import derive_seed
from roundtrip.tokens.prompt_template import PromptTemplate

REAL, SYNTHETIC, EARLIER, NOISED, PLAIN = "real", "synthetic", "earlier", "noised", "plain"
# Rejected sources that are shown where nothing is left.
NUM_SHOWN = 5


@dataclass(frozen=True)
class PhaseExamples:
    """The rows of one phase.

    Attributes:
        rows: (kind, source, target); the target is always real text. SYNTHETIC sources were written for this block,
            EARLIER ones for a block before, a NOISED one is the target itself with its words disturbed, and PLAIN text
            has none.
        cursors: where the streams stand behind this block.
        rejected: how many synthetic sources were thrown away, by reason.
        wraps: names of the streams that started over.
        hypotheses: the synthetic sources as written, which are the sources of the first rows; None where none were
            written, or the block was read back.
        prompts: of these sources, where the guard on the host asked for them.
        thrown: some (source, target) that were rejected, where all were.
        num_written: synthetic sources before any was rejected, chosen or not; 0 where the block was read back.
    """

    rows: list[list[str]]
    cursors: dict[str, Cursor]
    rejected: dict[str, int] = field(default_factory=dict)
    wraps: tuple[str, ...] = ()
    hypotheses: Hypotheses | None = None
    prompts: list[list[int]] | None = None
    thrown: Sequence[tuple[str, str]] = ()
    num_written: int = 0


def of_pairs(corpora: Corpora, direction: Direction, first: str) -> PhaseExamples:
    """Return all real pairs, turned the way the direction reads them.

    Args:
        first: the first language of the recipe, whose text is the first of each pair.
    """
    return PhaseExamples([_real(row, direction, first) for row in corpora.train], {})


def of_text(phase: Phase, recipe: Recipe, corpora: Corpora, cursors: dict[str, Cursor]) -> PhaseExamples:
    """Read plain lines of both languages: what a model without a past learns its languages from.

    Args:
        cursors: where the streams stand; those of this phase are its own, so that the rounds read all text.
    """
    rows: list[list[str]] = []
    after = {}
    wraps = []
    for language in recipe.languages:
        name = f"text.{language}.{phase.direction.name}"
        seed = derive_seed(recipe.seed, "order", name)
        taken, after[name] = take_rows(
            corpora.mono[language], cursors.get(name, Cursor()), recipe.train.pretrain_lines, seed
        )
        rows += [[PLAIN, "", line] for (line,) in taken]
        if after[name].epoch > cursors.get(name, Cursor()).epoch:
            wraps.append(name)
    return PhaseExamples(rows, after, wraps=tuple(wraps))


def of_round(
    phase: Phase,
    recipe: Recipe,
    corpora: Corpora,
    cursors: dict[str, Cursor],
    writer: Translator,
    learner: Translator,
    settings: Generate,
    callbacks: Callbacks,
    *,
    earlier: Sequence[list[str]] = (),
    identifier: LanguageIdentifier | None = None,
    reread_with: PromptTemplate | None = None,
) -> PhaseExamples:
    """Read new target lines, let the reverse direction write their sources, judge these and mix other rows in.

    Args:
        cursors: where the streams stand; unchanged here.
        writer: the reverse direction.
        learner: the direction itself.
        settings: how the writer writes; see `schedule`.
        earlier: synthetic rows of rounds before, which are learnt from again unless their target has a new source.
        identifier: tells the languages apart; None judges nothing by it.
        callbacks, reread_with: see `Translator.translate`.
    """
    direction, budget = phase.direction, recipe.train.max_tokens_per_microbatch
    lines, after = _lines(phase, recipe, corpora, cursors)
    lines, num_long = _short_enough(lines, recipe, settings, writer)
    seed = derive_seed(recipe.seed, "sources", phase.number)
    written = writer.translate(lines, settings, seed, reread_with=reread_with, callbacks=callbacks)
    targets = repeat_each(lines, settings.num_candidates)
    usual_ratio = _usual_ratio(corpora.train if recipe.blind else corpora.dev, recipe, direction)
    judged = filter_candidates(
        written.texts,
        written.finished,
        targets,
        recipe.filter,
        usual_ratio,
        (lambda text: False) if identifier is None else partial(identifier.is_other, language=direction.source),
    )
    judged = select_candidates(judged, written, settings, budget, learner, callbacks.on_progress)
    if recipe.filter.min_round_trip_chrf and judged.pairs:
        echoes = round_trip_chrf(learner, judged.pairs, settings, callbacks.on_progress)
        judged = judged.without([value < recipe.filter.min_round_trip_chrf for value in echoes], "lost on the way back")
    rejected = judged.rejected | ({"target too long": num_long} if num_long else {})
    new = {target for _, target in judged.pairs}
    earlier = [row for row in earlier if row[2] not in new]
    synthetic = len(judged.pairs) + len(earlier)
    real, after_pairs = _pairs(phase, recipe, corpora, cursors, num_parallel(recipe, synthetic, len(corpora.train)))
    noised, after_noised = _noised(phase, recipe, corpora, cursors, num_denoising(recipe, synthetic + len(real)))
    rows = [[SYNTHETIC, source, target] for source, target in judged.pairs]
    rows += [[EARLIER, source, target] for _, source, target in earlier]
    rows += [_real(row, direction, recipe.languages[0]) for row in real] + noised
    after |= after_pairs | after_noised
    wraps = tuple(name for name, cursor in after.items() if cursor.epoch > cursors.get(name, Cursor()).epoch)
    prompts = [written.prompts[place] for place in judged.places] if written.prompts is not None else None
    thrown = samples_of(written.texts, targets, judged.places) if not judged.pairs else []
    num_written = len(targets) + num_long
    return PhaseExamples(
        rows, after, rejected, wraps, written.hypotheses.select(judged.places), prompts, thrown, num_written
    )


def samples_of(texts: Sequence[str], targets: Sequence[str], kept: Sequence[int]) -> list[tuple[str, str]]:
    """Return some synthetic sources that were not kept, with their targets, for a look."""
    left = sorted(set(range(len(texts))) - set(kept))
    return [(texts[place], targets[place]) for place in left[:: max(1, len(left) // NUM_SHOWN)][:NUM_SHOWN]]


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
    pairs, _ = _pairs(phase, recipe, corpora, cursors, num_parallel(recipe, len(lines), len(corpora.train)))
    rows = [_real(row, phase.direction, recipe.languages[0]) for row in pairs]
    writer.template.expect(sources=lines)
    learner.template.expect(targets=lines, pairs=[(source, target) for _, source, target in rows])


def _read(
    rows: Sequence[TextRow], name: str, recipe: Recipe, cursors: dict[str, Cursor], number: int
) -> tuple[list[TextRow], dict[str, Cursor]]:
    """Read the next rows of a stream, and return where it stands behind them."""
    taken, after = take_rows(rows, cursors.get(name, Cursor()), number, derive_seed(recipe.seed, "order", name))
    return taken, {name: after}


def _lines(
    phase: Phase, recipe: Recipe, corpora: Corpora, cursors: dict[str, Cursor]
) -> tuple[list[str], dict[str, Cursor]]:
    """Read the real lines of a round, and return where their stream stands behind them."""
    language = phase.direction.target
    taken, after = _read(corpora.mono[language], f"mono.{language}", recipe, cursors, recipe.rounds.monolingual_lines)
    return [line for (line,) in taken], after


def _pairs(
    phase: Phase, recipe: Recipe, corpora: Corpora, cursors: dict[str, Cursor], number: int
) -> tuple[list[TextRow], dict[str, Cursor]]:
    """Read real pairs to mix in, and return where their stream stands behind them."""
    return _read(corpora.train, f"train.{phase.direction.name}", recipe, cursors, number)


def _noised(
    phase: Phase, recipe: Recipe, corpora: Corpora, cursors: dict[str, Cursor], number: int
) -> tuple[list[list[str]], dict[str, Cursor]]:
    """Read lines of the target language and disturb them: the rows of a denoising autoencoder."""
    if not number:
        return [], {}
    language = phase.direction.target
    taken, after = _read(corpora.mono[language], f"noised.{language}", recipe, cursors, number)
    lines = [line for (line,) in taken]
    seeds = [derive_seed(recipe.seed, "noise", phase.number, place) for place in range(len(lines))]
    return [[NOISED, add_noise(line, seed), line] for line, seed in zip(lines, seeds, strict=True)], after


def _usual_ratio(pairs: Sequence[TextRow], recipe: Recipe, direction: Direction) -> float:
    """Return how many characters of the source language real pairs have for each of the target's; 1 without pairs."""
    side = recipe.languages.index(direction.source)
    sizes = [sum(len(row[place]) for row in pairs) for place in (side, 1 - side)]
    return sizes[0] / sizes[1] if all(sizes) else 1.0


def _real(row: Sequence[str], direction: Direction, first: str) -> list[str]:
    source, target = row if direction.source == first else reversed(row)
    return [REAL, source, target]


def _short_enough(lines: list[str], recipe: Recipe, settings: Generate, writer: Translator) -> tuple[list[str], int]:
    """Drop lines that would fill a whole training row by themselves."""
    prompts = writer.template.prompts(lines)
    kept = [
        line
        for line, prompt in zip(lines, prompts, strict=True)
        if 2 * writer.num_source_tokens(prompt) <= recipe.train.max_length
        and writer.fits(writer.num_needed(prompt, settings))
    ]
    return kept, len(lines) - len(kept)
