"""A translator: one direction of a run, and how it translates."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from roundtrip.engine.backend import choose_backend
from roundtrip.engine.cuda_graphs import supports_static_cache
from roundtrip.engine.generate import generate, length_limit
from roundtrip.engine.hypotheses import Hypotheses, HypothesisDecoder
from roundtrip.engine.likelihood import log_likelihood
from roundtrip.engine.model_checks import check_devices
from roundtrip.engine.request import Callbacks, GenerationRequest, StopRule
from roundtrip.models import direction_model
from roundtrip.models.adapters import as_exported
from roundtrip.models.base_model import LoadedModel
from roundtrip.models.direction_model import DirectionModel
from roundtrip.recipe.loader import LoadedRecipe
from roundtrip.recipe.plan import Direction, directions
from roundtrip.recipe.schema import Generate, Model, Recipe
from roundtrip.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from roundtrip.runtime.errors import ModelError
from roundtrip.tokens.batching import TokenDataset
from roundtrip.tokens.prompt_segments import Segments, build_segments, num_ids
from roundtrip.tokens.prompt_template import PromptTemplate


@dataclass(frozen=True)
class Translations:
    """What a direction generated, one entry a hypothesis; candidates of one source stand next to each other.

    Attributes:
        texts: as the template's `hypothesis_text` gives them.
        finished: an end token came within the limit.
        hypotheses: the ids, on the device.
        row_starts: `PromptTemplate.row_starts` of these texts in another direction, where they were asked for.

    Example:
        >>> translations = load_translators(recipe)["en-es"].translate(["a cat"])
        >>> ids_N = translations.hypotheses.ids_BN[0, : translations.hypotheses.size_B[0]]
        >>> ids_N.dtype, ids_N.tolist() == translations.hypotheses.lists()[0]
        (torch.int64, True)
    """

    texts: list[str]
    finished: list[bool]
    hypotheses: Hypotheses
    row_starts: list[list[int]] | None = None


@dataclass(frozen=True)
class Translator:
    """One direction: its weights, its prompts, and the processes that generate together.

    Attributes:
        denoising_template: from the target language into itself.
        expansion: target tokens per source token, see `expansion_of`; the length limit grows with it.

    Example:
        >>> translator = load_translators(recipe)["en-es"]
        >>> translations = translator.translate(["the dog sleeps", "a cat"])
        >>> len(translations.texts), translations.hypotheses.ids_BN.shape[0]
        (2, 2)
    """

    direction: Direction
    direction_model: DirectionModel
    template: PromptTemplate
    denoising_template: PromptTemplate
    processes: ProcessGroup = SINGLE_PROCESS
    expansion: float = 1.0

    @property
    def base(self) -> LoadedModel:
        return self.direction_model.base

    def notes(self, settings: Generate) -> list[str]:
        """Return what a run says about how this direction computes: where that is not as it usually is.

        Raises:
            ModelError: the model is not causal, or cannot generate.
        """
        with self.direction_model.generating(use_adapter=False) as model:
            notes = list(choose_backend(model, settings, self.base.pad_id).reasons)
        if self.base.attention == "eager":
            notes.insert(0, "attention 'eager' for generation: transformers has no sdpa for this model")
        return notes

    def translate(
        self,
        sources: Sequence[str],
        settings: Generate = Generate(temperature=0.0),  # noqa: B008 (frozen)
        seed: int = 0,
        *,
        use_adapter: bool = True,
        reread_with: PromptTemplate | None = None,
        callbacks: Callbacks = Callbacks(),  # noqa: B008 (frozen)
    ) -> Translations:
        """Translate texts with the direction's current weights, each `settings.num_candidates` times.

        Args:
            seed: of sampling.
            use_adapter: False translates with the bare base.
            reread_with: a template that encodes the hypotheses again, see `Translations.row_starts`.

        Raises:
            ModelError: a source does not fit into the model, or into memory.
        """
        prompts, segments = self.template.prompts(sources), self.template.segments
        limits = self._limits(sources, prompts, settings)
        stop = StopRule(segments.stop_ids, segments.break_ids, self.base.pad_id)
        with_logprobs = settings.num_candidates > 1 and settings.candidate_selection == "likelihood"
        request = GenerationRequest(prompts, limits, settings, stop, seed, with_logprobs)
        with (
            closing(HypothesisDecoder(self.template, reread_with)) as decoder,
            self.direction_model.generating(use_adapter=use_adapter) as model,
        ):

            def on_batch(indices: list[int], hypotheses: Hypotheses) -> None:
                callbacks.on_batch(indices, hypotheses)
                decoder.submit(indices, hypotheses)

            hypotheses = generate(model, request, replace(callbacks, on_batch=on_batch), self.processes)
            texts, row_starts = decoder.collect(len(hypotheses.size_B), self.processes)
        return Translations(texts, hypotheses.finished_B.tolist(), hypotheses, row_starts)

    def _limits(self, sources: Sequence[str], prompts: Sequence[Sequence[int]], settings: Generate) -> list[int]:
        """Return the most new tokens of each prompt, which has to fit into the model."""
        limits = [self.num_needed(prompt, settings) - len(prompt) for prompt in prompts]
        for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            if not self.fits(len(prompt) + limit):
                raise ModelError(
                    f"text {number + 1} of {len(sources)} has {len(prompt)} tokens and may need {limit} more: "
                    f"'{sources[number][:60]}...'",
                    place=f"{self.direction.name}, a model of {self.base.max_positions} positions",
                    cure="shorten or split this text; in a recipe, lower data.filter.max_chars",
                )
        return limits

    def likelihoods(
        self,
        pairs: Sequence[tuple[str, str]],
        max_tokens_per_microbatch: int,
        on_progress: Callable[[int, int], None] = lambda rows, tokens: None,
    ) -> list[float]:
        """Return the log-probability of the target of each (source, target), in nats; see `log_likelihood`."""
        dataset = TokenDataset.of(self.template.rows(pairs), self.base.device)
        with self.direction_model.generating() as model:
            logprob_R = log_likelihood(
                model, dataset, self.base.pad_id, max_tokens_per_microbatch, on_progress, self.processes
            )
        return logprob_R.tolist()  # type: ignore[no-any-return]

    def num_source_tokens(self, prompt: Sequence[int]) -> int:
        """Return the tokens of a prompt that are its source's."""
        return max(1, len(prompt) - self.template.num_fixed)

    def num_needed(self, prompt: Sequence[int], settings: Generate) -> int:
        """Return the number of tokens of a prompt and its longest translation."""
        return len(prompt) + length_limit(math.ceil(self.expansion * self.num_source_tokens(prompt)), settings)

    def can_translate(self, texts: Sequence[str], settings: Generate) -> list[bool]:
        """Return whether each text and its longest translation fit into the model."""
        return [self.fits(self.num_needed(prompt, settings)) for prompt in self.template.prompts(texts)]

    def fits(self, num_tokens: int) -> bool:
        """Return whether a text of `num_tokens` fits into the model."""
        return self.base.max_positions is None or num_tokens < self.base.max_positions


