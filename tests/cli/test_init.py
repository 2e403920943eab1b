"""`roundtrip init`: what files of each kind become, and that the recipe is valid."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roundtrip.cli import init
from roundtrip.recipe.loader import load_recipe
from tests.conftest import toy_pairs

PAIRS = toy_pairs()[:120]


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def make(folder: Path, kind: str) -> None:
    """Write the pairs in a format."""
    if kind in ("lines", "gz"):
        for side, code in enumerate(("en", "es")):
            write(folder / f"train.{code}{'.gz' if kind == 'gz' else ''}", [pair[side] for pair in PAIRS])
    elif kind == "tsv":
        write(folder / "my pairs.txt", ["\t".join(pair) for pair in PAIRS])
    elif kind == "jsonl":
        write(folder / "pairs.jsonl", [json.dumps({"en": en, "es": es}) for en, es in PAIRS])
    elif kind == "po":
        entries = [f'msgid "{en}"\nmsgstr "{es}"\n' for en, es in PAIRS]
        write(folder / "es" / "app.po", ['msgid ""\nmsgstr "Language: es\\n"\n', *entries])
    elif kind == "tmx":
        units = [
            f'<tu><tuv xml:lang="en"><seg>{en}</seg></tuv><tuv xml:lang="es"><seg>{es}</seg></tuv></tu>'
            for en, es in PAIRS
        ]
        write(folder / "memory.tmx", ['<tmx version="1.4"><header srclang="en"/><body>', *units, "</body></tmx>"])


@pytest.mark.parametrize("kind", ["lines", "gz", "tsv", "jsonl", "po", "tmx"])
def test_every_format_becomes_a_valid_recipe(kind: str, tmp_path: Path, shell: Callable[..., Any]) -> None:
    make(tmp_path / "text", kind)
    code, output, errors = shell(init, "text", "--languages", "en,es", "--model", "org/some-instruct")
    assert code == 0, errors
    assert "120 pairs" in output
    recipe = load_recipe(str(tmp_path / "own.toml")).recipe
    assert recipe.languages == ("en", "es") and len(recipe.data.train) == 1 and recipe.rounds.count == 0
    code, _, errors = shell(init, "text", "--languages", "en,es")
    assert code == 2 and "exists, and is not overwritten" in errors


def test_a_mixed_folder_has_rounds_and_names_what_is_not_used(tmp_path: Path, shell: Callable[..., Any]) -> None:
    make(tmp_path / "text", "lines")
    for side, code in enumerate(("en", "es")):
        write(tmp_path / "text" / f"more.{code}", [pair[side] for pair in toy_pairs()[200 : 300 + 50 * side]])
    (tmp_path / "text" / "old.txt").write_bytes(b"caf\xe9 au lait\n")
    code, output, errors = shell(init, "text", "--languages", "en,es", "--device", "cpu", "--out", "new.toml")
    assert code == 0, errors
    assert "not used: old.txt: not UTF-8" in output
    recipe = load_recipe(str(tmp_path / "new.toml")).recipe
    assert recipe.rounds.count == 2 and recipe.rounds.monolingual_lines == 100 and set(recipe.data.mono) == {"en", "es"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "no files of text"),
        (("nowhere",), "no such file or folder"),
        (("one", "--languages", "en,es"), "too little to train on"),
        (("one", "--languages", "en"), "two codes are needed"),
        (("--train", "one/a.es", "--languages", "en,es"), "holds one language"),
        (("--train", "bad.txt", "--languages", "en,es"), "not UTF-8"),
        (("one", "--out", "x.txt"), "not the name of a recipe"),
    ],
)
def test_what_cannot_become_a_recipe_is_refused(
    arguments: tuple[str, ...], problem: str, tmp_path: Path, shell: Callable[..., Any]
) -> None:
    if arguments:
        write(tmp_path / "one" / "a.es", [es for _, es in PAIRS])
        (tmp_path / "bad.txt").write_bytes(b"caf\xe9 au lait\n")
    code, _, errors = shell(init, *arguments)
    assert code == 2 and problem in errors
    assert not list(tmp_path.glob("*.toml"))
