"""The house rules: imports point downward, errors speak, the README does what it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from roundtrip import errors
from roundtrip.errors import Interrupted, RoundtripError

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "roundtrip"

# From the ground up; a module imports only from lines above its own.
FLOORS = [
    ["errors", "files", "__init__", "comet_worker"],
    ["recipe", "sources", "disk", "identify", "noise"],
    ["schedule", "stall"],
    ["plan"],
    ["combinations"],
    ["cookbook", "events", "signals", "ahead"],
    ["text.clean", "text.codes", "text.stream", "text.store"],
    ["text.lines"],
    ["text.po", "text.tables", "text.exchange"],
    ["text.readers"],
    ["text.prepare", "tokens.segments", "tokens.encoding", "score"],
    ["tokens.template", "tokens.surface"],
    ["tokens.pairs", "tokens.same", "tokens.attack", "tokens.slots", "tokens.lookup"],
    ["tokens.guard", "tokens.splice"],
    ["tokens.road"],
    ["tokens.audit"],
    ["tokens.verdict"],
    ["engine.memory"],
    ["models.attention", "models.packed", "models.lora", "engine.ranks"],
    [
        "models.gguf",
        "engine.work",
        "engine.static",
        "models.optimizer",
        "models.adapters",
        "models.kernels",
        "engine.batch",
    ],
    ["models.fresh", "models.place"],
    ["models.base", "engine.step", "engine.pick", "engine.library"],
    ["engine.decode", "engine.likelihood"],
    ["engine.generate"],
    ["models.moving"],
    ["models.learner"],
    ["judge", "translator", "run", "checkpoint"],
    ["choose", "echo", "longer"],
    ["block", "scorer", "roads", "forecast"],
    ["results", "rows", "reservoir", "telling", "trained", "exported", "card", "keeping", "skipped"],
    ["stages", "systems", "comet", "scoreboard"],
    ["trip"],
    ["loop", "door"],
    ["running"],
    ["train", "translate", "check", "export", "evaluate"],
]


def imports(source: str) -> set[str]:
    """Return the modules of ours that a source imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inside if _is_module(name)} or {node.module}
    return {name.removeprefix("roundtrip.") for name in found if name.startswith("roundtrip.") and _is_module(name)}


def _is_module(name: str) -> bool:
    return (ROOT / Path(*name.split("."))).with_suffix(".py").is_file()


def upward(modules: dict[str, str]) -> list[str]:
    """Return every import that does not point downward."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    return [
        f"{name} imports {other}"
        for name, source in modules.items()
        for other in sorted(imports(source))
        if floor[other] >= floor[name]
    ]


def modules() -> dict[str, str]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.read_text(encoding="utf-8")
    }


def test_imports_point_downward() -> None:
    assert upward(modules()) == []


def test_the_test_of_imports_can_fail() -> None:
    assert upward({"recipe": "from roundtrip.loop import round_trip"}) == ["recipe imports loop"]
    assert upward({"score": "from roundtrip import judge"}) == ["score imports judge"]
    assert upward({"block": "def f():\n    import roundtrip.trip"}) == ["block imports trip"]


def test_every_module_has_a_floor_and_the_loop_fits_a_screen() -> None:
    assert set(modules()) == {name for names in FLOORS for name in names}
    assert len((PACKAGE / "loop.py").read_text(encoding="utf-8").splitlines()) <= 60


def test_errors_say_place_problem_and_cure() -> None:
    error = RoundtripError("the value 3 is odd", place="a.toml", cure="use 4")
    assert str(error) == "a.toml: the value 3 is odd\n  use 4"
    assert Interrupted(15).exit_code == 143
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, RoundtripError) for kind in kinds)


def test_no_asserts_on_user_input_in_doors_and_recipes() -> None:
    for name in ("cookbook", "sources", "train", "translate", "check", "roads", "text.tables", "text.readers"):
        assert not re.search(r"^\s*assert ", modules()[name], re.M), name


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
        "docs/evaluate.md",
    ],
)
def test_documents_name_only_files_that_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text):
        assert (ROOT / name).parent.joinpath(link).exists(), link


def test_the_readme_shows_own_data_as_shipped() -> None:
    """The example in the README is a sound recipe: every key in it is known."""
    import tomllib

    from roundtrip import cookbook

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    assert len(block.strip().splitlines()) <= 14
    _, problems = cookbook.judge(tomllib.loads(block), ROOT)
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
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:test_\w+\.)?((?:test_|\.\.\.)[\w.]*?)`", text)
    assert len(named) > 30
    for name in named:
        pattern = re.compile(r"\w*".join(re.escape(part) for part in name.split("...")))
        assert any(pattern.fullmatch(one) for one in defined) or (ROOT / "tests" / f"{name}.py").exists(), name
