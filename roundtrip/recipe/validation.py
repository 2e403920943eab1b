"""Problems of a recipe whose keys are valid one by one: combinations that are impossible or have no effect."""

import re
from collections.abc import Iterator

from roundtrip.recipe.language_codes import UNKNOWN, is_standard, language_name, match_rank, standard_code
from roundtrip.recipe.schema import Adapter, Model, Recipe, TemplateRecipe, TextSource
from roundtrip.runtime.errors import did_you_mean

TABLE_ENDINGS = ("tsv", "tab", "csv", "jsonl", "ndjson", "parquet")


def combination_problems(recipe: Recipe) -> list[str]:
    """Return every problem as text that begins with its key."""
    problems = [*_language_problems(recipe), *_template_problems(recipe.template)]
    for check in (_data_problems, _split_problems, _train_problems, _generate_problems, _evaluation_problems):
        problems += check(recipe)
    # Of pairs to train on, dev pairs may be held out.
    problems += choice_problems(recipe, has_dev=not recipe.without_dev or bool(recipe.data.train))
    for direction, model in recipe.model.items():
        problems += _model_problems(model)
        if model.from_scratch is not None and recipe.template.kind == "chat":
            problems.append("template.kind: a model from scratch has no chat template; set it to 'plain'")
        problems += _adapter_problems(recipe, recipe.adapter[direction], model)
    return list(dict.fromkeys(problems))  # those that both directions have, once


def _language_problems(recipe: Recipe) -> Iterator[str]:
    codes, names = recipe.languages, recipe.template.names
    unknown = [code for code in codes if not is_standard(code)]
    for code in unknown:
        forms = dict.fromkeys([code.replace("_", "-"), standard_code(code) or ""])
        hint = " or ".join(repr(form) for form in forms if is_standard(form)) or "BCP 47 such as 'en', 'pt-BR'"
        yield f"languages: '{code}' is not a language code; use {hint}"
    if not unknown and match_rank(*codes) in (0, 1):
        yield f"languages: '{codes[0]}' and '{codes[1]}' are the same language; name two"
    for code in names:
        if code not in codes:
            yield f"template.names.{code}: not one of the languages {', '.join(codes)}{_other_form(code, codes)}"
    for code in codes:
        if code not in unknown and language_name(code, names).startswith(UNKNOWN):
            yield f"template.names: no English name of '{code}' is known, which prompts have; add {code} = \"NAME\""


def _other_form(code: str, codes: tuple[str, str]) -> str:
    """Return a hint for a code that is another form of one of the languages."""
    same = [other for other in codes if match_rank(other, code) is not None]
    return f"; did you mean '{same[0]}'?" if same else ""


def _template_problems(template: TemplateRecipe) -> Iterator[str]:
    prompt, plain = template.prompt_text, template.kind == "plain"
    needed = ("source", "target") if plain else ("source",)
    for field in needed:
        if (count := prompt.count(f"{{{field}}}")) != 1:
            yield f"template.prompt: needs {{{field}}} exactly once, has it {count} times"
    names = {"source_language", "target_language"}
    for key, text, known in (("prompt", prompt, {*names, *needed}), ("system", template.system or "", names)):
        for field in re.findall(r"\{(\w*)\}", text):
            if field not in known:
                yield f"template.{key}: unknown field {{{field}}}; {did_you_mean(field, known)}"
    if plain and not prompt.rstrip().endswith("{target}"):
        yield "template.prompt: must end with {target}; the end token follows it"
    if plain and template.system is not None:
        yield "template.system: has no effect with template.kind = 'plain'; leave it out"


def _data_problems(recipe: Recipe) -> Iterator[str]:
    data, codes = recipe.data, recipe.languages
    for code in data.mono:
        if code not in codes:
            yield f"data.mono.{code}: not one of the languages {', '.join(codes)}{_other_form(code, codes)}"
    if data.split is None:
        has_mono = all(data.mono.get(code) for code in codes)
        if not data.dev and not data.train and not (recipe.rounds.count and has_mono):
            yield "data.dev: missing; needed for scores (or data.mono of both languages, and rounds)"
        if not data.train and not recipe.rounds.count:
            yield "data.train: missing, and rounds.count is 0, so there is nothing to train on"
        for code in codes:
            if recipe.rounds.count and not data.mono.get(code):
                yield f"data.mono: no '{code}'; the rounds need text of both languages, or set rounds.count = 0"
            if recipe.train.pretrain_lines and not data.mono.get(code):
                yield f"train.pretrain_lines: reads text of both languages, and data.mono has no '{code}'"
    if data.filter.max_words is not None and data.filter.max_words < data.filter.min_words:
        yield f"data.filter.max_words: {data.filter.max_words} is below min_words {data.filter.min_words}"
    for key, source, num_languages in recipe.sources():
        yield from (f"{key}: {problem}" for problem in _source_problems(source, num_languages))


