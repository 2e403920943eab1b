"""Recipes: sound ones load, and unsound ones tell everything that is wrong in one message."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from roundtrip.recipe import loader
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime.errors import RecipeError, RoundtripError
from tests import ROOT
from tests.conftest import WriteRecipe

SHIPPED = sorted(path.stem for path in (ROOT / "recipes").glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_sound_or_lacks_only_its_text(name: str) -> None:
    if name in {"own-data", "gpu"} or name.startswith("multi30k"):
        with pytest.raises(RecipeError) as caught:
            loader.load(name)
        problems = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
        assert problems and all("no such file" in line or "nothing matches" in line for line in problems)
    else:
        loaded = loader.load(name)
        assert loaded.recipe.languages == ("en", name[-2:] if name[-3:] in {"-fr", "-de"} else "es")
        assert loaded.path == ROOT / "recipes" / f"{name}.toml"


def test_the_quickstart_shows_every_key_with_a_comment() -> None:
    text = (ROOT / "recipes" / "quickstart.toml").read_text(encoding="utf-8")

    def keys(section: type[BaseModel]) -> set[str]:
        found = set()
        for name, field in section.model_fields.items():
            inner = loader._model_in(field.annotation)
            found |= keys(inner) if inner is not None and inner.__name__ not in {"TextSource", "Data"} else {name}
        return found

    lines = text.splitlines()
    commented = set()
    for before, line in zip(["", *lines], lines, strict=False):
        found = re.match(r"#? ?(\w+) = (.*)", line)
        if found and ("#" in found.group(2) or before.startswith("#")):
            commented.add(found.group(1))
    assert keys(Recipe) - {"data"} - commented == set()


def test_a_recipe_cannot_be_changed(write_recipe: WriteRecipe) -> None:
    recipe = loader.load(str(write_recipe())).recipe
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.lr = 1.0  # type: ignore[misc]


def test_all_problems_come_at_once(write_recipe: WriteRecipe) -> None:
    path = write_recipe(
        ("lr = 5e-3", 'lrr = 5e-3\nschedule = "zigzag"'),
        ("rank = 4", 'rank = "four"'),
        ('path = "toy.tsv"', 'path = "tay.tsv"'),
        ('languages = ["en", "es"]', 'languages = ["en", "en"]'),
    )
    with pytest.raises(RecipeError) as caught:
        loader.load(str(path))
    text = str(caught.value)
    assert text.startswith(f"{path}: 5 problems")
    for part in (
        "train.lrr: unknown key; did you mean 'lr'?",
        "train.lr_schedule: 'zigzag'",
        "adapter.rank: 'four'",
        "data.split.corpus: no such file: 'tay.tsv'; did you mean toy.tsv?",
        "'en' and 'en' are the same language",
    ):
        assert part in text, text


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            'languages = ["en", "es"]',
            'languages = ["en", "xq-1"]',
            "languages: 'xq-1' is not a language code",
        ),
        ('languages = ["en", "es"]', 'languages = ["en"]', "languages"),
        ('languages = ["en", "es"]', 'languages = ["es", "spa"]', "are the same language"),
        ("seed = 3", "seed = 3\nsead = 4", "sead: unknown key; did you mean 'seed'?"),
        ("seed = 3", "seed = true", "seed: True"),
        ("seed = 3", "seed = -1", "seed: -1"),
        ("dropout = 0.1", "dropout = 1.5", "adapter.dropout: 1.5"),
        ("lr = 5e-3", "lr = nan", "train.lr"),
        ("lr = 5e-3", 'lr = "5e-3"', "train.lr: '5e-3'"),
        ("[data.split]", "[data]\nmono = {en = 'toy.tsv'}\n[data.split]", "data.split: excludes data.mono"),
        ('kind = "plain"', 'kind = "plain"\ntext = "{source}"', "template.text: needs {target} exactly once"),
        (
            'kind = "plain"',
            'kind = "plain"\ntext = "{sorce}{source}{target}"',
            "unknown field {sorce}; did you mean 'source'?",
        ),
        ('kind = "plain"', 'kind = "plain"\ntext = "{source}{target}!"', "must end with {target}"),
        ('kind = "plain"', 'kind = "plain"\nsystem = "x"', "template.system: a plain template does not use it"),
        ('kind = "plain"', 'kind = "plain"\ninstruction = "{source}"', "template.instruction: a plain template"),
        ('kind = "plain"', 'kind = "chat"\ntext = "{source}{target}"', "template.text: a chat template"),
        ('kind = "plain"', 'kind = "chat"\nsystem = "{lang}"', "template.system: unknown field {lang}"),
        ("count = 1", "count = 0\n[x]", "x: unknown key"),
        ('{ path = "toy.tsv" }', '{ path = "toy.tsv", split = "dev" }', "only a path hf:DATASET has them"),
        ('{ path = "toy.tsv" }', '{ path = "toy.tsv", format = "datasets" }', "the path must be hf:DATASET"),
        ('{ path = "toy.tsv" }', '{ path = "toy.tsv", format = "po", header = true }', "header: only tables have it"),
        ('[model]\npath = "', '[model]\npath = "./nope.gguf" #', "model.path: no such file: './nope.gguf'"),
        ('kind = "plain"', 'kind = "chat"\ninstruction = "x"', "template.instruction: needs {source}"),
        ("max_length = 96", "max_length = 4096", "train.max_length: 4096 does not fit"),
        (
            "[filter]",
            "[generate]\ntemperature = 0.0\ntop_p = 0.9\n[filter]",
            "generate.top_p: does nothing at temperature 0",
        ),
        (
            "[filter]",
            "[data.filter]\nmin_words = 5\nmax_words = 2\n[filter]",
            "data.filter.max_words: 2 is below",
        ),
        ("[evaluation]", "[evaluation]\nbleu_tokenize = {de = '13a'}", "evaluation.bleu_tokenize.de"),
        ("[evaluation]", "[evaluation]\nbleu_tokenize = {es = '13b'}", "evaluation.bleu_tokenize.es: '13b'"),
        ('{ path = "toy.tsv" }', '"pypi:Django==5.2.19/x.po"', "data.split.corpus: the sha256"),
        ('{ path = "toy.tsv" }', '{ path = "toy.tsv", columns = ["en"] }', "columns ['en']: 2 wanted"),
        ('{ path = "toy.tsv" }', '{ path = "toy.tsv", colums = ["en"] }', "did you mean 'columns'?"),
        ('{ path = "toy.tsv" }', "[]", "data.split.corpus: no source given"),
    ],
)
def test_each_problem_names_key_value_and_cure(write_recipe: WriteRecipe, old: str, new: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loader.load(str(write_recipe((old, new))))
    assert problem in str(caught.value)


def test_parts_of_own_data_that_are_missing(write_recipe: WriteRecipe) -> None:
    cut = '[data.split]\ncorpus = { path = "toy.tsv" }\ntrain = 32\ndev = 12\ntest = 12'
    with pytest.raises(RecipeError) as caught:
        loader.load(str(write_recipe((cut, "[data.mono]\nfr = 'toy.tsv'"))))
    for part in ("data.dev: nothing", "data.test: nothing", "no 'en'", "no 'es'", "data.mono.fr: not one of"):
        assert part in str(caught.value)


def test_a_moses_pair_is_no_monolingual_text(write_recipe: WriteRecipe) -> None:
    cut = '[data.split]\ncorpus = { path = "toy.tsv" }\ntrain = 32\ndev = 12\ntest = 12'
    own = "[data]\ndev='toy.tsv'\ntest='toy.tsv'\nmono={en={path=['toy.tsv','toy.tsv']},es='toy.tsv'}"
    with pytest.raises(RecipeError, match="two files .* where one language is wanted"):
        loader.load(str(write_recipe((cut, own))))


def test_no_such_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'quickstart'"):
        loader.find("quikstart")
    (tmp_path / "mine.toml").write_text("")
    with pytest.raises(RecipeError, match=r"did you mean '.*mine\.toml'"):
        loader.find(str(tmp_path / "mime.toml"))


@pytest.mark.parametrize("content", [b"languages = [", b"\xff\xfe"])
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match="not a readable TOML file"):
        loader.load(str(path))


def test_overrides_are_toml_values_and_are_kept(write_recipe: WriteRecipe) -> None:
    overrides = [
        "train.lr=1e-4",
        "model.dtype=bfloat16",
        'adapter.targets=["q_proj"]',
        "data.filter.min_words=2",
    ]
    loaded = loader.load(str(write_recipe()), overrides)
    assert loaded.recipe.train.lr == 1e-4
    assert loaded.recipe.model["en-es"].dtype == "bfloat16"
    assert loaded.recipe.adapter["es-en"].targets == ("q_proj",)
    assert loaded.recipe.data.filter.min_words == 2
    assert loaded.overrides == tuple(overrides)


@pytest.mark.parametrize("override", ["train.lr", "=3", "seed.x=1", "train..lr=1"])
def test_bad_overrides(write_recipe: WriteRecipe, override: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        loader.load(str(write_recipe()), [override])


def test_the_shipped_recipe_survives_its_own_dump() -> None:
    recipe = loader.load("quickstart").recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


PATHS = [
    f"{section}.{key}" if section else key
    for section, table in [("", tomllib.loads((ROOT / "recipes" / "quickstart.toml").read_text()))]
    for key in table
] + [
    "train.lr",
    "data.split",
    "data.split.corpus",
    "model.path",
    "template.text",
    "data.mono",
    "evaluation.bleu_tokenize.es",
]
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=5,
)


@given(st.lists(st.tuples(st.sampled_from(PATHS), VALUES), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_value_anywhere_gives_a_recipe_or_problems(changes: list[tuple[str, Any]]) -> None:
    data = tomllib.loads((ROOT / "recipes" / "quickstart.toml").read_text(encoding="utf-8"))
    for path, value in changes:
        holder = data
        *parents, last = path.split(".")
        for part in parents:
            if not isinstance(holder.get(part), dict):
                holder[part] = {}
            holder = holder[part]
        holder[last] = value
    try:
        recipe, problems = loader.validate_recipe(data, ROOT)
    except RoundtripError as error:  # pragma: no cover
        pytest.fail(f"judge raised {error}")
    assert (recipe is None) == bool(problems)
