"""What the documents show, runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import roundtrip
from tests import ROOT
from tests.conftest import toy_pairs

DOCS = ROOT / "docs"
README = ROOT / "README.md"


def snippets(path: Path, *replace: tuple[str, str]) -> list[str]:
    """Return the Python examples of a page, with other paths."""
    codes: list[str] = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    for old, new in replace:
        assert any(old in code for code in codes), old
        codes = [code.replace(old, new) for code in codes]
    return codes


def test_every_example_of_the_pages_is_run() -> None:
    """Here and in test_public_api.py; this counts them, so that none is added without its test."""
    found = {path.name: len(snippets(path)) for path in (README, *sorted(DOCS.glob("*.md")))}
    assert {name: number for name, number in found.items() if number} == {
        "README.md": 1,
        "adapters.md": 1,
        "library.md": 3,
        "placeholders.md": 1,
        "tokens.md": 1,
    }


def test_the_example_of_the_readme_translates_with_a_finished_run(
    finished: tuple[Path, Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = finished[1]
    (code,) = snippets(README, ("runs/quickstart", str(run_dir)), ("Save the file", "I see the red house here."))
    exec(code, {})
    trained = roundtrip.load_trained(run_dir, "en-es").translate(["I see the red house here."]).texts
    recipe = roundtrip.load_recipe(str(finished[0]))
    untrained = roundtrip.load_translators(recipe)["en-es"].translate(["I see the red house here."]).texts
    assert capsys.readouterr().out.startswith(f"{list(trained)} cpu")
    assert trained != untrained and trained[0], "the weights are those of the run"


def test_what_is_exported_translates_as_the_page_shows(
    finished: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, source = finished[1], "I see the red house here."
    roundtrip.export(run_dir, "en-es", tmp_path / "en-es", merged=True)
    (code,) = snippets(DOCS / "adapters.md", ("exported/en-es", str(tmp_path / "en-es")), ("Save the file", source))
    exec(code, {})
    (expected,) = roundtrip.load_trained(run_dir, "en-es").translate([source]).texts
    assert capsys.readouterr().out.strip().splitlines()[-1] == expected


def test_differences_are_shown_as_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = snippets(DOCS / "placeholders.md")
    exec(code, {})
    shown = re.findall(r"  # (.*?)(?:, the first without errors)?\n", code)
    assert capsys.readouterr().out.splitlines() == shown


def test_every_line_that_installs_this_package_names_it() -> None:
    """The distribution is not called as the package: there is another one of that name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folders = (ROOT, DOCS, ROOT / "recipes", ROOT / "roundtrip", ROOT / "benchmarks")
    paths = [path for folder in folders for end in ("md", "py", "toml") for path in folder.glob(f"*.{end}")]
    paths += (ROOT / "roundtrip").glob("*/**/*.py")
    pattern = re.compile(r"\b(roundtrip[\w-]*)(?:\[([\w,]+)\])?")
    named: list[tuple[str, str]] = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "pip install" in line:
                named += pattern.findall(line.partition("pip install")[2].partition("&&")[0])
    assert len(named) > 5
    for name, extras in named:
        assert name == project["name"]
        assert set(filter(None, extras.split(","))) <= set(project["optional-dependencies"])


def test_the_loop_of_ones_own_trains(model_folder: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "tokens.md").read_text(encoding="utf-8"), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    before = model.get_input_embeddings().weight.detach().clone()
    lines = [es for _, es in toy_pairs()]
    names = {
        "model": model,
        "tokenizer": tokenizer,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
        "pairs": toy_pairs()[::30],
        "batches": [lines[start : start + 8] for start in (0, 8)],
    }
    exec(code, names)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("splice device")
    assert len(shown) == 3 and all("'splice'" in line for line in shown[1:])
    assert not torch.equal(before, model.get_input_embeddings().weight)