def _split_problems(recipe: Recipe) -> Iterator[str]:
    data, split = recipe.data, recipe.data.split
    if split is None:
        return
    if not split.corpus:
        yield "data.split.corpus: no source given"
    if not split.train and not recipe.rounds.count:
        yield "data.split.train: 0 pairs and 0 rounds train nothing"
    for key in ("train", "mono"):
        if getattr(data, key):
            yield f"data.split: excludes data.{key}; the split makes this part from one corpus; leave it out"
    for key in ("dev", "test"):
        if getattr(split, key) and getattr(data, key):
            yield f"data.split: excludes data.{key} unless data.split.{key} is 0; leave one out"
    if not split.dev and not data.dev:
        yield "data.split.dev: 0, and there is no data.dev; needed for scores"


def _source_problems(source: TextSource, num_languages: int) -> Iterator[str]:
    paths = list(source.paths)
    is_dataset = len(paths) == 1 and paths[0].startswith("hf:")
    if len(paths) == 2 and num_languages == 1:
        yield f"two files {paths} where one language is wanted; name each by itself"
    if len(paths) == 2 and any(path.startswith("hf:") for path in paths):
        yield f"two files {paths} cannot be data sets; name one hf:DATASET"
    if source.columns is not None and len(source.columns) != num_languages:
        yield f"columns {list(source.columns)}: {num_languages} wanted, one for each language"
    if source.format == "datasets" and not is_dataset:
        yield "format 'datasets': the path must be hf:DATASET"
    ending = str(source.path).removesuffix(".gz").rpartition(".")[2].lower()
    kind = ending if source.format == "auto" else source.format
    if source.columns is not None and not is_dataset and kind not in TABLE_ENDINGS:
        yield f"columns: only tables have columns, and {source.path} is not one; leave them out"


def _train_problems(recipe: Recipe) -> Iterator[str]:
    train, num_rounds = recipe.train, recipe.rounds.count
    epochs = max(train.parallel_epochs, train.final_epochs)
    if not (num_rounds or epochs or train.pretrain_lines):
        yield "rounds.count: 0 rounds and 0 train.parallel_epochs train nothing"
    if train.max_length > (limit := train.max_tokens_per_microbatch):
        yield f"train.max_length: {train.max_length} does not fit into train.max_tokens_per_microbatch {limit}"
    if train.final_epochs and not _has_pairs(recipe):
        yield "train.final_epochs: there are no parallel pairs to train on; leave it out"
    if num_rounds == 1 and recipe.rounds.replay_examples:
        yield "rounds.replay_examples: there are no earlier rounds with rounds.count = 1; leave it out"


def choice_problems(recipe: Recipe, *, has_dev: bool) -> Iterator[str]:
    """Yield a problem for each key that does nothing with dev pairs, or without them, where stages are chosen."""
    train, num_rounds, generate = recipe.train, recipe.rounds.count, recipe.generate
    # Epochs end by the loss on dev pairs, rounds by the score of their stage.
    epochs = max(train.parallel_epochs, train.final_epochs) if has_dev and _has_pairs(recipe) else 0
    if train.patience >= max(num_rounds, epochs, 1):
        stages = f"parallel_epochs = {train.parallel_epochs}, final_epochs = {train.final_epochs}"
        stages += f" or rounds.count = {num_rounds}"
        yield f"train.patience: {train.patience} cannot end {stages} early; lower it, or leave it out"
    if recipe.evaluation.control and not has_dev:
        yield "evaluation.control: is chosen by dev pairs, and there are none; set data.dev, or leave it out"
    # Without dev pairs the quality of a direction is unknown, and `auto` stays greedy.
    samples = has_dev if generate.temperature == "auto" else generate.temperature > 0
    why = "without dev pairs, where 'auto' is greedy" if generate.temperature == "auto" else "at temperature 0"
    if not samples and generate.top_p < 1:
        yield f"generate.top_p: has no effect {why}; set generate.temperature"
    if not samples and generate.num_candidates > 1:
        yield f"generate.num_candidates: all candidates are the same {why}; set generate.temperature"


