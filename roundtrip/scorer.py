"""Translating and scoring dev and test during a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from roundtrip import score
from roundtrip.events import Events, Progressing
from roundtrip.files import write_text
from roundtrip.plan import BASE, Direction, directions
from roundtrip.recipe import Generate, Recipe
from roundtrip.run import Run
from roundtrip.text.codes import is_chinese, is_spaceless
from roundtrip.text.prepare import Corpora
from roundtrip.translator import Translator

Tell = Callable[[int, int], None]


class Scorer:
    """Scores of both directions as they are now.

    Args:
        tell_of: makes the callback of `generate` for a task under way.
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        corpora: Corpora,
        translators: Mapping[str, Translator],
        events: Events,
        tell_of: Callable[[Progressing], Tell],
    ) -> None:
        self.run, self.recipe, self.corpora = run, recipe, corpora
        self.translators, self.events, self.tell_of = translators, events, tell_of

    def copies(self, part: str) -> dict[str, dict[str, float]]:
        """Score the sources themselves as translations, by direction."""
        found = {}
        for direction in directions(self.recipe):
            sources, references = texts(self.corpora, self.recipe, part, direction)
            found[direction.name] = score.corpus(sources, references, bleu_tokenize(self.recipe, direction)).to_dict()
        return found

    def translations(self, part: str, stage: str) -> dict[str, dict[str, float]]:
        """Translate `dev` or `test` greedily with both directions, keep the text, and score it.

        Returns:
            By direction: `bleu`, `chrf`, and `unfinished`, the number of hypotheses cut at their length limit.
        """
        return {direction.name: self._one(part, stage, direction) for direction in directions(self.recipe)}

    def dev_loss(self, direction: Direction) -> float:
        """Return what the dev references cost a direction given their sources, in nats per token."""
        one = self.translators[direction.name]
        pairs = list(zip(*texts(self.corpora, self.recipe, "dev", direction), strict=True))
        with self.events.task("scoring", f"{direction.name} reads dev", len(pairs)) as task:
            values = one.likelihoods(pairs, self.recipe.train.tokens_per_forward, self.tell_of(task))
        num_labels = sum(len(row.ids) - row.start for row in one.template.rows(pairs))
        return -sum(values) / num_labels

    def _one(self, part: str, stage: str, direction: Direction) -> dict[str, float]:
        sources, references = texts(self.corpora, self.recipe, part, direction)
        with self.events.task("scoring", f"{stage}: {direction.name} translates {part}", len(sources)) as task:
            written = self.translators[direction.name].write(
                sources,
                greedy(self.recipe),
                0,
                adapted=stage != BASE,
                tell=self.tell_of(task),
                halved=self.events.halved,
            )
        lines = [" ".join(text.split()) for text in written.texts]
        path = translations_path(self.run, part, stage, direction)
        if self.translators[direction.name].ranks.first:
            self.run.disk.keep(lambda: write_text(path, "".join(f"{line}\n" for line in lines)), path)
        scores = score.corpus(lines, references, bleu_tokenize(self.recipe, direction)).to_dict()
        return scores | {"unfinished": written.finished.count(False)}


def greedy(recipe: Recipe) -> Generate:
    """Return the recipe's engine, length limits and batch size with greedy search: how translations are made."""
    settings = recipe.generate
    return Generate(
        engine=settings.engine,
        cuda_graphs=settings.cuda_graphs,
        length_ratio=settings.length_ratio,
        length_extra=settings.length_extra,
        tokens_per_batch=settings.tokens_per_batch,
    )


def texts(corpora: Corpora, recipe: Recipe, part: str, direction: Direction) -> tuple[list[str], list[str]]:
    """Return sources and references of `dev` or `test` for a direction."""
    pairs = list(corpora.dev if part == "dev" else corpora.test)
    side = recipe.languages.index(direction.source)
    return [pair[side] for pair in pairs], [pair[1 - side] for pair in pairs]


def check_metrics(recipe: Recipe) -> None:
    """Try the metrics once, so that a missing tokenizer is known before any time is spent.

    Raises:
        RecipeError: see `score.signatures`.
    """
    for direction in directions(recipe):
        score.signatures(bleu_tokenize(recipe, direction))


def bleu_tokenize(recipe: Recipe, direction: Direction) -> str:
    """Return the sacreBLEU tokenizer of a direction: the recipe's, else one that fits its target language."""
    # sacreBLEU's 13a would take a sentence without spaces for one word.
    spaceless = "zh" if is_chinese(direction.target) else "char"
    usual = spaceless if is_spaceless(direction.target) else "13a"
    return recipe.score.bleu_tokenize.get(direction.target, usual)


def translations_path(run: Run, part: str, stage: str, direction: Direction) -> Path:
    return run.translations / f"{part}.{stage}.{direction.name}.txt"


def mean_chrf(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Return the mean chrF++ of the directions."""
    return sum(one["chrf"] for one in scores.values()) / len(scores)
