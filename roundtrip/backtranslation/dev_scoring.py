"""Dev and test scoring: both directions translate a set, and the translations are scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from roundtrip.backtranslation.context import RunContext
from roundtrip.backtranslation.examples import oriented_pairs
from roundtrip.backtranslation.filtering import MAX_COPY_CHRF
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.data.language_codes import bleu_tokenizer
from roundtrip.evaluation import metrics
from roundtrip.recipe.plan import BASE, Direction, directions
from roundtrip.recipe.schema import Generate, Recipe
from roundtrip.runtime.atomic_io import write_text

DirectionScores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Scorer:
    """Scores both directions with their weights as they are now."""

    context: RunContext

    def copies(self, part: str) -> DirectionScores:
        """Score the sources themselves as translations, by direction."""
        if part == "dev" and self.context.recipe.without_dev:
            # A copy of a line survives the round trip unchanged.
            return {name: {"bleu": 100.0, "chrf": 100.0, "copied": 1.0} for name in self.context.translators}
        return {
            direction.name: self._scores(*self.context.parallel_texts(part, direction), direction)
            for direction in directions(self.context.recipe)
        }

    def translations(self, part: str, stage: str) -> DirectionScores:
        """Translate `dev` or `test` greedily with both directions, keep the text, and score it.

        By direction: `bleu`, `chrf`, and `unfinished`, the number of hypotheses cut at their length limit; without dev
        pairs, of round trips, with `copied`, the share of copies of the source.
        """
        score = self._round_trip if part == "dev" and self.context.recipe.without_dev else self._translation
        return {direction.name: score(part, stage, direction) for direction in directions(self.context.recipe)}

    def dev_loss(self, direction: Direction) -> float:
        """Return the loss of the dev references given their sources, in nats per label."""
        context, translator = self.context, self.context.translators[direction.name]
        pairs = oriented_pairs(context.corpora.dev, direction, context.recipe)
        with context.events.task("scoring", f"dev loss of {direction.name}", len(pairs)) as task:
            max_tokens = context.recipe.train.max_tokens_per_microbatch
            log_probabilities = translator.likelihoods(pairs, max_tokens, context.callbacks(task).on_progress)
        num_labels = sum(len(row.ids) - row.start for row in translator.template.rows(pairs))
        return -sum(log_probabilities) / num_labels

    def _translation(self, part: str, stage: str, direction: Direction) -> dict[str, float]:
        sources, references = self.context.parallel_texts(part, direction)
        lines, unfinished = self._translate(sources, stage, direction, f"translating {part}")
        self._keep(lines, part, stage, direction)
        return self._scores(lines, references, direction) | {"unfinished": unfinished}

    def _round_trip(self, part: str, stage: str, direction: Direction) -> dict[str, float]:
        """Translate lines, translate the translations back, and score these against the lines.

        The only measure without pairs; its relation to quality is loose (https://aclanthology.org/U05-1019). Copying is
        perfect by it, so the share of copies stands beside it.
        """
        lines, _ = self.context.parallel_texts(part, direction)
        translated, unfinished = self._translate(lines, stage, direction, "translating lines")
        self._keep(translated, part, stage, direction)
        reverse = self.context.translators[direction.reverse.name]
        # A translation that is too long for the model does not come back.
        fits = reverse.can_translate(translated, greedy_settings(self.context.recipe))
        fitting = [text if can else "" for text, can in zip(translated, fits, strict=True)]
        back, _ = self._translate(fitting, stage, direction.reverse, "translating them back")
        chrf = [metrics.sentence_chrf(text, line) for text, line in zip(translated, lines, strict=True)]
        copied = sum(value >= MAX_COPY_CHRF for value in chrf) / len(lines)
        return self._scores(back, lines, direction.reverse) | {"unfinished": unfinished, "copied": copied}

    def _scores(self, hypotheses: list[str], references: list[str], direction: Direction) -> dict[str, float]:
        tokenizer = bleu_tokenize(self.context.recipe, direction)
        return metrics.corpus_scores(hypotheses, references, tokenizer).to_dict()

    def _translate(self, sources: list[str], stage: str, direction: Direction, what: str) -> tuple[list[str], int]:
        """Translate greedily; return one line each, and how many were cut at their length limit."""
        context, translator = self.context, self.context.translators[direction.name]
        settings, use_adapter = greedy_settings(context.recipe), stage != BASE
        with context.events.task("scoring", f"{stage}: {direction.name} {what}", len(sources)) as task:
            callbacks = context.callbacks(task)
            translations = translator.translate(sources, settings, use_adapter=use_adapter, callbacks=callbacks)
        return [" ".join(text.split()) for text in translations.texts], translations.finished.count(False)

    def _keep(self, lines: list[str], part: str, stage: str, direction: Direction) -> None:
        path = translations_path(self.context.run, part, stage, direction)
        self.context.write(lambda: write_text(path, "".join(f"{line}\n" for line in lines)), path)


def greedy_settings(recipe: Recipe) -> Generate:
    """Return the recipe's engine, length limits and batch size with greedy search: how translations are made."""
    keep = ("engine", "cuda_graphs", "max_length_ratio", "max_tokens_per_batch")
    return Generate(**{key: getattr(recipe.generate, key) for key in keep})


def bleu_tokenize(recipe: Recipe, direction: Direction) -> str:
    """Return the sacreBLEU tokenizer of a direction: the recipe's, else one that fits its target language."""
    return recipe.evaluation.bleu_tokenize.get(direction.target, bleu_tokenizer(direction.target))


def translations_path(run: RunFolder, part: str, stage: str, direction: Direction) -> Path:
    return run.translations / f"{part}.{stage}.{direction.name}.txt"


def mean_chrf(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Return the mean chrF++ of the directions."""
    return sum(score["chrf"] for score in scores.values()) / len(scores)
