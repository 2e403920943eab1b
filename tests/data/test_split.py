"""A corpus that is split, beside dev or test files of one's own, and dev pairs that are held out of train."""

from __future__ import annotations

from pathlib import Path

import pytest

from roundtrip.data.corpora import Corpora, prepare, reopen
from roundtrip.recipe.loader import load_recipe
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime.errors import TextError
from tests.conftest import WriteRecipe, toy_pairs


def test_a_split_keeps_given_dev_lines_out_of_training_and_depends_on_its_seed_alone(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    pairs, path = toy_pairs(), write_recipe()
    (tmp_path / "dev.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in pairs[:9]), encoding="utf-8")
    own_dev = ("data.split.dev=0", "data.dev='dev.tsv'")
    train = []
    for number, seeds in enumerate([(), ("seed=99",), ("data.split.seed=3", "seed=99"), ("data.split.seed=4",)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        recipe = load_recipe(str(path), (*own_dev, *seeds)).recipe
        corpora = prepare(recipe, path.parent, folder, lambda text: None)
        assert list(corpora.dev) == pairs[:9] and len(corpora.test) == 12 and len(corpora.train) == 32
        dev_sides = [{row[side] for row in corpora.dev} for side in (0, 1)]
        assert not any(row[side] in dev_sides[side] for row in (*corpora.train, *corpora.test) for side in (0, 1))
        assert corpora.counts["corpus"]["also in dev or test"] == 9
        train.append(list(corpora.train))
    # The recipe has seed 3.
    assert train[0] != train[1] and train[0] == train[2] and train[2] != train[3]


def small_recipe(folder: Path, write_recipe: WriteRecipe, pairs: list[tuple[str, str]], *, rounds: int = 1) -> Path:
    """Write a recipe with pairs to train on, and lines of both languages, but neither dev nor test."""
    (folder / "train.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in pairs), encoding="utf-8")
    for side, code in enumerate(("en", "es")):
        lines = [pair[side] for pair in reversed(toy_pairs())]
        (folder / f"mono.{code}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    split = '[data.split]\ncorpus = { path = "toy.tsv" }\ntrain = 32\ndev = 12\ntest = 12\n'
    own = '[data]\ntrain = "train.tsv"\nmono = { en = "mono.en", es = "mono.es" }\n'
    return write_recipe((split, own), ("count = 1", f"count = {rounds}"))


def prepared(path: Path, target: Path, *overrides: str) -> tuple[Recipe, Corpora, str]:
    target.mkdir()
    recipe, said = load_recipe(str(path), overrides).recipe, list[str]()
    corpora = prepare(recipe, path.parent, target, said.append)
    reopened = reopen(recipe, target, corpora.counts)
    assert list(reopened.dev) == list(corpora.dev) and reopened.with_dev(recipe) == corpora.with_dev(recipe)
    return corpora.with_dev(recipe), corpora, "\n".join(said)


@pytest.mark.parametrize(("number", "held_out"), [(99, 0), (100, 20), (300, 60)])
def test_dev_pairs_are_held_out_of_train_where_there_are_enough(
    write_recipe: WriteRecipe, tmp_path: Path, number: int, held_out: int
) -> None:
    pairs = list(zip(*([pair[side] for pair in toy_pairs()[:number]] for side in (0, 1)), strict=True))
    path = small_recipe(tmp_path, write_recipe, [*pairs, *pairs[:7]])
    recipe, corpora, said = prepared(path, tmp_path / "first")
    assert recipe.without_dev == (not held_out)
    assert ("of data.train are held out as dev" in said) == bool(held_out)
    assert corpora.counts["train"]["duplicate"] == 7
    if not held_out:
        return
    assert len(corpora.dev) == held_out == corpora.counts["train"]["held out as dev"]
    assert sorted([*corpora.dev, *corpora.train]) == sorted(pairs)
    for side, code in enumerate(("en", "es")):
        texts = {row[side] for row in corpora.dev}
        assert not texts & {row[side] for row in corpora.train} and not texts & {row[0] for row in corpora.mono[code]}
    # The order of the pairs and the seed of the recipe make no difference, and few more pairs little.
    path = small_recipe(tmp_path, write_recipe, [*toy_pairs()[number : number + 5], *pairs[::-1]])
    _, again, _ = prepared(path, tmp_path / "again", "seed=77")
    assert len({*again.dev} & {*corpora.dev}) >= held_out - 5


def test_a_text_that_repeats_is_not_held_out(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    repeated = [("OK", es) for _, es in toy_pairs()[:150]]
    path = small_recipe(tmp_path, write_recipe, [*repeated, *toy_pairs()[150:300]])
    _, corpora, _ = prepared(path, tmp_path / "data")
    assert len(corpora.dev) == 60 and not any(en == "OK" for en, _ in corpora.dev) and len(corpora.train) == 240


def test_pairs_alone_are_held_out_from_ten_on(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = small_recipe(tmp_path, write_recipe, toy_pairs()[:10], rounds=0)
    recipe, corpora, _ = prepared(path, tmp_path / "ten", "generate.num_candidates=1")
    assert (len(corpora.dev), len(corpora.train)) == (2, 8) and not recipe.without_dev
    path = small_recipe(tmp_path, write_recipe, toy_pairs()[:9], rounds=0)
    with pytest.raises(TextError, match="9 pairs: too few to hold out dev pairs"):
        prepared(path, tmp_path / "nine")


def test_what_needs_dev_pairs_is_refused_where_none_can_be_held_out(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = small_recipe(tmp_path, write_recipe, toy_pairs()[:30])
    with pytest.raises(TextError, match=r"30 pairs: too few(.|\n)*evaluation.control: is chosen by dev pairs"):
        prepared(path, tmp_path / "few", "evaluation.control=true")
    (tmp_path / "train.tsv").write_text("\n")
    with pytest.raises(TextError, match=r"data.train: no line is left|data.train: its files have no lines"):
        prepared(path, tmp_path / "none")
