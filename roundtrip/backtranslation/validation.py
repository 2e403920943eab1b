"""Translating and scoring dev and test during a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.data.corpora import Corpora
from roundtrip.data.language_codes import bleu_tokenizer
from roundtrip.engine.request import Callbacks
from roundtrip.engine.translator import Translator
from roundtrip.evaluation import metrics
from roundtrip.recipe.plan import BASE, Direction, directions
from roundtrip.recipe.schema import Generate, Recipe
from roundtrip.runtime.atomic_io import write_text
from roundtrip.runtime.disk_space import report_full_disk
from roundtrip.runtime.event_log import EventLog, ProgressHandle

OnProgress = Callable[[int, int], None]


class Scorer:
    """Scores of both directions as they are now.

    Args:
        tell_of: makes the callback of `generate` for a task under way.
    """

    def __init__(
        self,
        run: RunFolder,
        recipe: Recipe,
        corpora: Corpora,
        translators: Mapping[str, Translator],
        events: EventLog,
        tell_of: Callable[[ProgressHandle], OnProgress],
    ) -> None:
        self.run, self.recipe, self.corpora = run, recipe, corpora
        self.translators, self.events, self.tell_of = translators, events, tell_of

    def copies(self, part: str) -> dict[str, dict[str, float]]:
        """Score the sources themselves as translations, by direction."""
        if part == "dev" and self.recipe.blind:
            # What is copied comes back whole.
            return {d.name: {"bleu": 100.0, "chrf": 100.0, "copied": 1.0} for d in directions(self.recipe)}
        found = {}
        for direction in directions(self.recipe):
            sources, references = parallel_texts(self.corpora, self.recipe, part, direction)
            found[direction.name] = metrics.corpus_scores(
                sources, references, bleu_tokenize(self.recipe, direction)
            ).to_dict()
        return found

    def translations(self, part: str, stage: str) -> dict[str, dict[str, float]]:
        """Translate `dev` or `test` greedily with both directions, keep the text, and score it.

        Returns:
            By direction: `bleu`, `chrf`, and `unfinished`, the number of hypotheses cut at their length limit. Of dev
            without pairs the scores are those of lines that went there and back, which begins with the direction, and
            `copied` is the share of hypotheses that are copies of their sources.
        """
        if part == "dev" and self.recipe.blind:
            return {d.name: self._there_and_back(stage, d) for d in directions(self.recipe)}
        return {direction.name: self._one(part, stage, direction) for direction in directions(self.recipe)}

    def dev_loss(self, direction: Direction) -> float:
        """Return what the dev references cost a direction given their sources, in nats per token."""
        one = self.translators[direction.name]
        pairs = list(zip(*parallel_texts(self.corpora, self.recipe, "dev", direction), strict=True))
        with self.events.task("scoring", f"{direction.name} reads dev", len(pairs)) as task:
            values = one.likelihoods(pairs, self.recipe.train.max_tokens_per_microbatch, self.tell_of(task))
        num_labels = sum(len(row.ids) - row.start for row in one.template.rows(pairs))
        return -sum(values) / num_labels

    def _one(self, part: str, stage: str, direction: Direction) -> dict[str, float]:
        sources, references = parallel_texts(self.corpora, self.recipe, part, direction)
        lines, unfinished = self._translate(sources, stage, direction, f"translates {part}")
        self._keep(lines, part, stage, direction)
        scores = metrics.corpus_scores(lines, references, bleu_tokenize(self.recipe, direction)).to_dict()
        return scores | {"unfinished": unfinished}

    def _there_and_back(self, stage: str, direction: Direction) -> dict[str, float]:
        """Translate lines, translate the translations back, and score these against the lines.

        The only measure without pairs; how well it goes with quality is another question (round-trip evaluation,
        https://aclanthology.org/U05-1019). Copying is perfect by it, so the share of copies stands beside it.
        """
        lines, _ = parallel_texts(self.corpora, self.recipe, "dev", direction)
        there, unfinished = self._translate(lines, stage, direction, "translates lines")
        self._keep(there, "dev", stage, direction)
        reverse = self.translators[direction.reverse.name]
        # What has grown over the limit of the model does not come back.
        fits = reverse.can_translate(there, greedy_settings(self.recipe))
        fitting = [text if can else "" for text, can in zip(there, fits, strict=True)]
        back, _ = self._translate(fitting, stage, direction.reverse, "translates them back")
        limit = self.recipe.filter.max_copy_chrf
        copied = sum(metrics.sentence_chrf(text, line) >= limit for text, line in zip(there, lines, strict=True))
        scores = metrics.corpus_scores(back, lines, bleu_tokenize(self.recipe, direction.reverse)).to_dict()
        return scores | {"unfinished": unfinished, "copied": copied / len(lines)}

    def _translate(self, sources: list[str], stage: str, direction: Direction, what: str) -> tuple[list[str], int]:
        """Translate greedily; return one line each, and how many were cut at their length limit."""
        with self.events.task("scoring", f"{stage}: {direction.name} {what}", len(sources)) as task:
            written = self.translators[direction.name].translate(
                sources,
                greedy_settings(self.recipe),
                0,
                use_adapter=stage != BASE,
                callbacks=Callbacks(self.tell_of(task), on_oom_split=self.events.on_oom_split),
            )
        return [" ".join(text.split()) for text in written.texts], written.finished.count(False)

    def _keep(self, lines: list[str], part: str, stage: str, direction: Direction) -> None:
        path = translations_path(self.run, part, stage, direction)
        if self.translators[direction.name].processes.is_main:
            with report_full_disk(path):
                write_text(path, "".join(f"{line}\n" for line in lines))


def greedy_settings(recipe: Recipe) -> Generate:
    """Return the recipe's engine, length limits and batch size with greedy search: how translations are made."""
    settings = recipe.generate
    return Generate(
        engine=settings.engine,
        cuda_graphs=settings.cuda_graphs,
        max_length_ratio=settings.max_length_ratio,
        max_length_offset=settings.max_length_offset,
        max_tokens_per_batch=settings.max_tokens_per_batch,
    )


def parallel_texts(corpora: Corpora, recipe: Recipe, part: str, direction: Direction) -> tuple[list[str], list[str]]:
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
        metrics.signatures(bleu_tokenize(recipe, direction))


def bleu_tokenize(recipe: Recipe, direction: Direction) -> str:
    """Return the sacreBLEU tokenizer of a direction: the recipe's, else one that fits its target language."""
    return recipe.evaluation.bleu_tokenize.get(direction.target, bleu_tokenizer(direction.target))


def translations_path(run: RunFolder, part: str, stage: str, direction: Direction) -> Path:
    return run.translations / f"{part}.{stage}.{direction.name}.txt"


def mean_chrf(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Return the mean chrF++ of the directions."""
    return sum(one["chrf"] for one in scores.values()) / len(scores)
