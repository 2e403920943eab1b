"""Both directions on one frozen base: the models of a run and how they translate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roundtrip.engine.generate import Hypothesis, generate, length_limit
from roundtrip.errors import ModelError
from roundtrip.models import adapters, base
from roundtrip.plan import Direction, directions
from roundtrip.recipe import Generate, Recipe
from roundtrip.tokens.template import Segments, Template, build_segments


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
        tell: Callable[[int, int], None] = lambda rows, tokens: None,
    ) -> tuple[list[str], list[Hypothesis]]:
        """Translate texts with the direction's adapter as it is now.

        Args:
            adapted: False asks the bare base.
            tell: see `generate`.

        Returns:
            The hypotheses as text and as ids, one per source.

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
        )
        return [template.hypothesis_text(hypothesis.ids) for hypothesis in hypotheses], hypotheses

    def num_source_tokens(self, direction: Direction, prompt: Sequence[int]) -> int:
        """Return how many tokens of a prompt are not the template's."""
        return max(1, len(prompt) - self.templates[direction.name].num_fixed)

    def num_needed(self, direction: Direction, prompt: Sequence[int], settings: Generate) -> int:
        """Return how many tokens a prompt and its longest translation take."""
        return len(prompt) + length_limit(self.num_source_tokens(direction, prompt), settings)

    def fits(self, num_tokens: int) -> bool:
        """Return whether so many tokens fit into the model."""
        return self.base.max_positions is None or num_tokens < self.base.max_positions


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
