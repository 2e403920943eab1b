"""The public names: complete, quick to import, documented, and used as the documents show."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import roundtrip
from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.tokens.prompt_segments import build_segments
from tests import ROOT
from tests.conftest import WriteRecipe, toy_pairs

LIBRARY = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")


def example(name: str) -> str:
    (code,) = re.findall(rf"<!-- example: {name} -->\n```python\n(.*?)```", LIBRARY, re.S)
    return code


def test_all_is_what_is_imported() -> None:
    assert sorted(roundtrip.__all__) == roundtrip.__all__ == sorted(roundtrip._MODULE_OF)
    for name in roundtrip.__all__:
        assert getattr(roundtrip, name).__module__.startswith("roundtrip."), name
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        roundtrip.no_such_name  # noqa: B018


def test_the_library_page_lists_every_name() -> None:
    table = LIBRARY.partition("## A filter")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= set(roundtrip.__all__)


@pytest.mark.parametrize("name", roundtrip.__all__)
def test_public_names_are_documented(name: str) -> None:
    value = getattr(roundtrip, name)
    assert inspect.getdoc(value), name
    if inspect.isfunction(value) and len(inspect.signature(value).parameters) > 1:
        assert "Args:" in str(value.__doc__), name


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = "import sys, roundtrip; assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def prompt_template(tokenizer: Any, source: str, target: str) -> roundtrip.PromptTemplate:
    segments = build_segments(tokenizer, TemplateRecipe(kind="plain"), source, target, ())
    return roundtrip.PromptTemplate(tokenizer, segments)


@pytest.mark.parametrize("name", roundtrip.__all__)
def test_docstring_examples_run(
    name: str, tokenizer: Any, finished: tuple[Path, Path, str], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    """Every public name has one; it may use what is named here."""
    value = getattr(roundtrip, name)
    names = {
        "tokenizer": tokenizer,
        "template": partial(prompt_template, tokenizer),
        "recipe": roundtrip.load_recipe(str(write_recipe())),
        "run_dir": finished[1],
        "out_dir": tmp_path,
    }
    module = vars(importlib.import_module(value.__module__))
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    values = [roundtrip.StepSettings, value] if name == "train_step" else [value]
    globs = {**module, **names}
    for each in values:
        (test,) = finder.find(each, name, globs=globs)
        assert test.examples, f"{name} has no example"
        test.globs = globs
        runner.run(test, clear_globs=False)
    assert not runner.failures


def test_a_filter_of_your_own(write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"recipe": roundtrip.load_recipe(str(write_recipe())), "run_dir": tmp_path / "run"}
    exec(example("filter"), names)
    assert capsys.readouterr().out.startswith("{")
    rules = names["numbers_differ"]
    assert rules(roundtrip.Candidate(0, "10 files", "1 archivo")) == "numbers_differ"  # type: ignore[operator]


def test_token_rows_in_a_trainer_of_your_own(
    model_folder: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    templates = [prompt_template(tokenizer, *codes) for codes in (("es", "en"), ("en", "es"))]
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    before = model.get_input_embeddings().weight.detach().clone()
    lines = [es for _, es in toy_pairs()]
    names = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
        "reverse_template": templates[0],
        "forward_template": templates[1],
        "pairs": toy_pairs()[::30],
        "batches": [lines[start : start + 8] for start in (0, 8)],
    }
    exec(example("rows"), names)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("splice") and len(shown) == 3 and all("'splice'" in line for line in shown[1:])
    assert not torch.equal(before, model.get_input_embeddings().weight)


def test_a_noisy_corpus_is_ranked(write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = toy_pairs()[:20]
    recipe = roundtrip.load_recipe(str(write_recipe()))
    exec(example("likelihood"), {"recipe": recipe, "noisy_pairs": pairs})
    assert capsys.readouterr().out == "16 of 20 pairs kept\n"