def load(
    recipe: Recipe, folder: Path, segments: Mapping[str, Segments] | None = None, residual_folder: Path | None = None
) -> dict[str, Translator]:
    """Load both directions of a recipe as they begin; see `direction_model.load`.

    Args:
        segments: of an earlier run, by direction; the templates are rebuilt from the tokenizers where None.
    """
    check_devices(recipe)
    seed, one_base = recipe.seed, recipe.shared_base
    models = direction_model.load(recipe.model, recipe.adapter, folder, one_base, seed, residual_folder)
    for name, model in models.items():
        if recipe.generate.cuda_graphs and not supports_static_cache(model.base.model):
            problem = f"{name}: CUDA graphs require a model without sliding windows and recurrent states"
            raise ModelError(problem, place="generate.cuda_graphs", cure="set it to false")
    return {each.name: _translator(recipe, each, models[each.name], segments or {}) for each in directions(recipe)}


def load_for_use(
    recipe: Recipe,
    folder: Path,
    segments: Mapping[str, Segments],
    specs: Mapping[str, Model],
    adapter_folders: Mapping[str, Path | None],
) -> dict[str, Translator]:
    """Load directions for use, on one base if it is the same for both, with what is saved in `adapter_folders`.

    Args:
        specs: `[model]` of each direction that is loaded, with other values where it is used in another way.
    """
    adapters = {name: as_exported(recipe.adapter[name], path) for name, path in adapter_folders.items()}
    models = direction_model.load(specs, adapters, folder, recipe.shared_base and len(specs) > 1)
    return {
        each.name: _translator(recipe, each, models[each.name], segments)
        for each in directions(recipe)
        if each.name in models
    }


