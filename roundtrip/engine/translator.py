"""A translator: one direction of a run, and how it translates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from roundtrip.engine.cuda_graphs import supports_static_cache
from roundtrip.engine.generate import Hypotheses, generate, length_limit
from roundtrip.engine.likelihood import log_likelihood
from roundtrip.models import direction_model as learners
from roundtrip.models.adapters import as_exported
from roundtrip.models.base_model import LoadedModel, choose_device
from roundtrip.models.direction_model import DirectionModel
from roundtrip.recipe.plan import Direction, directions
from roundtrip.recipe.schema import Generate, Recipe
from roundtrip.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from roundtrip.runtime.errors import ModelError
from roundtrip.tokens.batching import TokenDataset
from roundtrip.tokens.prompt_segments import Segments, build_segments
from roundtrip.tokens.prompt_template import PromptTemplate


@dataclass(frozen=True)
class Translations:
    """What a direction wrote, one entry a hypothesis; those of one source stand next to each other.

    Attributes:
        texts: as the template's `hypothesis_text` gives them.
        finished: an end token came within the limit.
        hypotheses: the ids, on the device.
        prompts: of these texts as sources, where they were asked for.
    """

    texts: list[str]
    finished: list[bool]
    hypotheses: Hypotheses
    prompts: list[list[int]] | None = None


@dataclass(frozen=True)
class DirectionTemplates:
    """How rows of different kinds become one text.

    Attributes:
        real: what the direction is asked with, in training and ever after.
        synthetic: with the tag in front of the source, so that the model can tell a source that a model wrote
            (https://arxiv.org/abs/1906.06442); the same as `real` where the recipe has none.
        noised: from the target language into itself.
    """

    real: PromptTemplate
    synthetic: PromptTemplate
    noised: PromptTemplate


@dataclass(frozen=True)
class Translator:
    """One direction: what it learns with, how its prompts are made, and which processes write together.

    Attributes:
        expansion: tokens of a target for each of its source, see `expansion_of`; the length limit grows with it.
    """

    direction: Direction
    direction_model: DirectionModel
    templates: DirectionTemplates
    processes: ProcessGroup = SINGLE_PROCESS
    expansion: float = 1.0

    @property
    def template(self) -> PromptTemplate:
        return self.templates.real

    @property
    def base(self) -> LoadedModel:
        return self.direction_model.base

    def write(
        self,
        sources: Sequence[str],
        settings: Generate,
        seed: int,
        *,
        adapted: bool = True,
        reader: PromptTemplate | None = None,
        on_progress: Callable[[int, int], None] = lambda rows, tokens: None,
        on_oom_split: Callable[[int], None] = lambda rows: None,
    ) -> Translations:
        """Translate texts with the direction's weights as they are now, each `settings.num_candidates` times.

        Args:
            adapted: False asks the bare base.
            reader: a template that makes prompts of the hypotheses; while the device writes the next batch, a thread
                decodes the last one and encodes it again.
            tell, halved: see `generate`.

        Raises:
            ModelError: a source does not fit into the model.
        """
        template = self.template
        prompts = template.prompts(sources)
        limits = [self.num_needed(prompt, settings) - len(prompt) for prompt in prompts]
        for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            if not self.fits(len(prompt) + limit):
                raise ModelError(
                    f"text {number + 1} of {len(sources)} has {len(prompt)} tokens and may need {limit} more: "
                    f"'{sources[number][:60]}...'",
                    place=f"{self.direction.name}, a model of {self.base.max_positions} positions",
                    cure="lower data.filter.max_chars",
                )
        reads: list[tuple[list[int], Future[tuple[list[str], list[list[int]]]]]] = []
        thread = ThreadPoolExecutor(1)

        def on_batch(rows: list[int], some: Hypotheses) -> None:
            if reads and reads[-1][1].done():
                reads[-1][1].result()  # raises what went wrong there, now rather than at the end
            reads.append((rows, thread.submit(_read, template, some, reader)))

        try:
            with self.direction_model.generating(adapted=adapted) as model:
                hypotheses = generate(
                    model,
                    prompts,
                    limits,
                    settings,
                    pad_id=self.base.pad_id,
                    stop_ids=template.segments.stop_ids,
                    text_stop_ids=template.segments.break_ids,
                    seed=seed,
                    return_logprobs=settings.num_candidates > 1 and settings.candidate_selection == "likelihood",
                    processes=self.processes,
                    on_progress=on_progress,
                    on_batch=on_batch,
                    on_oom_split=on_oom_split,
                )
            num = len(prompts) * settings.num_candidates
            texts = [""] * num
            read: list[list[int]] | None = [[] for _ in range(num)] if reader is not None else None
            own = [(rows, *future.result()) for rows, future in reads]
            for rows, some, ids_of_rows in (part for parts in self.processes.gather(own) for part in parts):
                for row, text, ids in zip(rows, some, ids_of_rows, strict=True):
                    texts[row] = text
                    if read is not None:
                        read[row] = ids
        finally:
            thread.shutdown(cancel_futures=True)
        return Translations(texts, hypotheses.finished_B.tolist(), hypotheses, read)

    def likelihoods(
        self,
        pairs: Sequence[tuple[str, str]],
        max_tokens_per_microbatch: int,
        on_progress: Callable[[int, int], None] = lambda rows, tokens: None,
    ) -> list[float]:
        """Return the log-probability of each target given its source, in nats, with the weights as they are now."""
        table = TokenDataset.of(self.template.rows(pairs), self.base.device)
        with self.direction_model.generating() as model:
            found_R = log_likelihood(
                model, table, self.base.pad_id, max_tokens_per_microbatch, on_progress, self.processes
            )
        return found_R.tolist()  # type: ignore[no-any-return]

    def num_source_tokens(self, prompt: Sequence[int]) -> int:
        """Return how many tokens of a prompt are not the template's."""
        return max(1, len(prompt) - self.template.num_fixed)

    def num_needed(self, prompt: Sequence[int], settings: Generate) -> int:
        """Return how many tokens a prompt and its longest translation take."""
        return len(prompt) + length_limit(math.ceil(self.expansion * self.num_source_tokens(prompt)), settings)

    def can_translate(self, texts: Sequence[str], settings: Generate) -> list[bool]:
        """Return whether each text and its longest translation fit into the model."""
        return [self.fits(self.num_needed(prompt, settings)) for prompt in self.template.prompts(texts)]

    def fits(self, num_tokens: int) -> bool:
        """Return whether so many tokens fit into the model."""
        return self.base.max_positions is None or num_tokens < self.base.max_positions


def _read(
    template: PromptTemplate, hypotheses: Hypotheses, reader: PromptTemplate | None
) -> tuple[list[str], list[list[int]]]:
    """Return the texts of hypotheses, and their prompts for a reader; empty ones where there is none."""
    texts = [template.hypothesis_text(ids) for ids in hypotheses.lists()]
    return texts, reader.row_starts(texts) if reader is not None else [[] for _ in texts]


def load(
    recipe: Recipe,
    folder: Path,
    segments: Mapping[str, Segments] | None = None,
    starts: Path | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Translator]:
    """Load both directions of a recipe as they begin.

    Args:
        folder: where relative paths of the recipe start.
        segments: of an earlier run, by direction; the templates are rebuilt from the tokenizers where None.
        starts: see `learner.load`.
        ranks: who else writes; see `generate`.

    Returns:
        By name of the direction.

    Raises:
        SourceError, ModelError, TemplateError: something in `[model]`, `[adapter]` or `[template]` cannot be had.
    """
    for name, spec in recipe.model.items():
        # Seen with bitsandbytes 0.50: gradients of a batch of one row are lost there without an error.
        if spec.quantize != "none" and choose_device(spec.device).type == "cpu":
            raise ModelError(
                f"{name}: a base of {spec.quantize} does not train on a CPU, where its kernels lose gradients",
                place="model.quantize",
                cure='set it to "none", or train on a GPU',
            )
        if recipe.generate.cuda_graphs and choose_device(spec.device).type != "cuda":
            raise ModelError(
                f"{name}: graphs are a GPU's, and this model is on a {choose_device(spec.device).type}",
                place="generate.cuda_graphs",
                cure="set it to false",
            )
    found = learners.load(
        recipe.model, recipe.adapter, folder, one_base=recipe.one_base, seed=recipe.seed, starts=starts
    )
    for name, learner in found.items():
        if recipe.generate.cuda_graphs and not supports_static_cache(learner.base.model):
            raise ModelError(
                f"{name}: this model has windows that slide or states that run, which no graph is made for",
                place="generate.cuda_graphs",
                cure="set it to false",
            )
    return {
        direction.name: _translator(recipe, direction, found[direction.name], segments or {}, processes)
        for direction in directions(recipe)
    }


def load_one(
    recipe: Recipe,
    direction: Direction,
    folder: Path,
    segments: Mapping[str, Segments],
    changes: Mapping[str, object],
) -> Translator:
    """Load a single direction, for use.

    Args:
        changes: keys of `[model]` that are other here than in training, such as the device.
    """
    spec = recipe.model[direction.name].model_copy(update=dict(changes))
    only = {direction.name: as_exported(recipe.adapter[direction.name])}
    found = learners.load({direction.name: spec}, only, folder, one_base=False, seed=recipe.seed)
    return _translator(recipe, direction, found[direction.name], segments)


def _translator(
    recipe: Recipe,
    direction: Direction,
    direction_model: DirectionModel,
    fixed: Mapping[str, Segments],
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Translator:
    base = direction_model.base
    return Translator(
        direction, direction_model, templates(recipe, direction, base.tokenizer, base.stop_ids, fixed), processes
    )


def expansion_of(template: PromptTemplate, pairs: Sequence[tuple[str, str]]) -> float:
    """Return how many tokens the targets of real pairs have for each of their sources; at least 1, and 1 without pairs.

    A vocabulary that was made for one language spells another in two or three times as many tokens, and a limit that
    does not know it cuts good translations.

    Args:
        template: of the direction.
        pairs: (source, target).
    """
    rows, prompts = template.rows(pairs), template.prompts([source for source, _ in pairs])
    sources = sum(max(1, len(prompt) - template.num_fixed) for prompt in prompts)
    return max(1.0, round(sum(len(row.ids) - row.start for row in rows) / sources, 3)) if pairs else 1.0


def noised_name(name: str) -> str:
    """Return the key of the segments by which a direction learns from noised lines."""
    return f"{name} noised"


def templates(
    recipe: Recipe,
    direction: Direction,
    tokenizer: Any,
    stop_ids: Sequence[int],
    fixed: Mapping[str, Segments] = {},  # noqa: B006 (read only)
) -> DirectionTemplates:
    """Return the templates of a direction.

    Args:
        stop_ids: what ends a text in this model.
        fixed: of an earlier run, by direction and `noised_name`; what is not there is built from the tokenizer.

    Raises:
        TemplateError: see `build_segments`.
    """
    own = fixed.get(direction.name) or build_segments(
        tokenizer, recipe.template, direction.source, direction.target, stop_ids
    )
    real, tag = PromptTemplate(tokenizer, own), recipe.template.synthetic_tag
    tagged = PromptTemplate(tokenizer, replace(own, head=own.head + tag)) if tag else real
    noised = real
    if recipe.rounds.denoising_ratio:
        # From the language into itself, so that the model knows that this is no translation.
        into_itself = fixed.get(noised_name(direction.name)) or build_segments(
            tokenizer, recipe.template, direction.target, direction.target, stop_ids
        )
        noised = PromptTemplate(tokenizer, into_itself)
    return DirectionTemplates(real, tagged, noised)