def _has_pairs(recipe: Recipe) -> bool:
    return bool(recipe.data.train if recipe.data.split is None else recipe.data.split.train)


def _evaluation_problems(recipe: Recipe) -> Iterator[str]:
    if not recipe.evaluation.control:
        return
    if not recipe.rounds.count:
        yield "evaluation.control: there are no rounds to compare with; set rounds.count, or leave it out"
    if not _has_pairs(recipe):
        pairs = "data.train" if recipe.data.split is None else "data.split.train"
        yield f"evaluation.control: there are no parallel pairs to train on; set {pairs}, or leave it out"


def _generate_problems(recipe: Recipe) -> Iterator[str]:
    generate = recipe.generate
    if "candidate_selection" in generate.model_fields_set and generate.num_candidates == 1:
        yield "generate.candidate_selection: has no effect with one candidate; set generate.num_candidates"
    if generate.engine != "native" and generate.cuda_graphs:
        yield "generate.cuda_graphs: only the engine 'native' has them; set it to false"


def _model_problems(model: Model) -> Iterator[str]:
    if model.path is None and model.from_scratch is None:
        yield "model.path: missing; name a hub id, a folder or a .gguf file, or make one with model.from_scratch"
    if model.from_scratch is None:
        return
    if model.path is not None:
        yield "model.from_scratch: excludes model.path; leave one of them out"
    if model.revision is not None:
        yield "model.revision: belongs to a hub id; a model from scratch has none: leave it out"
    size = model.from_scratch.hidden_size
    if size % (64 if size > 64 else 2):
        heads = "the size of an attention head (a smaller size has one head, and must be even)"
        yield f"model.from_scratch.hidden_size: {size} is not a multiple of 64, {heads}"


def _adapter_problems(recipe: Recipe, adapter: Adapter, model: Model) -> Iterator[str]:
    method = f"adapter.method: '{adapter.method}'"
    quantized = model.quantize != "none"
    is_dora, subtracts = adapter.method in {"dora", "rsdora"}, adapter.method in {"pissa", "olora"}
    # One problem for each cause, and only cures that no other one of these refuses.
    if model.from_scratch is not None and adapter.method != "full":
        yield f"{method} adapts a trained model; a model from scratch needs 'full'"
        return
    if recipe.train.kl_weight and (subtracts or adapter.method == "full"):
        cure = "leave it out" if model.from_scratch is not None else "use 'lora', 'rslora' or 'dora'"
        yield f"train.kl_weight: {method} changes the base to stay close to; {cure}"
    if adapter.method == "full":
        if quantized:
            cure = "leave that out" if model.from_scratch is not None else "use 'lora'"
            yield f"{method} trains all weights, which model.quantize = '{model.quantize}' rounds; {cure}"
        return
    if subtracts and quantized:
        yield f"{method} changes the base's weights, which model.quantize fixes; use 'lora' or 'rslora'"
    elif subtracts and recipe.shared_base and not recipe.train.kl_weight:
        cure = "set model.shared = false, so that each has its own, or use 'rslora'"
        yield f"{method} takes its start out of the base, which the other direction shares; {cure}"
    if subtracts and adapter.init is not None:
        yield f"adapter.init: {method} starts from a part of the base, not from an earlier adapter; leave it out"
    if adapter.ephemeral_gpu_offload and quantized:
        yield "adapter.ephemeral_gpu_offload: a quantized base is never in host memory; leave it out"
    elif adapter.ephemeral_gpu_offload and not is_dora:
        yield "adapter.ephemeral_gpu_offload: has an effect on DoRA only; use method 'dora', or leave it out"
    if is_dora and model.quantize == "8bit":
        yield f"{method} reads the weights of the base, which 8 bits do not give back; use model.quantize = '4bit'"
    if "lm_head" in str(adapter.targets):
        if quantized:
            yield "adapter.targets: lm_head is not quantized with the rest; leave it out"
        if model.use_liger_kernel:
            yield "adapter.targets: Liger's loss reads lm_head without its adapter; leave lm_head out"
