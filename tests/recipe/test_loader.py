"""Valid recipes load; for others one error names everything that is wrong."""

from __future__ import annotations

import time
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from roundtrip.recipe import loader
from roundtrip.recipe.renamed import RENAMED
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime.errors import RecipeError, RoundtripError
from tests import ROOT
from tests.conftest import WriteRecipe
from tests.tools import attack_inputs
from tests.tools.recipe_reference import sections

SHIPPED = sorted(path.stem for path in (ROOT / "recipes").glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_sound_or_lacks_only_its_text(name: str) -> None:
    if name in {"own-data", "gpu"} or name.startswith("multi30k"):
        with pytest.raises(RecipeError) as caught:
            loader.load_recipe(name)
        problems = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
        assert problems and all("no such file" in line or "nothing matches" in line for line in problems)
    else:
        loaded = loader.load_recipe(name)
        assert loaded.recipe.languages == ("en", name[-2:] if name[-3:] in {"-fr", "-de"} else "es")
        assert loaded.path == ROOT / "recipes" / f"{name}.toml"


def test_a_recipe_cannot_be_changed(write_recipe: WriteRecipe) -> None:
    recipe = loader.load_recipe(str(write_recipe())).recipe
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.lr = 1.0  # type: ignore[misc]


def test_all_problems_come_at_once(write_recipe: WriteRecipe) -> None:
    path = write_recipe(
        ("lr = 5e-3", 'lrr = 5e-3\nweight_decay = "zigzag"'),
        ("rank = 4", 'rank = "four"'),
        ('path = "toy.tsv"', 'path = "tay.tsv"'),
        ('languages = ["en", "es"]', 'languages = ["en", "en"]'),
    )
    with pytest.raises(RecipeError) as caught:
        loader.load_recipe(str(path))
    text = str(caught.value)
    assert text.startswith(f"{path}: 5 problems")
    for part in (
        "train.lrr: unknown key; did you mean 'lr'?",
        "train.weight_decay: 'zigzag'",
        "adapter.rank: 'four'",
        "data.split.corpus: no such file: 'tay.tsv'; did you mean 'toy.tsv'?",
        "'en' and 'en' are the same language",
    ):
        assert part in text, text


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('languages = ["en", "es"]', 'languages = ["en", "xq-1"]', "languages: 'xq-1' is not a language code"),
        ('languages = ["en", "es"]', 'languages = ["en"]', "languages"),
        ('languages = ["en", "es"]', 'languages = ["es", "spa"]', "are the same language"),
        ("seed = 3", "seed = 3\nsead = 4", "sead: unknown key; did you mean 'seed'?"),
        ("seed = 3", "seed = true", "seed: True"),
        ("seed = 3", "seed = -1", "seed: -1"),
        ("dropout = 0.1", "dropout = 1.5", "adapter.dropout: 1.5"),
        ("dropout = 0.1", "[adapter.'en-es']\nrnak = 1", "adapter.en-es.rnak: unknown key; did you mean 'rank'?"),
        ("dropout = 0.1", "en-es = 1", 'adapter.en-es: 1: a table wanted, [adapter."en-es"]'),
        ("dropout = 0.1", "en-se = {}", "adapter.en-se: unknown key; did you mean 'e"),
        ("dropout = 0.1", "[adapter.'en-es']\nrank = 0", "adapter.en-es.rank: 0: "),
        ("rank = 4", "rank = 0", "1 problem in this recipe\n  - adapter.rank: 0: "),
        ('languages = ["en", "es"]', "", "1 problem in this recipe\n  - languages: missing"),
        ("lr = 5e-3", "lr = nan", "train.lr"),
        ("lr = 5e-3", 'lr = "5e-3"', "train.lr: '5e-3'"),
        ("count = 1", "count = 0\n[x]", "x: unknown key"),
        ('[model]\npath = "', '[model]\npath = "./nope.gguf" #', "model.path: no such file: './nope.gguf'"),
        (
            "[checkpoint]",
            "[evaluation]\nbleu_tokenize = 1\n[checkpoint]",
            "evaluation.bleu_tokenize: unknown key",
        ),
        ('{ path = "toy.tsv" }', '"pypi:Django==5.2.19/x.po"', "data.split.corpus: the sha256"),
        ('{ path = "toy.tsv" }', '{ path = "toy.tsv", colums = ["en"] }', "did you mean 'columns'?"),
    ],
)
def test_each_problem_names_key_value_and_cure(write_recipe: WriteRecipe, old: str, new: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loader.load_recipe(str(write_recipe((old, new))))
    assert problem in str(caught.value)


def unknown_key(write_recipe: WriteRecipe, key: str) -> str:
    """Return what is wrong with a key that no recipe has any more."""
    section, _, name = key.rpartition(".")
    text = write_recipe().read_text(encoding="utf-8")
    path = write_recipe()
    if section and f"[{section}]\n" not in text:
        path.write_text(f"{text}\n[{section}]\n{name} = 1\n", encoding="utf-8")
    elif section:
        path.write_text(text.replace(f"[{section}]\n", f"[{section}]\n{name} = 1\n"), encoding="utf-8")
    else:
        path.write_text(f"{name} = 1\n{text}", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        loader.load_recipe(str(path))
    (line,) = [line for line in str(caught.value).splitlines() if line.startswith(f"  - {key}: ")]
    return line.removeprefix(f"  - {key}: ")


@pytest.mark.parametrize("key", RENAMED)
def test_a_renamed_key_gets_a_did_you_mean(write_recipe: WriteRecipe, key: str) -> None:
    assert unknown_key(write_recipe, key) == f"unknown key; did you mean '{RENAMED[key]}'?"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.from_scratch.vocabulary", "vocab_size"),
        ("model.from_scratch.layers", "num_layers"),
        ("adapter.loraplus_ratio", "loraplus_lr_ratio"),
        ("train.tokens_per_forward", "max_tokens_per_microbatch"),
        ("train.text_lines", "pretrain_lines"),
        ("train.parallel_passes", "parallel_epochs"),
        ("train.final_passes", "final_epochs"),
        ("generate.length_ratio", "max_length_ratio"),
        ("generate.tokens_per_batch", "max_tokens_per_batch"),
        ("tokens.road", "mode"),
        ("filter.max_ratio", "max_length_ratio"),
        ("filter.min_round_trip", "min_round_trip_chrf"),
    ],
)
def test_a_key_with_a_similar_new_name_gets_a_did_you_mean(write_recipe: WriteRecipe, key: str, name: str) -> None:
    assert unknown_key(write_recipe, key) == f"unknown key; did you mean '{name}'?"


