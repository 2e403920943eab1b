"""What train refuses check refuses too, with the same words; what train accepts check accepts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import BertConfig, BertLMHeadModel

from roundtrip.cli import check, train
from tests.conftest import WriteRecipe, small_tokenizer, wrap

Change = tuple[str, ...]


def _bert(folder: Path) -> None:
    config = BertConfig(vocab_size=600, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    BertLMHeadModel(config).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)


def _token_without_embedding(folder: Path) -> None:
    tokenizer = small_tokenizer()
    tokenizer.add_tokens([AddedToken("<turn>", special=False)])
    tokenizer.save_pretrained(folder)


def _failing_template(folder: Path) -> None:
    tokenizer = small_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('only images') }}"
    tokenizer.save_pretrained(folder)


def _lossy_tokenizer(folder: Path) -> None:
    tokenizer = small_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    wrap(tokenizer.backend_tokenizer, eos_token=None).save_pretrained(folder)


# Changes of the model's folder and of the recipe, and a part of the message.
REFUSED: dict[str, tuple[Callable[[Path], None] | None, Change, str]] = {
    "not causal": (_bert, (), "not a causal language model"),
    "token without embedding": (_token_without_embedding, (), "embeddings"),
    "chat template": (_failing_template, ("template.kind=chat",), "only images"),
    "no end token": (_lossy_tokenizer, (), "no end token"),
    "rows too long": (None, ("train.max_length=4",), "are over 4 tokens"),
    "prompts too long": (None, ("generate.max_length_ratio=200",), "positions"),
    "attention": (None, ("model.attention=flash_attention_2",), "flash-attn is not installed"),
    "targets": (None, ('adapter.targets=["nothing"]',), "adapter.targets"),
    "splice": (None, ("template.prompt={source}{target}", "tokens.mode=splice"), "cannot be spliced"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_train_refuses_check_refuses_with_the_same_words(
    write_recipe: WriteRecipe, model_folder: Path, tmp_path: Path, shell: Callable[..., Any], case: str
) -> None:
    damage, overrides, message = REFUSED[case]
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    if damage is not None:
        damage(folder)
    arguments = [part for key in (f"model.path={folder}", *overrides) for part in ("--set", key)]
    recipe = str(write_recipe())
    by_train, by_check = (
        shell(command, recipe, *more, *arguments) for command, more in ((train, ("--out", "run")), (check, ()))
    )
    assert by_train[0] == by_check[0] in (2, 3)
    assert message in by_train[2] and by_check[2].endswith(by_train[2][by_train[2].index("error: ") :])


def test_what_train_accepts_check_accepts(write_recipe: WriteRecipe, shell: Callable[..., Any]) -> None:
    """Without rounds nothing is spliced, whatever the mode."""
    changes = ("rounds.count=0", "template.prompt={source}{target}", "tokens.mode=splice")
    arguments = [str(write_recipe()), *(part for key in changes for part in ("--set", key))]
    by_train = shell(train, *arguments, "--out", "run")
    by_check = shell(check, *arguments)
    assert by_train[0] == by_check[0] == 0, (by_train[2], by_check[2])
