"""Row stores, shuffled order and preparation of text: what is kept, what is dropped and why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roundtrip.data import row_store
from roundtrip.data.corpora import Corpora, describe_counts, prepare, relative_length, reopen
from roundtrip.data.sampler import Cursor, take_rows
from roundtrip.recipe import loader
from roundtrip.runtime.errors import TextError
from roundtrip.runtime.seeding import derive_seed, permuted_index
from tests.conftest import WriteRecipe, toy_pairs

SPLIT = '[data.split]\ncorpus = { path = "toy.tsv" }\ntrain = 32\ndev = 12\ntest = 12'
OWN = "[data]\ntrain='train.tsv'\ndev='dev.tsv'\ntest='test.tsv'\nmono={en='mono.en',es='mono.es'}"
CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\t\n"), max_size=20)


@given(rows=st.lists(st.tuples(CELLS, CELLS), max_size=30))
@settings(deadline=None)
def test_row_store_returns_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    written = row_store.write(tmp_path_factory.mktemp("store") / "rows.tsv", rows)
    assert len(written) == len(rows)
    assert list(written) == rows
    assert [written[i] for i in range(len(rows))] == rows
    assert written[1:3] == rows[1:3]
    if rows:
        assert written[-1] == rows[-1]
    with pytest.raises(IndexError):
        written[len(rows)]


@given(
    rows=st.lists(st.tuples(st.integers(0, 9), CELLS), max_size=60),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
)
@settings(deadline=None)
def test_write_once_drops_rows_with_known_keys(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str]], sizes: tuple[int, int, int]
) -> None:
    """With any sizes of buffers."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("_BUFFER_ITEMS", "_NUM_PARTS", "_READ_BYTES"), sizes, strict=True):
            patch.setattr(row_store, name, size)
        folder = tmp_path_factory.mktemp("store")
        store, num_dropped = row_store.write_once(folder / "rows.txt", ((2**63 + key, (text,)) for key, text in rows))
    seen: dict[int, str] = {}
    for key, text in rows:
        seen.setdefault(key, text)
    assert list(store) == [(text,) for text in seen.values()]
    assert num_dropped == len(rows) - len(seen)
    assert list(row_store.RowStore(folder / "rows.txt")) == list(store)
    assert sorted(path.name for path in folder.iterdir()) == ["rows.txt", "rows.txt.starts"]


def test_truncated_row_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    row_store.write(path, [("one",), ("two" * 400,)])
    whole, index = path.read_bytes(), path.with_name("rows.txt.starts").read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(TextError, match="rows.txt is truncated"):
        row_store.RowStore(path)
    path.write_bytes(whole)
    path.with_name("rows.txt.starts").write_bytes(index[:-3])
    with pytest.raises(TextError, match="starts is truncated"):
        row_store.RowStore(path)
    path.with_name("rows.txt.starts").unlink()
    with pytest.raises(OSError):
        row_store.RowStore(path)


