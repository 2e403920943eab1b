"""A corpus that is split, beside dev or test files of one's own."""

from __future__ import annotations

from pathlib import Path

from roundtrip.data.corpora import prepare
from roundtrip.recipe.loader import load_recipe
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
