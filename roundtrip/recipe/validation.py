"""What is sound by itself in a recipe and impossible together, each with its place and a cure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import langcodes

from roundtrip.recipe.plan import directions
from roundtrip.recipe.sampling_schedule import requested_settings
from roundtrip.recipe.schema import Adapter, Model, Recipe, TemplateRecipe, TextSource, Tokens

# What an adapter is made by; where all weights learn it has no meaning.
OF_ADAPTERS = (
    *("rank", "alpha", "dropout", "targets", "layers", "init"),
    *("loraplus_lr_ratio", "ephemeral_gpu_offload", "dtype"),
)


def combination_problems(recipe: Recipe) -> list[str]:
    """Name the keys that are sound by themselves and impossible together."""
    problems = [*_languages(recipe), *_data(recipe), *_template(recipe.template), *_tokens(recipe.tokens)]
    passes = recipe.train.parallel_epochs + recipe.train.final_epochs
    if not (recipe.rounds.count or passes or recipe.train.pretrain_lines):
        problems.append("rounds.count: 0 rounds and 0 train.parallel_epochs train nothing")
    if recipe.train.pretrain_lines and recipe.data.split is None:
        problems += [
            f"train.pretrain_lines: reads text of both languages, and data.mono has no '{code}'"
            for code in recipe.languages
            if not recipe.data.mono.get(code)
        ]
    if recipe.train.max_length > recipe.train.max_tokens_per_microbatch:
        problems.append(
            f"train.max_length: {recipe.train.max_length} does not fit into "
            f"train.max_tokens_per_microbatch {recipe.train.max_tokens_per_microbatch}"
        )
    problems += _generate(recipe)
    problems += _rounds(recipe)
    for language in recipe.evaluation.bleu_tokenize:
        if language not in recipe.languages:
            first, second = recipe.languages
            problems.append(f"evaluation.bleu_tokenize.{language}: not one of the languages {first}, {second}")
    one, other = (
        [*_model(model), *_adapter(recipe, recipe.adapter[name], model)] for name, model in recipe.model.items()
    )
    # What both have is said once.
    return problems + one + [problem for problem in other if problem not in one]


def _generate(recipe: Recipe) -> list[str]:
    """Name what is said of writing and can take no effect, for any direction in any round."""
    generate, names = recipe.generate, [direction.name for direction in directions(recipe)]
    problems = []
    said = [
        requested_settings(generate, name, number)
        for name in names
        for number in range(1, max(2, recipe.rounds.count + 1))
    ]
    # Without dev pairs nobody knows who is warm.
    hot = [one for one in said if (one.temperature != "auto" or not recipe.blind) and one.temperature]
    why = "without dev pairs, where 'auto' is greedy" if generate.temperature == "auto" else "at temperature 0"
    if any(one.top_p < 1 or one.top_k or one.min_p for one in said) and not any(
        one.top_p < 1 or one.top_k or one.min_p for one in hot
    ):
        problems.append(f"generate: top_p, top_k and min_p do nothing {why}; set generate.temperature")
    if any(one.num_candidates > 1 for one in said) and not any(one.num_candidates > 1 for one in hot):
        problems.append(f"generate.num_candidates: they are all the same {why}; set generate.temperature")
    chosen = "choose" in generate.model_fields_set or any(one.candidate_selection for one in generate.overrides)
    if chosen and all(one.num_candidates == 1 for one in said):
        problems.append("generate.candidate_selection: there is nothing to choose from; set generate.num_candidates")
    if recipe.blind or not any(one.temperature == "auto" for one in said):
        unused = sorted({"sampling_min_chrf", "sampling_temperature"} & generate.model_fields_set)
        problems += [
            f"generate.{key}: only temperature = 'auto' asks how warm a direction is, by dev pairs" for key in unused
        ]
    for number, change in enumerate(generate.overrides):
        place = f"generate.overrides.{number}"
        if change.direction not in {None, *names}:
            problems.append(f"{place}.direction: '{change.direction}' is not one of {', '.join(names)}")
        if change.round > recipe.rounds.count:
            problems.append(f"{place}.round: {change.round}, and there are rounds.count = {recipe.rounds.count}")
        if change.model_fields_set <= {"round", "direction"}:
            problems.append(f"{place}: changes nothing; set temperature, samples, choose, top_p, top_k or min_p")
    if generate.engine != "native" and generate.cuda_graphs:
        problems.append("generate.cuda_graphs: of our own loop only; use engine 'native'")
    if generate.engine == "continuous" and generate.repetition_penalty != 1:
        problems.append("generate.repetition_penalty: continuous batching leaves it out; use engine 'native'")
    if generate.engine == "continuous" and hot:
        problems.append(
            "generate.engine: what continuous batching samples depends on its timing, and no run could be repeated; "
            "use 'native', or temperature 0"
        )
    return problems


def _rounds(recipe: Recipe) -> list[str]:
    """Name what is said of rounds where there are none, or too few of them."""
    problems = []
    rounds, train = recipe.rounds, recipe.train
    if not rounds.count:
        keys = {"replay_examples", "denoising_ratio", "patience"} & rounds.model_fields_set
        said = [f"rounds.{key}" for key in sorted(keys) if getattr(rounds, key)]
        said += ["train.synthetic_weight"] if train.synthetic_weight != 1 else []
        said += ["template.synthetic_tag"] if recipe.template.synthetic_tag else []
        said += ["filter.language"] if recipe.filter.language else []
        said += ["filter.min_round_trip_chrf"] if recipe.filter.min_round_trip_chrf else []
        problems += [f"{key}: does nothing where rounds.count is 0" for key in said]
    elif rounds.replay_examples and rounds.count == 1:
        problems.append("rounds.replay_examples: there are no earlier rounds to keep rows of; set rounds.count")
    elif rounds.patience >= rounds.count:
        problems.append(f"rounds.patience: {rounds.patience} of {rounds.count} rounds can never be waited for")
    pairs = recipe.data.split.train if recipe.data.split is not None else len(recipe.data.train)
    if not pairs:
        problems += [
            f"train.{key}: is of parallel pairs, and there are none"
            for key in ("final_epochs", "patience")
            if getattr(train, key)
        ]
    if train.synthetic_weight != 1 and not rounds.denoising_ratio and not (rounds.parallel_ratio and pairs):
        problems.append("train.synthetic_weight: all rows of a round are synthetic; nothing is weighed against another")
    if recipe.blind and train.patience:
        problems.append("train.patience: is seen on parallel dev pairs, and there is no data.dev")
    if not recipe.blind and "round_trip_lines" in recipe.evaluation.model_fields_set:
        problems.append("evaluation.round_trip_lines: does nothing where there are parallel dev pairs")
    if train.patience and max(train.parallel_epochs, train.final_epochs) <= train.patience:
        problems.append(
            f"train.patience: {train.patience} passes without a gain cannot be seen in {train.parallel_epochs} "
            f"parallel_epochs and {train.final_epochs} final_epochs"
        )
    return problems


def _model(model: Model) -> list[str]:
    problems = []
    if model.path is None and model.from_scratch is None:
        problems.append(
            "model.path: missing; name a hub id, a folder or a .gguf file, or make one with model.from_scratch"
        )
    if model.path is not None and model.from_scratch is not None:
        problems.append("model.from_scratch: makes a model, and model.path names one; leave one of them out")
    if model.from_scratch is not None and model.revision is not None:
        problems.append("model.revision: is of a hub id; a model from scratch has none")
    if model.from_scratch is not None and model.from_scratch.hidden_size % (2 * model.from_scratch.num_heads):
        problems.append(
            f"model.from_scratch.hidden_size: {model.from_scratch.hidden_size} is not an even multiple of heads "
            f"{model.from_scratch.num_heads}"
        )
    return problems


def _adapter(recipe: Recipe, adapter: Adapter, model: Model) -> list[str]:
    problems = []
    method = f"adapter.method: '{adapter.method}'"
    if recipe.train.kl_weight and adapter.method in {"full", "pissa", "olora"}:
        problems.append(f"train.kl_weight: {method} leaves no base to be near to; use 'lora', 'rslora' or 'dora'")
    if adapter.method == "full":
        if not model.merged_copy:
            problems.append(f"model.merged_copy: does nothing where all weights learn ({method})")
        if model.quantize != "none":
            problems.append(
                f"{method} trains all weights, which model.quantize = '{model.quantize}' rounds; use 'lora'"
            )
    elif model.from_scratch is not None:
        problems.append(f"{method} adapts a model that knows something; a model from scratch needs 'full'")
    if adapter.method in {"pissa", "olora"}:
        if recipe.one_base:
            problems.append(
                f"{method} takes a part out of the base, which the other direction shares; set model.shared = false, "
                "so that each has its own, or use 'rslora'"
            )
        if not model.merged_copy:
            problems.append(f"model.merged_copy: does nothing where all weights learn ({method})")
        if model.quantize != "none":
            problems.append(f"{method} changes the base's weights, which model.quantize fixes; use 'lora' or 'rslora'")
        if not model.merged_copy:
            problems.append(f"{method} is scored and used from the copy that model.merged_copy = false leaves out")
        if adapter.init is not None:
            problems.append(f"adapter.init: {method} begins with a part of the base, not with an earlier adapter")
    if adapter.layers is not None and isinstance(adapter.targets, str):
        problems.append(
            "adapter.layers: only goes with names in adapter.targets; a pattern there may name the layers itself"
        )
    if adapter.method not in {"dora", "rsdora"} and adapter.ephemeral_gpu_offload:
        problems.append("adapter.ephemeral_gpu_offload: only DoRA does the work that it moves; use method 'dora'")
    if "dora" in adapter.method and model.quantize == "8bit":
        problems.append(
            f"{method} reads the base's weights, which 8 bits do not give back; use model.quantize = '4bit'"
        )
    if any("lm_head" in target for target in _as_tuple(adapter.targets)) and model.quantize != "none":
        problems.append("adapter.targets: lm_head is not quantized with the rest; leave it out")
    if any("lm_head" in target for target in _as_tuple(adapter.targets)) and model.use_liger_kernel:
        problems.append("adapter.targets: Liger's loss reads lm_head without its adapter; leave lm_head out")
    return problems


def _as_tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _languages(recipe: Recipe) -> list[str]:
    problems: list[str] = []
    codes = recipe.languages
    unknown = [code for code in codes if not _is_language(code)]
    problems += [f"languages: '{code}' is not a language code; use BCP 47 such as 'en', 'pt-BR'" for code in unknown]
    if not unknown and langcodes.standardize_tag(codes[0]) == langcodes.standardize_tag(codes[1]):
        problems.append(f"languages: '{codes[0]}' and '{codes[1]}' are the same language; name two")
    return problems


def _data(recipe: Recipe) -> list[str]:
    problems: list[str] = []
    codes, data = recipe.languages, recipe.data
    named = [key for key in ("train", "dev", "test", "mono") if getattr(data, key)]
    cut = [*("train", "mono"), *(key for key in ("dev", "test") if data.split is not None and getattr(data.split, key))]
    twice = [key for key in named if key in cut]
    if data.split is not None and twice:
        problems.append(
            f"data.split: excludes {', '.join(f'data.{k}' for k in twice)}; the cut makes these parts from one corpus"
        )
    if data.split is not None:
        problems += [
            f"data.split.{key}: 0, and there is no data.{key}; needed for scores"
            for key in ("dev", "test")
            if key not in named and not getattr(data.split, key)
        ]
    if data.split is not None and not recipe.rounds.count and not data.split.train:
        problems.append("data.split.train: 0 pairs and 0 rounds train nothing")
    if data.split is not None and not data.split.corpus:
        problems.append("data.split.corpus: no source given")
    if data.split is None:
        if "test" not in named:
            problems.append("data.test: nothing given; needed for scores")
        if "dev" not in named and not (recipe.rounds.count and all(data.mono.get(code) for code in codes)):
            problems.append("data.dev: nothing given; needed for scores (or data.mono of both languages, and rounds)")
        if not data.train and not recipe.rounds.count:
            problems.append("data.train: nothing to train on, and rounds.count is 0")
        for code in codes:
            if recipe.rounds.count and not data.mono.get(code):
                problems.append(f"data.mono: no '{code}'; both languages need text, or set rounds.count = 0")
        problems += [
            f"data.mono.{code}: not one of the languages {codes[0]}, {codes[1]}"
            for code in data.mono
            if code not in codes
        ]
    if data.filter.max_words is not None and data.filter.max_words < data.filter.min_words:
        problems.append(f"data.filter.max_words: {data.filter.max_words} is below min_words {data.filter.min_words}")
    for key, source, num_languages in recipe.sources():
        problems += [f"{key}: {text}" for text in _source_problems(source, num_languages)]
    return problems


def _template(template: TemplateRecipe) -> list[str]:
    problems: list[str] = []
    fields = template.text if template.kind == "plain" else template.instruction
    needed = ["{source}", "{target}"] if template.kind == "plain" else ["{source}"]
    key = "template.text" if template.kind == "plain" else "template.instruction"
    for field in needed:
        if fields.count(field) != 1:
            problems.append(f"{key}: needs {field} exactly once, has it {fields.count(field)} times")
    known = {
        "source_language",
        "target_language",
        "source",
        *(["target"] if template.kind == "plain" else []),
    }
    for field in re.findall(r"\{(\w*)\}", fields):
        if field not in known:
            problems.append(f"{key}: unknown field {{{field}}}{did_you_mean(field, known)}")
    foreign = {"instruction", "system"} if template.kind == "plain" else {"text"}
    for name in sorted(foreign & template.model_fields_set):
        problems.append(f"template.{name}: a {template.kind} template does not use it")
    for field in re.findall(r"\{(\w*)\}", template.system or ""):
        if field not in {"source_language", "target_language"}:
            problems.append(f"template.system: unknown field {{{field}}}")
    if template.kind == "plain" and fields.rstrip()[-8:] != "{target}":
        problems.append("template.text: must end with {target}; the end token follows it")
    return problems


def _tokens(tokens: Tokens) -> list[str]:
    if tokens.mode == "text" and "audit" in tokens.model_fields_set:
        return ['tokens.audit: has no effect with tokens.mode = "text", which splices no row']
    return []


def _is_language(code: str) -> bool:
    # A code becomes part of file and adapter names.
    return re.fullmatch(r"[A-Za-z0-9-]+", code) is not None and bool(langcodes.tag_is_valid(code))


def _source_problems(source: TextSource, num_languages: int) -> list[str]:
    problems = []
    if isinstance(source.path, tuple) and num_languages == 1:
        problems.append(f"two files {list(source.path)} where one language is wanted")
    if source.columns is not None and len(source.columns) != num_languages:
        problems.append(f"columns {list(source.columns)}: {num_languages} wanted, one a language")
    hub = isinstance(source.path, str) and source.path.startswith("hf:")
    if not hub and {"subset", "split"} & source.model_fields_set:
        problems.append("subset and split: only a path hf:DATASET has them")
    if source.format == "datasets" and not hub:
        problems.append("format 'datasets': the path must be hf:DATASET")
    tables = ("tsv", "tab", "csv", "jsonl", "ndjson", "parquet")
    endings = str(source.path).removesuffix(".gz").rpartition(".")[2].lower()
    if not (hub or source.format in tables or (source.format == "auto" and endings in tables)):
        unused = sorted({"columns", "header"} & source.model_fields_set)
        problems += [f"{key}: only tables have it, {source.path} is none" for key in unused]
    return problems


def did_you_mean(word: str, known: Sequence[str] | set[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), 1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known))}"
