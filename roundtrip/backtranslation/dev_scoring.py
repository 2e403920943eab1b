"""Dev and test scoring: both directions translate a set, and the translations are scored."""

from collections.abc import Mapping
from functools import partial

from roundtrip.backtranslation.context import RunContext
from roundtrip.backtranslation.examples import oriented_pairs
from roundtrip.backtranslation.filtering import MAX_COPY_CHRF
from roundtrip.data.placeholders import count_intact
from roundtrip.engine.request import BeamSearch
from roundtrip.evaluation import metrics
from roundtrip.recipe.language_codes import bleu_tokenizer
from roundtrip.recipe.plan import BASE, Direction, directions
from roundtrip.recipe.schema import Generate, Recipe
from roundtrip.runtime.atomic_io import write_text

DirectionScores = dict[str, dict[str, float]]


def score_copies(context: RunContext, part: str) -> DirectionScores:
    """Score the sources themselves as translations, by direction."""
    if part == "dev" and context.recipe.without_dev:
        # A copy of a line survives the round trip unchanged.
        return {name: {"bleu": 100.0, "chrf": 100.0, "copied": 1.0} for name in context.translators}
    both = directions(context.recipe)
    texts = {each: context.parallel_texts(part, each) for each in both}
    return {each.name: _scores(sources, sources, references, each) for each, (sources, references) in texts.items()}


def score_translations(context: RunContext, part: str, stage: str) -> DirectionScores:
    """Translate `dev` or `test` with both directions as they are now, keep the text, and score it.

    By direction: `bleu`, `chrf`, and `unfinished`, the number of hypotheses cut at their length limit; where
    sources have placeholders or tags, `intact`, the share of these that are translated without placeholder errors.
    Without dev pairs, of round trips, with `copied`, the share of copies of the source.
    """
    without_dev, scores = part == "dev" and context.recipe.without_dev, {}
    for direction in directions(context.recipe):
        sources, references = context.parallel_texts(part, direction)
        activity = "translating lines" if without_dev else f"translating {part}"
        settings = search_settings(context.recipe) if part == "test" else greedy_settings(context.recipe)
        lines, unfinished = _translate(context, sources, stage, direction, activity, settings)
        path, text = context.run.translation_file(part, stage, direction.name), "".join(f"{line}\n" for line in lines)
        context.write(partial(write_text, path, text), path)
        if without_dev:
            scores[direction.name] = _round_trip(context, sources, lines, stage, direction)
        else:
            scores[direction.name] = _scores(sources, lines, references, direction)
        scores[direction.name]["unfinished"] = unfinished
    return scores


def dev_loss(context: RunContext, direction: Direction) -> float:
    """Return the loss of the dev references given their sources, in nats per label."""
    translator = context.translators[direction.name]
    pairs = oriented_pairs(context.corpora.dev, direction, context.recipe)
    with context.events.task("scoring", f"dev loss of {direction.name}", len(pairs)) as task:
        max_tokens = context.recipe.train.max_tokens_per_microbatch
        log_probabilities = translator.likelihoods(pairs, max_tokens, context.callbacks(task).on_progress)
    num_labels = sum(len(row.ids) - row.start for row in translator.template.rows(pairs))
    return -sum(log_probabilities) / num_labels


def _round_trip(
    context: RunContext, lines: list[str], translated: list[str], stage: str, direction: Direction
) -> dict[str, float]:
    """Translate the translations of lines back, and score these against the lines.

    The only measure without pairs; its relation to quality is loose (https://aclanthology.org/U05-1019). Copying is
    perfect by it, so the share of copies stands beside it.
    """
    # A translation that is too long for the model does not come back.
    settings = greedy_settings(context.recipe)
    fits = context.translators[direction.reverse.name].can_translate(translated, settings)
    fitting = [text if can else "" for text, can in zip(translated, fits, strict=True)]
    back, _ = _translate(context, fitting, stage, direction.reverse, "translating them back", settings)
    chrf = [metrics.sentence_chrf(text, line) for text, line in zip(translated, lines, strict=True)]
    copied = sum(value >= MAX_COPY_CHRF for value in chrf) / len(lines)
    return _scores(lines, back, lines, direction.reverse) | {"copied": copied}


def _scores(sources: list[str], hypotheses: list[str], references: list[str], direction: Direction) -> dict[str, float]:
    scores = metrics.corpus_scores(hypotheses, references, bleu_tokenizer(direction.target)).to_dict()
    intact, num_lines = count_intact(sources, hypotheses)
    return scores | ({"intact": intact / num_lines} if num_lines else {})


def _translate(
    context: RunContext, sources: list[str], stage: str, direction: Direction, activity: str, settings: Generate
) -> tuple[list[str], int]:
    """Translate texts; return one line each, and how many were cut at their length limit."""
    translator = context.translators[direction.name]
    with context.events.task("scoring", f"{stage}: {direction.name} {activity}", len(sources)) as task:
        callbacks = context.callbacks(task)
        translations = translator.translate(sources, settings, use_adapter=stage != BASE, callbacks=callbacks)
    return [" ".join(text.split()) for text in translations.texts], translations.finished.count(False)


def greedy_settings(recipe: Recipe) -> Generate:
    """Return the recipe's engine, length limits and batch size with greedy search."""
    keep = ("engine", "cuda_graphs", "max_length_ratio", "max_tokens_per_batch")
    return Generate(**{key: getattr(recipe.generate, key) for key in keep})


def search_settings(recipe: Recipe) -> Generate:
    """Return `greedy_settings` with the recipe's beams: how test, and what users bring, is translated."""
    return BeamSearch(**greedy_settings(recipe).model_dump(), num_beams=recipe.evaluation.num_beams)


def mean_chrf(scores: Mapping[str, Mapping[str, float]]) -> float:
    """Return the mean chrF++ of the directions."""
    return sum(score["chrf"] for score in scores.values()) / len(scores)
