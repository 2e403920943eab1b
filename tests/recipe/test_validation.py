"""Combinations of keys that are impossible or have no effect are named."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from roundtrip.recipe import loader
from roundtrip.recipe.schema import Adapter
from roundtrip.runtime.errors import RecipeError
from tests.conftest import WriteRecipe

SPLIT = '[data.split]\ncorpus = { path = "toy.tsv" }\ntrain = 32\ndev = 12\ntest = 12'


def problems(write_recipe: WriteRecipe, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        loader.load_recipe(str(write_recipe()), overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("rounds.count=0", "train.parallel_epochs=0"), "rounds.count: 0 rounds and 0 train.parallel_epochs"),
        (("rounds.replay_examples=5",), "rounds.replay_examples: there are no earlier rounds"),
        (("rounds.count=2", "train.parallel_epochs=2", "train.patience=2"), "train.patience: 2 cannot end"),
        (("train.patience=1",), "cannot end parallel_epochs = 1, final_epochs = 0 or rounds.count = 1 early; lower it"),
        (("data.split.train=0", "train.parallel_epochs=9", "train.patience=1"), "train.patience: 1 cannot end"),
        (("train.max_length=4096",), "train.max_length: 4096 does not fit into train.max_tokens_per_microbatch 2048"),
        (("generate.temperature=0.0", "generate.num_candidates=3"), "generate.num_candidates: all candidates are the"),
        (("generate.temperature=0.0", "generate.top_p=0.9"), "generate.top_p: has no effect at temperature 0"),
        (("generate.candidate_selection=all",), "generate.candidate_selection: has no effect with one candidate"),
        (("generate.engine=transformers", "generate.cuda_graphs=true"), "generate.cuda_graphs: only the engine"),
        (("languages=['en', 'zh_Hant']",), "languages: 'zh_Hant' is not a language code; use 'zh-Hant'"),
        (("languages=['en', 'pt_BR']",), "languages: 'pt_BR' is not a language code; use 'pt-BR'"),
        (("languages=['en', 'sr@latin']",), "languages: 'sr@latin' is not a language code; use 'sr-Latn'"),
        (("languages=['en', 'zh-CHT']",), "languages: 'zh-CHT' is not a language code; use 'zh-Hant'"),
        (("languages=['zh-CN', 'zh-Hans']",), "languages: 'zh-CN' and 'zh-Hans' are the same language; name two"),
        (("languages=['en', 'spa_Latn']",), "languages: 'spa_Latn' is not a language code; use 'spa-Latn' or 'es'"),
        (("languages=['no', 'nb']",), "languages: 'no' and 'nb' are the same language; name two"),
        (("languages=['zh', 'cmn-Hans']",), "languages: 'zh' and 'cmn-Hans' are the same language; name two"),
        (
            ("languages=['en', 'qaa']",),
            "template.names: no English name of 'qaa' is known, which prompts have; add qaa = \"NAME\"",
        ),
        (("template.names.de='German'",), "template.names.de: not one of the languages en, es"),
        (("data.split.train=0", "train.final_epochs=1"), "train.final_epochs: there are no parallel pairs"),
        (("data.split.train=0", "rounds.count=0"), "data.split.train: 0 pairs and 0 rounds train nothing"),
        (("data.split.dev=0",), "data.split.dev: 0, and there is no data.dev"),
        (("evaluation.control=true", "rounds.count=0"), "evaluation.control: there are no rounds to compare with; set"),
        (("evaluation.control=true", "data.split.train=0"), "no parallel pairs to train on; set data.split.train, or"),
        (("data.split.corpus=[]",), "data.split.corpus: no source given"),
        (("data.dev='toy.tsv'",), "data.split: excludes data.dev unless data.split.dev is 0"),
        (("data.mono={en='toy.tsv'}",), "data.split: excludes data.mono"),
        (("data.filter.min_words=5", "data.filter.max_words=2"), "data.filter.max_words: 2 is below min_words 5"),
    ],
)
def test_problems_of_data_and_training_are_named(
    overrides: tuple[str, ...], problem: str, write_recipe: WriteRecipe
) -> None:
    assert problem in problems(write_recipe, *overrides)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("train.kl_weight=0.1", "adapter.method=pissa", "model.shared=false"), "train.kl_weight: adapter.method"),
        (("adapter.method=pissa",), "adapter.method: 'pissa' takes its start out of the base"),
        (("adapter.method=pissa", "model.shared=false", "adapter.init='x'"), "adapter.init: adapter.method: 'pissa'"),
        (("adapter.method=full", "model.quantize=4bit"), "adapter.method: 'full' trains all weights"),
        (("adapter.method=full",), "adapter.rank: has no effect where all weights are trained"),
        (("adapter.method=dora", "model.quantize=8bit"), "adapter.method: 'dora' reads the weights of the base"),
        (("adapter.ephemeral_gpu_offload=true",), "adapter.ephemeral_gpu_offload: has an effect on DoRA only"),
        (("adapter.targets=['lm_head']", "model.quantize=4bit"), "adapter.targets: lm_head is not quantized"),
        (("adapter.targets=['lm_head']", "model.use_liger_kernel=true"), "adapter.targets: Liger's loss"),
        (("model.from_scratch.vocab_size=420",), "model.from_scratch: excludes model.path; leave one of them out"),
        (("model.from_scratch={}", "model.revision=main"), "model.revision: belongs to a hub id"),
        (("model.from_scratch={}",), "adapter.method: 'lora' adapts a trained model; a model from scratch needs"),
        (("adapter.en-es.method=full", "adapter.en-es.rank=2"), "adapter.en-es.rank: has no effect where all weights"),
        (("adapter.init=nowhere",), "adapter.en-es.init: "),
    ],
)
def test_problems_of_model_and_adapter_are_named(
    overrides: tuple[str, ...], problem: str, write_recipe: WriteRecipe
) -> None:
    text = problems(write_recipe, *overrides)
    assert text.count(problem) == 1, "once, though both directions have it"


METHODS = get_args(Adapter.model_fields["method"].annotation)


@pytest.mark.parametrize("kl_weight", [0, 0.1])
@pytest.mark.parametrize("scratch", [False, True])
@pytest.mark.parametrize("quantize", ["none", "8bit", "4bit"])
@pytest.mark.parametrize("shared", ["true", "false"])
@pytest.mark.parametrize("method", METHODS)
def test_every_cure_of_an_adapter_is_one_that_helps(
    write_recipe: WriteRecipe, method: str, shared: str, quantize: str, scratch: bool, kl_weight: float
) -> None:
    """Of the problems of a combination, what the cure of one names is refused by none of the others."""
    overrides = [f"model.quantize={quantize}", f"model.shared={shared}", f"train.kl_weight={kl_weight}"]
    path = write_recipe(("rank = 4\ndropout = 0.1", f'method = "{method}"'))
    if scratch:
        line = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("path = "))
        path = write_recipe(("rank = 4\ndropout = 0.1", f'method = "{method}"'), (line, "from_scratch = {}"))
    try:
        loader.load_recipe(str(path), overrides)
    except RecipeError as error:
        shown = str(error).splitlines()[1:]
        cures = [set(re.findall("'([a-z]+)'", line.rpartition(";")[2])) & set(METHODS) for line in shown]
        named = set.intersection(*filter(None, cures)) if any(cures) else set()
        assert named or not any(cures), shown
        for name in named:
            text = path.read_text(encoding="utf-8").replace(f'method = "{method}"', f'method = "{name}"')
            path.with_name("cured.toml").write_text(text, encoding="utf-8")
            # What is left has another cure than the method, and was among the problems or follows from `full`.
            try:
                loader.load_recipe(str(path.with_name("cured.toml")), overrides)
            except RecipeError as left:
                assert scratch and ("leave" in str(left)), left


def test_a_missing_model_is_named(write_recipe: WriteRecipe) -> None:
    text = write_recipe().read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("path = "))
    with pytest.raises(RecipeError) as caught:
        loader.load_recipe(str(write_recipe((line, ""))))
    assert str(caught.value).count("model.path: missing; name a hub id") == 1


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ('kind = "plain"\nprompt = "{source}"', "template.prompt: needs {target} exactly once"),
        ('kind = "plain"\nprompt = "{sorce}{source}{target}"', "unknown field {sorce}; did you mean 'source'?"),
        ('kind = "plain"\nprompt = "{source}{target}!"', "template.prompt: must end with {target}"),
        ('kind = "plain"\nsystem = "x"', "template.system: has no effect with template.kind = 'plain'"),
        ('kind = "chat"\nprompt = "{source}{target}"', "template.prompt: unknown field {target}"),
        ('kind = "chat"\nprompt = "x"', "template.prompt: needs {source} exactly once"),
        ('kind = "chat"\nsystem = "{lang}"', "template.system: unknown field {lang}"),
    ],
)
def test_problems_of_the_template_are_named(template: str, problem: str, write_recipe: WriteRecipe) -> None:
    with pytest.raises(RecipeError) as caught:
        loader.load_recipe(str(write_recipe(('kind = "plain"', template))))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ('{ path = "toy.tsv", format = "datasets" }', "format 'datasets': the path must be hf:DATASET"),
        ('{ path = "toy.tsv", format = "po", columns = [0, 1] }', "columns: only tables have columns"),
        ('{ path = "toy.tsv", columns = ["en"] }', "columns ['en']: 2 wanted"),
        ('{ path = ["hf:a/b", "toy.tsv"] }', "cannot be data sets; name one hf:DATASET"),
        ('"hf:a/b#splt=test"', "data.split.corpus: unknown option 'splt'; did you mean 'split'?"),
        ('"hf:a/b#split="', "data.split.corpus: an option is given twice or has no value: 'split='"),
        ('"hf:#split=dev"', "data.split.corpus: the name of the data set is missing"),
    ],
)
def test_problems_of_a_text_source_are_named(source: str, problem: str, write_recipe: WriteRecipe) -> None:
    with pytest.raises(RecipeError) as caught:
        loader.load_recipe(str(write_recipe(('{ path = "toy.tsv" }', source))))
    assert problem in str(caught.value)


def test_missing_parts_of_own_data_are_named(write_recipe: WriteRecipe) -> None:
    with pytest.raises(RecipeError) as caught:
        loader.load_recipe(str(write_recipe((SPLIT, "[data.mono]\nfr = 'toy.tsv'"))), ["train.pretrain_lines=9"])
    for part in (
        "data.dev: missing",
        "data.mono: no 'en'",
        "data.mono: no 'es'",
        "data.mono.fr: not one of",
        "train.pretrain_lines: reads text of both languages, and data.mono has no 'es'",
    ):
        assert part in str(caught.value)


def test_a_moses_pair_is_not_monolingual_text(write_recipe: WriteRecipe) -> None:
    own = "[data]\ndev='toy.tsv'\ntest='toy.tsv'\nmono={en={path=['toy.tsv','toy.tsv']},es='toy.tsv'}"
    with pytest.raises(RecipeError, match="two files .* where one language is wanted"):
        loader.load_recipe(str(write_recipe((SPLIT, own))))


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("train.parallel_epochs=3", "train.patience=1"), "train.patience: 1 cannot end"),
        (("rounds.count=0",), "data.dev: missing"),
        (("evaluation.control=true",), "evaluation.control: is chosen by dev pairs, and there are none; set data.dev"),
        (("evaluation.control=true",), "no parallel pairs to train on; set data.train, or leave it"),
        (("generate.num_candidates=4",), "all candidates are the same without dev pairs, where 'auto' is greedy"),
    ],
)
def test_what_needs_dev_pairs_is_refused_without(
    overrides: tuple[str, ...], problem: str, write_recipe: WriteRecipe
) -> None:
    own = "[data]\ntest='toy.tsv'\nmono={en='toy.tsv',es='toy.tsv'}"
    path = write_recipe((SPLIT, own))
    loader.load_recipe(str(path))
    with pytest.raises(RecipeError) as caught:
        loader.load_recipe(str(path), overrides)
    assert problem in str(caught.value)
    if problem != "data.dev: missing" and "no parallel pairs" not in problem:
        # Dev pairs may be held out of those to train on.
        loader.load_recipe(str(path), ["data.train='toy.tsv'", *overrides])


@pytest.mark.parametrize("name", ["software-strings", "own-bases", "quickstart"])
def test_a_shipped_recipe_is_compared_with_pairs_only_by_one_key(name: str) -> None:
    """The first is what the README recommends; with the second, keys of the rounds have no effect, as is meant."""
    assert loader.load_recipe(name, ["evaluation.control=true"]).recipe.evaluation.control
    assert loader.load_recipe(name, ["rounds.count=0"]).recipe.rounds.count == 0
