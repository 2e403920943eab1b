"""A small real model, made in seconds: two layers, a byte-level BPE with a chat template, a little training."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of the processes, and for the commands that they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from roundtrip.cli.app import exit_with
from roundtrip.engine.train_step import loss_sum
from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.report.page import write_report
from roundtrip.tokens.batching import TokenDataset, collate, step_batches
from roundtrip.tokens.prompt_segments import build_segments
from roundtrip.tokens.prompt_template import PromptTemplate, TokenRow

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NOUNS = {
    "house": "casa",
    "table": "mesa",
    "flower": "flor",
    "city": "ciudad",
    "moon": "luna",
    "door": "puerta",
}
ADJECTIVES = {"red": "roja", "white": "blanca", "small": "pequeña", "new": "nueva", "old": "vieja"}
PLACES = {
    "here": "aquí",
    "there": "allí",
    "at home": "en casa",
    "in the garden": "en el jardín",
    "far away": "lejos",
}
OPENINGS = {"I see": "Veo", "We like": "Nos gusta", "He wants": "Él quiere", "She sells": "Ella vende"}


def toy_pairs() -> list[tuple[str, str]]:
    """Return 600 different English and Spanish sentences that follow one simple grammar."""
    return [
        (f"{opening} the {adjective} {noun} {place}.", f"{abertura} la {sustantivo} {adjetivo} {lugar}.")
        for opening, abertura in OPENINGS.items()
        for noun, sustantivo in NOUNS.items()
        for adjective, adjetivo in ADJECTIVES.items()
        for place, lugar in PLACES.items()
    ]


def bpe(lines: list[str], vocab_size: int = 600) -> Tokenizer:
    """Train a byte-level BPE, pre-tokenized as GPT-2 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def wrap(tokenizer: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    defaults = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "chat_template": CHATML}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(defaults | settings))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes share the tests: none where single files or tests are named."""
    named = [argument.split("::")[0] for argument in config.args]
    return 0 if all(name.endswith(".py") for name in named) else min(4, os.cpu_count() or 1)


@pytest.fixture(scope="session", autouse=True)
def token_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tables of test tokenizers out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("backtranslation.token_rows", "tokens.tokenizer_limits"):
            patch.setattr(f"roundtrip.{module}.cache_dir", lambda: folder)
        yield


def small_tokenizer() -> PreTrainedTokenizerFast:
    return wrap(bpe([text for pair in toy_pairs() for text in pair]))


def save_model(folder: Path) -> None:
    """Write the small model, float32, which has seen enough of the toy language to end its sentences."""
    tokenizer = small_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.05,
    )
    model = LlamaForCausalLM(config)
    pretrain(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return small_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return folder


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Train both prompt forms on a few pairs, so that hypotheses end; translating well is left to the tests."""
    rows: list[TokenRow] = []
    for kind in ("plain", "chat"):
        for source, target in (("en", "es"), ("es", "en")):
            segments = build_segments(tokenizer, TemplateRecipe(kind=kind), source, target, ())
            pairs = toy_pairs()[::7]
            turned = pairs if source == "en" else [(es, en) for en, es in pairs]
            rows += [TokenRow(row.ids, 0) for row in PromptTemplate(tokenizer, segments).rows(turned)]
    dataset = TokenDataset.of(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for number in range(6):
        for group in step_batches(dataset.sizes, 24, number):
            batch = collate(dataset, group, tokenizer.pad_token_id)
            optimizer.zero_grad()
            (loss_sum(model, batch) / batch.inputs["attention_mask"].sum()).backward()
            optimizer.step()


RECIPE = """
languages = ["en", "es"]
seed = 3

[model]
path = "{model}"
dtype = "float32"

[template]
kind = "plain"

[data.split]
corpus = {{ path = "toy.tsv" }}
train = 32
dev = 12
test = 12

[adapter]
rank = 4
dropout = 0.1

[train]
lr = 5e-3
batch_size = 16
max_length = 96
parallel_epochs = 1

[rounds]
count = 1
monolingual_lines = 24
require_better_than_copy = false

[filter]
max_length_ratio = 100.0

[checkpoint]
every_steps = 1
"""

WriteRecipe = Callable[..., Path]


@pytest.fixture
def write_recipe(tmp_path: Path, model_folder: Path) -> WriteRecipe:
    """Write the small recipe and its text into `tmp_path`; `replace` changes lines of it."""

    def write(*replace: tuple[str, str], name: str = "small.toml") -> Path:
        rows = "".join(f"{en}\t{es}\n" for en, es in toy_pairs())
        (tmp_path / "toy.tsv").write_text(rows, encoding="utf-8")
        text = RECIPE.format(model=model_folder)
        for old, new in replace:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Path, Path, str]:
    """A finished run with all its checkpoints: its recipe, its folder and what it showed."""
    from tests.runs import go

    folder = tmp_path_factory.mktemp("finished")
    (folder / "toy.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in toy_pairs()), encoding="utf-8")
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE.format(model=model_folder) + "keep = 20\n", encoding="utf-8")
    return recipe, folder / "run", go(recipe, folder / "run", on_evaluation=write_report)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Call a command as a shell would, in this process, and return (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def call(module: Any, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["roundtrip", *arguments])
        with pytest.raises(SystemExit) as caught:
            exit_with(module.main)
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call
