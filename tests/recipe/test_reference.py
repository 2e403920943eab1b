"""The page of all recipe keys."""

from __future__ import annotations

from tests import ROOT
from tests.tools.recipe_reference import keys, reference, sections

MOST_KEYS = 75


def test_the_committed_page_is_what_is_generated() -> None:
    page = (ROOT / "docs" / "recipe-reference.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m tests.tools.recipe_reference > docs/recipe-reference.md"


def test_every_key_is_documented_on_the_page() -> None:
    page = reference()
    for name, section in sections():
        heading = {"": "## Top level", "SOURCE": "## Text source"}.get(name, f"## `[{name}]`")
        table = page.split(f"{heading}\n", 1)[1].split("\n## ", 1)[0]
        for key, field in keys(section).items():
            assert field.description, f"{name}.{key}"
            assert f"| `{key}` |" in table, f"{name}.{key}"


def test_there_are_few_keys() -> None:
    names = [f"{name}.{key}" for name, section in sections() for key in keys(section)]
    assert len(names) == len(set(names)) <= MOST_KEYS