def _translator(
    recipe: Recipe, direction: Direction, model: DirectionModel, fixed: Mapping[str, Segments]
) -> Translator:
    """Return a direction with its templates, whose segments are `fixed` or built from the tokenizer."""
    tokenizer, stop_ids = model.base.tokenizer, model.base.stop_ids

    def template(key: str, source: str) -> PromptTemplate:
        segments = fixed.get(key) or build_segments(tokenizer, recipe.template, source, direction.target, stop_ids)
        return checked_template(model, segments)

    parallel = denoising = template(direction.name, direction.source)
    if recipe.rounds.denoising_ratio:
        # From the language into itself, so that the prompt does not ask for a translation.
        denoising = template(denoising_name(direction.name), direction.target)
    return Translator(direction, model, parallel, denoising)


def checked_template(model: DirectionModel, segments: Segments) -> PromptTemplate:
    """Return the template of a model; refuse one with ids that the model does not have."""
    tokenizer, num_embeddings = model.base.tokenizer, model.base.num_embeddings
    made = PromptTemplate(tokenizer, segments)
    (row,) = made.rows([("a", "a")])
    lowest, highest = min(*row.ids, *segments.stop_ids, *segments.break_ids), max(row.ids)
    if lowest < 0 or highest >= num_embeddings:
        token = lowest if lowest < 0 else highest
        text = f"'{tokenizer.decode([token])}', " if 0 <= token < num_ids(tokenizer) else ""
        problem = f"the template uses {text}token {token}, the model has {num_embeddings} embeddings"
        raise ModelError(problem, place="model.path", cure="use the tokenizer that belongs to this model")
    return made


def expansion_of(template: PromptTemplate, pairs: Sequence[tuple[str, str]]) -> float:
    """Return the target tokens per source token of (source, target) pairs; at least 1, and 1 without pairs.

    A vocabulary that was trained on one language needs two or three times as many tokens for another, and a length
    limit that ignores it truncates good translations.
    """
    rows, prompts = template.rows(pairs), template.prompts([source for source, _ in pairs])
    num_source = sum(max(1, len(prompt) - template.num_fixed) for prompt in prompts)
    return max(1.0, round(sum(len(row.ids) - row.start for row in rows) / num_source, 3)) if pairs else 1.0


def denoising_name(name: str) -> str:
    """Return the key of the segments of a direction's denoising rows."""
    return f"{name} denoising"


def load_translators(recipe: LoadedRecipe) -> dict[str, Translator]:
    """Load both directions of a recipe as they start, for use or for a loop of your own.

    Args:
        recipe: from `load_recipe`, with models that exist.

    Returns:
        By name of the direction, such as `en-es`.

    Raises:
        SourceError, ModelError, TemplateError: something in `[model]`, `[adapter]` or `[template]` cannot be loaded.

    Example:
        >>> translators = load_translators(recipe)  # from `load_recipe`
        >>> sorted(translators)
        ['en-es', 'es-en']
    """
    if any(spec.from_scratch is not None for spec in recipe.recipe.model.values()):
        cure = "train it, then use load_trained(run_dir, direction)"
        raise ModelError("a model made from scratch does not exist before training", place="model", cure=cure)
    return load(recipe.recipe, recipe.folder)