def test_no_damaged_row_is_read(tmp_path: Path) -> None:
    """Of all flipped bits in text and index, while the store is open."""
    path, rows = tmp_path / "rows.txt", [("one", "uno"), ("two houses", "dos casas"), ("", ""), ("four", "más de tres")]
    store, num_refused = row_store.write(path, rows), 0
    for file in (path, path.with_name("rows.txt.starts")):
        content = file.read_bytes()
        for position in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[position // 8] ^= 1 << position % 8
            file.write_bytes(flipped)
            for index, row in enumerate(rows):
                try:
                    assert store[index] == row
                except TextError as error:
                    assert "the text of this run is damaged" in error.problem
                    num_refused += 1
        file.write_bytes(content)
    assert num_refused >= 8 * (path.stat().st_size + 8 * len(rows))
    assert list(store) == rows


@given(size=st.integers(1, 300), seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
@settings(deadline=None)
def test_permuted_index_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    assert sorted(permuted_index(i, size, seed, epoch) for i in range(size)) == list(range(size))


def test_permuted_index_depends_on_seed_and_epoch() -> None:
    orders = {tuple(permuted_index(i, 100, seed, epoch) for i in range(100)) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4
    assert tuple(range(100)) not in orders


def test_permuted_index_is_uniform() -> None:
    # Over many seeds, each row is first about equally often: 1 of 5, standard deviation 0.9 %.
    first = [permuted_index(0, 5, derive_seed("x", seed), 0) for seed in range(2000)]
    assert all(abs(first.count(row) / 2000 - 0.2) < 0.04 for row in range(5))


@given(sizes=st.lists(st.integers(0, 9), max_size=6), num_rows=st.integers(1, 11), seed=st.integers(0, 99))
@settings(deadline=None)
def test_take_rows_in_chunks_equals_taking_at_once(sizes: list[int], num_rows: int, seed: int) -> None:
    rows = list(range(num_rows))
    cursor, pieces = Cursor(), []
    for size in sizes:
        piece, cursor = take_rows(rows, cursor, size, seed)
        pieces += piece
    whole, end = take_rows(rows, Cursor(), sum(sizes), seed)
    assert pieces == whole
    assert cursor == end
    assert sorted(whole[:num_rows]) == rows[: len(whole)] or len(whole) < num_rows
    assert end.epoch * num_rows + end.index == sum(sizes)


def test_take_rows_of_nothing() -> None:
    assert take_rows([], Cursor(), 5, 1) == ([], Cursor())


def prepared(path: Path, folder: Path) -> Corpora:
    folder.mkdir(exist_ok=True)
    loaded = loader.load_recipe(str(path))
    return prepare(loaded.recipe, loaded.folder, folder, lambda text: None)


def test_split_parts_share_no_text(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    corpora = prepared(write_recipe(), tmp_path / "data")
    english = [{row[0] for row in part} for part in (corpora.train, corpora.dev, corpora.test, corpora.mono["en"])]
    spanish = [{row[1] for row in part} for part in (corpora.train, corpora.dev, corpora.test)]
    spanish.append({row[0] for row in corpora.mono["es"]})
    for parts in (english, spanish):
        assert sum(map(len, parts)) == len(set().union(*parts))
    assert [len(corpora.train), len(corpora.dev), len(corpora.test)] == [32, 12, 12]
    translation = dict(toy_pairs())
    leaked = {translation[row[0]] for row in corpora.mono["en"]} & {row[0] for row in corpora.mono["es"]}
    assert leaked == set(), "one half holds translations of lines in the other"
    assert len(corpora.mono["en"]) == len(corpora.mono["es"]) == (600 - 56) // 2


def test_split_of_a_corpus_that_is_too_small_is_refused(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"data\.split: 600 usable pairs, but the split needs 99026"):
        prepared(write_recipe(("train = 32", "train = 99000")), tmp_path / "data")


def own_data(write_recipe: WriteRecipe, tmp_path: Path, **files: str) -> Path:
    texts = {
        "train.tsv": "A cat\tUn gato\nA dog\tUn perro\nA cat\tUn gato\n\tvacío\nsame\tsame\n"
        "x\tmuy muy muy largo de verdad, mucho más\n",
        "dev.tsv": "A bird\tUn ave\n",
        "test.tsv": "A fish\tUn pez\n",
        "mono.en": "A  CAT\nA fish\nA horse\nA horse\nA bird\n\n",
        "mono.es": "Un caballo\nUn ave\nUna vaca\n",
    } | {name.replace("_", "."): text for name, text in files.items()}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return write_recipe((SPLIT, OWN))


def test_prepare_filters_and_counts(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    corpora = prepared(own_data(write_recipe, tmp_path), tmp_path / "data")
    assert list(corpora.train) == [("A cat", "Un gato"), ("A dog", "Un perro")]
    assert corpora.counts["train"] == {
        "kept": 2,
        "duplicate": 1,
        "empty": 1,
        "both sides equal": 1,
        "length ratio": 1,
    }
    # Dev and test lines are dropped from monolingual text whatever their case; a monolingual line may be in train.
    assert list(corpora.mono["en"]) == [("A  CAT",), ("A horse",)]
    assert corpora.counts["mono.en"] == {"kept": 2, "also in dev or test": 2, "duplicate": 1, "empty": 1}
    assert list(corpora.mono["es"]) == [("Un caballo",), ("Una vaca",)]


def test_train_pairs_with_one_side_in_test_are_dropped(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = own_data(write_recipe, tmp_path, train_tsv="a FISH\tEl pescado\nA dog\tUn perro\n")
    corpora = prepared(path, tmp_path / "data")
    assert list(corpora.train) == [("A dog", "Un perro")]
    assert corpora.counts["train"]["also in dev or test"] == 1


def test_given_dev_and_test_are_not_filtered(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    rows = "WhatsApp\tWhatsApp\nA fish\tUn pez\nA fish\tUn pez\nx\tmuy muy muy largo de verdad, mucho más\n\tvacío\n"
    corpora = prepared(own_data(write_recipe, tmp_path, test_tsv=rows), tmp_path / "data")
    assert len(corpora.test) == 4
    assert corpora.counts["test"] == {"kept": 4, "empty": 1}


@pytest.mark.parametrize("name", ["train.tsv", "dev.tsv", "test.tsv", "mono.en", "mono.es"])
def test_empty_file_is_refused(write_recipe: WriteRecipe, tmp_path: Path, name: str) -> None:
    path = own_data(write_recipe, tmp_path, **{name.replace(".", "_"): ""})
    part = "data." + name.removesuffix(".tsv")
    with pytest.raises(TextError, match=rf"{part}: its files have no lines"):
        prepared(path, tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "text", "dropped", "cure"),
    [
        ("train.tsv", "A fish\tUn pez\n", "1 also in dev or test", "its text is that of dev or test"),
        ("mono.en", "A fish\na bird\n", "2 also in dev or test", "its text is that of dev or test"),
        ("train.tsv", "same\tsame\nA\t\nx\tx\n", "2 both sides equal, 1 empty", "a file that is translated"),
        ("dev.tsv", "A\t\n", "1 empty", "text on both sides"),
    ],
)
def test_what_dropped_the_last_line_is_said(
    write_recipe: WriteRecipe, tmp_path: Path, name: str, text: str, dropped: str, cure: str
) -> None:
    path = own_data(write_recipe, tmp_path, **{name.replace(".", "_"): text})
    with pytest.raises(TextError, match=rf"no line is left; dropped: {dropped}\n.*{cure}"):
        prepared(path, tmp_path / "data")


@pytest.mark.parametrize(("part", "other"), [("dev", "test"), ("train", "test"), ("train", "dev")])
@pytest.mark.parametrize("how", ["same", "./same", "link", "glob"])
def test_a_file_of_two_parts_is_refused(
    write_recipe: WriteRecipe, tmp_path: Path, part: str, other: str, how: str
) -> None:
    path = own_data(write_recipe, tmp_path)
    (tmp_path / "link.tsv").symlink_to(tmp_path / f"{other}.tsv")
    name = {"same": f"{other}.tsv", "./same": f"./{other}.tsv", "link": "link.tsv", "glob": f"{other[:3]}*.tsv"}[how]
    path.write_text(path.read_text().replace(f"{part}='{part}.tsv'", f"{part}='{name}'"))
    with pytest.raises(TextError, match=rf"data\.{part}: '{re.escape(name)}' is also in data\.{other}"):
        prepared(path, tmp_path / "data")


def test_dev_pairs_that_are_those_of_test_are_refused_and_some_are_counted(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    path = own_data(write_recipe, tmp_path, dev_tsv="a FISH\tUn  pez\nA bird\tUn ave\n")
    counts = prepared(path, tmp_path / "data").counts["dev"]
    assert counts == {"kept": 2, "also in test": 1}
    assert describe_counts(counts | {"empty": 3}) == "2 lines, 1 also in test (dropped: 3 empty)"
    path = own_data(write_recipe, tmp_path, dev_tsv="a FISH\tUn  pez\n")
    with pytest.raises(TextError, match=r"data\.dev: all 1 pairs are also in data\.test"):
        prepared(path, tmp_path / "other")


def test_reopen_returns_the_prepared_text(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe()
    corpora = prepared(path, tmp_path / "data")
    again = reopen(loader.load_recipe(str(path)).recipe, tmp_path / "data", corpora.counts)
    assert [list(part) for part in (again.train, again.dev, again.test, *again.mono.values())] == [
        list(part) for part in (corpora.train, corpora.dev, corpora.test, *corpora.mono.values())
    ]


def test_relative_length_is_symmetric_and_lenient_for_short_texts() -> None:
    assert relative_length(90, 40) == relative_length(40, 90) == 2.0
    assert relative_length(2, 4) < 1.2
    assert relative_length(1, 1) == 1.0


def test_reopen_refuses_a_store_with_missing_rows(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """An index truncated between two rows is valid in itself."""
    loaded = loader.load_recipe(str(write_recipe()))
    corpora = prepare(loaded.recipe, loaded.folder, tmp_path, lambda text: None)
    reopen(loaded.recipe, tmp_path, corpora.counts)
    path = tmp_path / "mono.en.txt.starts"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(TextError, match=r"mono.en.txt has \d+ rows of \d+"):
        reopen(loaded.recipe, tmp_path, corpora.counts)
