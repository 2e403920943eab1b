"""The rules of the project: imports point downward, errors speak, the README does what it says."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from roundtrip.runtime import errors
from roundtrip.runtime.errors import Interrupted, RoundtripError
from tests import ROOT

PACKAGE = ROOT / "roundtrip"

# A line of the layer contract: what stands higher in the list may import what stands lower.
UPWARD = ("recipe/plan.py", "from roundtrip.engine import request")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of `pyproject.toml` against the package in a folder."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    return subprocess.run(
        [*command, "--config", str(ROOT / "pyproject.toml"), "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_imports_point_downward() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_upward_import_is_found(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "roundtrip", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "roundtrip" / UPWARD[0]
    path.write_text(path.read_text(encoding="utf-8") + f"\n{UPWARD[1]}\n", encoding="utf-8")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert "roundtrip.recipe is not allowed to import roundtrip.engine" in done.stdout


def test_modules_and_functions_stay_short() -> None:
    """At most 400 lines a module and 60 a function; ruff's PLR0913 holds parameters to six."""
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, (path, node.name)


def test_the_loop_fits_a_screen() -> None:
    assert len((PACKAGE / "backtranslation" / "loop.py").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize(
    ("what", "file"),
    [
        ("GGUF", "gguf"),
        ("TMX", "tmx"),
        ("early stopping", "early_stopping"),
        ("filtering of hypotheses", "filtering"),
        ("dev scoring", "dev_scoring"),
        ("PiSSA", "pissa"),
        ("replay", "replay"),
        ("KL", "kl_"),
    ],
)
def test_file_names_tell_where_a_thing_is(what: str, file: str) -> None:
    names = [path.stem for path in PACKAGE.rglob("*.py") if file in path.stem]
    assert len(names) == 1, (what, names)


def test_errors_say_place_problem_and_cure() -> None:
    error = RoundtripError("the value 3 is odd", place="a.toml", cure="use 4")
    assert str(error) == "a.toml: the value 3 is odd\n  use 4"
    assert Interrupted(15).exit_code == 143
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, RoundtripError) for kind in kinds)


def test_no_asserts_on_user_input_in_commands_and_recipes() -> None:
    files = ("recipe/loader", "runtime/downloads", "cli/train", "cli/translate", "cli/check", "data/tabular")
    for name in (*files, "data/readers"):
        text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        assert not re.search(r"^\s*assert ", text, re.M), name


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/log.md",
        "docs/design.md",
        "docs/tokens.md",
        "docs/speed.md",
        "docs/reliability.md",
        "docs/quality.md",
        "docs/report.md",
        "docs/evaluate.md",
        "docs/serve.md",
        "docs/translate.md",
    ],
)
def test_documents_name_only_files_that_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text):
        assert (ROOT / name).parent.joinpath(link).exists(), link


def test_the_readme_shows_own_data_as_shipped() -> None:
    """The example in the README is a sound recipe: every key in it is known."""
    import tomllib

    from roundtrip.recipe import loader

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    assert len(block.strip().splitlines()) <= 14
    _, problems = loader.validate_recipe(tomllib.loads(block), ROOT)
    assert problems and all("no such file" in problem for problem in problems)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install -c constraints.txt '.[test]'" in readme
    assert "install --quiet --disable-pip-version-check -c constraints.txt '.[test]'" in script
    assert "python -m pytest" in readme and '/python" -m pytest' in script


def test_the_tests_that_the_documents_name_are_there() -> None:
    """A promise that names its test must not outlive it; `...` stands for what is between the ends of a name."""
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:test_\w+\.)?((?:test_|\.\.\.)[\w.]*?)`", text)
    assert len(named) > 30
    for name in named:
        pattern = re.compile(r"\w*".join(re.escape(part) for part in name.split("...")))
        assert any(pattern.fullmatch(one) for one in defined) or any((ROOT / "tests").rglob(f"{name}.py")), name
