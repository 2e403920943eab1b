"""The manifest of a run: what is read back, and what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from roundtrip.backtranslation.run_folder import FORMAT, RunFolder, RunManifest, create, with_model_folders
from roundtrip.recipe.loader import load_recipe
from roundtrip.recipe.schema import FromScratch
from roundtrip.runtime import integrity
from roundtrip.runtime.errors import RunError
from roundtrip.runtime.integrity import file_hashes
from tests.conftest import WriteRecipe
from tests.runs import change_json

MANIFEST = RunManifest(
    recipe={"seed": 3},
    folder="/recipes",
    overrides=["seed=3"],
    versions={"torch": "2.0"},
    base_hashes={"en-es": "ab", "es-en": "ab"},
    base_locations={"en-es": "/model", "es-en": "/model"},
    tokenizer_hashes={"en-es": None, "es-en": "cd"},
    expansions={"en-es": 1.25, "es-en": 1.0},
)


def test_a_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_manifest(MANIFEST)
    assert run.manifest() == MANIFEST


def test_a_manifest_is_read_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "_SETTLED_NS", 0)
    run, calls, read = RunFolder(tmp_path), [], integrity.read_hashed_json
    monkeypatch.setattr(integrity, "read_hashed_json", lambda path: calls.append(path) or read(path))
    run.write_manifest(MANIFEST)
    assert run.manifest() == run.manifest() == MANIFEST and len(calls) == 1
    time.sleep(0.02)
    change_json(tmp_path / "run.json", folder="/others")
    assert run.manifest().folder == "/others" and len(calls) == 2
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunError, match="not a run folder"):
        run.manifest()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"format": FORMAT - 1}, f"has format {FORMAT - 1}, this version reads {FORMAT}"),
        ({"format": None}, f"has format None, this version reads {FORMAT}"),
        ({"recipe": None, "folder": None}, "damaged: recipe: Field required"),
        ({"tokens_rows": {}}, "damaged: tokens_rows: Unexpected"),
        ({"recipe": []}, "damaged: recipe: "),
        ({"overrides": "seed=3"}, "damaged: overrides: "),
        ({"versions": {"torch": 2.0}}, r"damaged: versions\.torch: "),
        ({"lines": {"dev": {"kept": "3"}}}, r"damaged: lines\.dev\.kept: "),
        ({"expansions": {"en-es": -1.0}}, r"damaged: expansions\.en-es: "),
        ({"dtypes": {"en-es": "gloat32"}}, r"damaged: dtypes\.en-es: "),
        ({"expansions": {"en-es": 10**400}}, r"damaged: expansions\.en-es: "),
        ({"segments": {"en-es": {"head": 3}}}, r"damaged: segments\.en-es\."),
        ({"files": {"a": 3}}, r"damaged: files\.a: "),
    ],
)
def test_a_manifest_with_other_keys_is_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    run = RunFolder(tmp_path)
    run.write_manifest(MANIFEST)
    change_json(tmp_path / "run.json", **keys)
    with pytest.raises(RunError, match=message):
        run.manifest()


def test_a_manifest_without_a_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format": FORMAT - 1}))
    with pytest.raises(RunError, match=r"run\.json has no sha256, so it was not written by this version"):
        RunFolder(tmp_path).manifest()


def test_files_that_changed_are_named_and_new_ones_too(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_manifest(MANIFEST)
    folder = run.adapters / "best" / "en-es"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text("{}")
    run.metrics.write_text("{}")
    assert run.results() == {}, "what was not recorded is not there yet"
    run.record(file_hashes(folder, tmp_path) | file_hashes(run.metrics, tmp_path))
    run.check_files(folder, run.metrics, run.base)
    assert run.manifest().has_results
    (folder / "a.json").write_text("[]")
    with pytest.raises(RunError, match=r"is damaged: adapters/best/en-es/a\.json has been changed"):
        run.check_files(folder)
    run.metrics.unlink()
    with pytest.raises(RunError, match=r"is damaged: metrics\.json is missing"):
        run.results()
    run.record({})
    assert list(run.manifest().files) == ["adapters/best/en-es/a.json"] and run.results() == {}


@pytest.mark.parametrize("name", ["\udcff", "\x1b[31m"])
def test_a_path_that_json_cannot_hold_is_refused(write_recipe: WriteRecipe, tmp_path: Path, name: str) -> None:
    recipe = load_recipe(str(write_recipe()))
    with pytest.raises(RunError, match="has control characters, or bytes that are not UTF-8"):
        create(tmp_path / name, recipe)
    assert not (tmp_path / name).exists()


def test_a_recipe_of_another_version_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_manifest(MANIFEST)
    change_json(tmp_path / "run.json", versions={"roundtrip": "0.0.1"})
    with pytest.raises(RunError, match=r"its recipe was written by roundtrip 0\.0\.1"):
        run.recipe()


def test_other_models_and_tokenizers_are_refused() -> None:
    MANIFEST.check_loaded("base model", {"en-es": "ab", "es-en": "ab"})
    MANIFEST.check_loaded("tokenizer", {"en-es": None})
    with pytest.raises(RunError, match="base model of es-en .* its content differs"):
        MANIFEST.check_loaded("base model", {"en-es": "ab", "es-en": "xy"})
    with pytest.raises(RunError, match="tokenizer of en-es"):
        MANIFEST.check_loaded("tokenizer", {"en-es": "xy"})


def test_models_from_scratch_lie_in_the_run_folder(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(str(write_recipe())).recipe
    assert with_model_folders(recipe, tmp_path) == recipe
    models = {"en-es": recipe.model["en-es"].model_copy(update={"path": None, "from_scratch": FromScratch()})}
    placed = with_model_folders(recipe.model_copy(update={"model": models}), tmp_path, {"en-es": "bfloat16"})
    assert placed.model["en-es"].path == str(tmp_path / "en-es") and placed.model["en-es"].dtype == "bfloat16"