def test_every_renamed_key_has_a_name_that_exists() -> None:
    keys = {f"{name}.{key}".lstrip(".") for name, section in sections() for key in section.model_fields}
    assert set(RENAMED.values()) <= keys
    assert not keys & RENAMED.keys()


def test_equal_languages_with_a_table_for_a_direction(write_recipe: WriteRecipe) -> None:
    path = write_recipe(('"en", "es"', '"en", "en"'), ("dropout = 0.1", "[adapter.'en-es']\nrank = 1"))
    with pytest.raises(RecipeError, match="languages: two different language codes wanted"):
        loader.load_recipe(str(path))


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
        loader.load_recipe(str(path))


def test_overrides_are_toml_values_and_are_kept(write_recipe: WriteRecipe) -> None:
    overrides = [
        "train.lr=1e-4",
        "model.dtype=bfloat16",
        'adapter.targets=["q_proj"]',
        "data.filter.min_words=2",
    ]
    loaded = loader.load_recipe(str(write_recipe()), overrides)
    assert loaded.recipe.train.lr == 1e-4
    assert loaded.recipe.model["en-es"].dtype == "bfloat16"
    assert loaded.recipe.adapter["es-en"].targets == ("q_proj",)
    assert loaded.recipe.data.filter.min_words == 2
    assert loaded.overrides == tuple(overrides)


@pytest.mark.parametrize("override", ["train.lr", "=3", "seed.x=1", "train..lr=1"])
def test_bad_overrides(write_recipe: WriteRecipe, override: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        loader.load_recipe(str(write_recipe()), [override])


def test_the_shipped_recipe_survives_its_own_dump() -> None:
    recipe = loader.load_recipe("quickstart").recipe
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
    "template.prompt",
    "data.mono",
    "filter.language.es",
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
        pytest.fail(f"validation raised {error}")
    assert (recipe is None) == bool(problems)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("a." * 2000 + "b=1", "nested more than 32 deep"),
        ("train.lr=" + "[" * 100 + "]" * 100, "nested more than 32 deep"),
        ("train.lr=" + "[" * 10_000 + "]" * 10_000, "a valid number"),
        ("seed=" + "9" * 400, "a number of 1329 bits"),
        ("seed=-" + "9" * 20, "a number of 67 bits"),
        ("seed=0x" + "f" * 9000, "a number of 36000 bits"),
        ("train.lr=" + "9" * 5000, "a valid number"),
        ("train.lr=inf", "a finite number"),
        ("train.lr=nan", "a finite number"),
        ("model.path='\ud800'", "bytes that are not UTF-8"),
        ("\ud800=1", "bytes that are not UTF-8"),
        ("model.path='" + "a" * 300_000 + "'", "more than 262,144 characters"),
    ],
)
def test_a_value_beyond_the_limits_is_refused(override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        loader.load_recipe("quickstart", [override])
    assert len(str(caught.value)) < 13_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a=" + b"[" * 10_000 + b"]" * 10_000, "not a readable TOML file"),
        (b"[" + b".".join([b"a"] * 500) + b"]", "nested more than 32 deep"),
        (b"#" * (1 << 24), "more than 262,144 bytes"),
        (b"a='\xff'", "not a readable TOML file"),
    ],
)
def test_a_file_beyond_the_limits_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=words):
        loader.load_recipe(str(path))


@pytest.mark.parametrize("name", ["\0", "a" * 5000, "a/" * 3000, "~nobody-of-this-name/x", "\ud800.toml", "/"])
def test_any_name_of_a_recipe_is_refused_with_an_error(name: str) -> None:
    with pytest.raises(RecipeError):
        loader.load_recipe(name)


def test_hostile_recipes_are_accepted_or_refused(tmp_path: Path) -> None:
    valid = loader.find("quickstart").read_text()
    for name, content, overrides in attack_inputs.hostile_recipes(7, 60, valid):
        (tmp_path / "a.toml").write_bytes(content)
        start = time.monotonic()
        with suppress(RecipeError):
            loader.load_recipe(str(tmp_path / "a.toml"), overrides)
        assert time.monotonic() - start < 10, name
