"""Both directions on one frozen base: the models of a run and how they translate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roundtrip.engine.generate import Hypotheses, generate, length_limit
from roundtrip.errors import ModelError
from roundtrip.models import adapters, base
from roundtrip.plan import Direction, directions
from roundtrip.recipe import Generate, Recipe
from roundtrip.tokens.segments import Segments, build_segments
from roundtrip.tokens.template import Template


@dataclass(frozen=True)
class Written:
    """What a direction wrote, one entry a source.

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
class Translators:
    """One base, its two adapters, a scratch copy to generate from, and a template per direction.

    Attributes:
        base: the model as loaded; its weights are those under `model`.
        model: the base with both adapters, for training.
        scratch: a plain model whose weights are written anew before each use.
        templates: by direction name.
    """

    base: base.Base
    model: Any
    scratch: Any
    templates: dict[str, Template]

    def write(
        self,
        direction: Direction,
        sources: Sequence[str],
        settings: Generate,
        seed: int,
        *,
        adapted: bool = True,
        reader: Template | None = None,
        tell: Callable[[int, int], None] = lambda rows, tokens: None,
    ) -> Written:
        """Translate texts with the direction's adapter as it is now.

        Args:
            adapted: False asks the bare base.
            reader: a template that makes prompts of the hypotheses; while the device writes the next batch, a thread
                decodes the last one and encodes it again.
            tell: see `generate`.

        Raises:
            ModelError: a source does not fit into the model.
        """
        template = self.templates[direction.name]
        prompts = template.prompts(sources)
        limits = [self.num_needed(direction, prompt, settings) - len(prompt) for prompt in prompts]
        for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            if not self.fits(len(prompt) + limit):
                raise ModelError(
                    f"text {number + 1} of {len(sources)} has {len(prompt)} tokens and may need {limit} more: "
                    f"'{sources[number][:60]}...'",
                    place=f"{direction.name}, a model of {self.base.max_positions} positions",
                    cure="lower data.filter.max_chars",
                )
        adapters.write_merged(self.scratch, self.model, direction.name if adapted else None)
        reads: list[tuple[list[int], Future[tuple[list[str], list[list[int]]]]]] = []
        thread = ThreadPoolExecutor(1)

        def seen(rows: list[int], some: Hypotheses) -> None:
            if reads and reads[-1][1].done():
                reads[-1][1].result()  # raises what went wrong there, now rather than at the end
            reads.append((rows, thread.submit(_read, template, some, reader)))

        try:
            hypotheses = generate(
                self.scratch,
                prompts,
                limits,
                settings,
                pad_id=self.base.pad_id,
                stop_ids=template.segments.stop_ids,
                text_stop_ids=template.segments.break_ids,
                seed=seed,
                tell=tell,
                seen=seen,
            )
            texts = [""] * len(prompts)
            read: list[list[int]] | None = [[] for _ in prompts] if reader is not None else None
            for rows, future in reads:
                for row, text, ids in zip(rows, *future.result(), strict=True):
                    texts[row] = text
                    if read is not None:
                        read[row] = ids
        finally:
            thread.shutdown(cancel_futures=True)
        return Written(texts, hypotheses.finished_B.tolist(), hypotheses, read)

    def num_source_tokens(self, direction: Direction, prompt: Sequence[int]) -> int:
        """Return how many tokens of a prompt are not the template's."""
        return max(1, len(prompt) - self.templates[direction.name].num_fixed)

    def num_needed(self, direction: Direction, prompt: Sequence[int], settings: Generate) -> int:
        """Return how many tokens a prompt and its longest translation take."""
        return len(prompt) + length_limit(self.num_source_tokens(direction, prompt), settings)

    def fits(self, num_tokens: int) -> bool:
        """Return whether so many tokens fit into the model."""
        return self.base.max_positions is None or num_tokens < self.base.max_positions


def _read(template: Template, hypotheses: Hypotheses, reader: Template | None) -> tuple[list[str], list[list[int]]]:
    """Return the texts of hypotheses, and their prompts for a reader; empty ones where there is none."""
    texts = [template.hypothesis_text(ids) for ids in hypotheses.lists()]
    return texts, reader.prompts(texts) if reader is not None else [[] for _ in texts]


def load(recipe: Recipe, folder: Path, segments: dict[str, Segments] | None = None) -> Translators:
    """Load the base of a recipe with two fresh adapters.

    Args:
        folder: where relative paths of the recipe start.
        segments: of an earlier run; the templates are rebuilt from the tokenizer where None.

    Raises:
        SourceError, ModelError, TemplateError: something in `[model]`, `[adapter]` or `[template]` cannot be had.
    """
    loaded = base.load(recipe.model, folder)
    if segments is None:
        segments = {
            direction.name: build_segments(
                loaded.tokenizer, recipe.template, direction.source, direction.target, loaded.stop_ids
            )
            for direction in directions(recipe)
        }
    templates = {name: Template(loaded.tokenizer, value) for name, value in segments.items()}
    scratch = base.scratch_copy(loaded.model)
    base.set_attention(loaded.model, recipe.model.train_attention)
    model = adapters.add(loaded.model, recipe.adapter, list(segments), recipe.seed)
    if recipe.model.gradient_checkpointing:
        base.checkpoint_activations(model)
    return Translators(loaded, model, scratch, templates)
