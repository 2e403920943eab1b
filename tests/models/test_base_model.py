"""Loading a base: tokens without an embedding."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from roundtrip import load_recipe, load_translators
from roundtrip.models import attention
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.errors import ModelError
from tests.conftest import CHATML, WriteRecipe, small_tokenizer


def _folder(model_folder: Path, target: Path, token: AddedToken, **settings: Any) -> Path:
    """Return a copy of the small model whose tokenizer has a token more than there are embeddings."""
    shutil.copytree(model_folder, target)
    tokenizer = small_tokenizer()
    tokenizer.add_tokens([token], special_tokens=token.special)
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(target)
    return target


def test_a_special_token_without_an_embedding_is_neither_read_nor_predicted(
    model_folder: Path, tmp_path: Path, write_recipe: WriteRecipe
) -> None:
    folder = _folder(model_folder, tmp_path / "image", AddedToken("<image>", special=True))
    translator = load_translators(load_recipe(str(write_recipe()), [f"model.path={folder}"]))["en-es"]
    base, template = translator.base, translator.template
    assert base.tokenizer.convert_tokens_to_ids("<image>") == base.num_embeddings
    pairs = [("an <image> here", "una <image> aquí"), ("<image>", "<image>")]
    rows = [*template.rows(pairs), *template.plain_rows(["<image> a"])]
    assert max(token for row in rows for token in row.ids) < base.num_embeddings
    assert template.tokenizer.decode(rows[1].ids).count("<image>") == 2, "it stays text"
    hypotheses = translator.translate(["an <image> here"], Generate(temperature=5.0, num_candidates=8)).hypotheses
    assert max(token for ids in hypotheses.lists() for token in ids) < base.num_embeddings


@pytest.mark.parametrize("kind", ["text", "template"])
def test_a_token_without_an_embedding_that_rows_may_hold_is_refused(
    model_folder: Path, tmp_path: Path, write_recipe: WriteRecipe, kind: str
) -> None:
    token = AddedToken("<turn>", special=kind == "template")
    folder = _folder(model_folder, tmp_path / "more", token, chat_template=CHATML.replace("<|im_start|>", "<turn>"))
    recipe = load_recipe(str(write_recipe(('kind = "plain"', 'kind = "chat"'))), [f"model.path={folder}"])
    with pytest.raises(ModelError, match="the template uses '<turn>'" if kind == "template" else "embeddings"):
        load_translators(recipe)


def test_no_kernel_of_the_hub_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are programs; transformers asks for them by its own function or by that of the package."""
    from transformers.integrations import hub_kernels

    package = types.ModuleType("kernels")
    package.get_kernel = lambda *_: pytest.fail("fetched")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kernels", package)
    attention.forbid_hub_kernels()
    with pytest.raises(ImportError, match="is a program"):
        package.get_kernel("kernels-community/flash-attn2")
    assert not hub_kernels._kernels_enabled
    for fetch in (hub_kernels.get_kernel, hub_kernels.get_kernel_hub):
        with pytest.raises(ImportError, match="kernels-community/rwkv' of the hub is a program"):
            fetch("kernels-community/rwkv", version=1)


@pytest.mark.parametrize("is_installed", [True, False])
def test_flash_attention_is_tried_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, is_installed: bool) -> None:
    """Otherwise transformers would take a kernel of the hub in its place."""
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: is_installed)
    names = attention.candidates("auto", torch.device("cuda"), "sdpa")
    assert ("flash_attention_2" in names) is is_installed and names[0] == "varlen" and names[-1] == "sdpa"
