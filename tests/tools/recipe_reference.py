"""Print the reference page of all recipe keys: `python -m tests.tools.recipe_reference > docs/recipe-reference.md`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from roundtrip.recipe.loader import section_in
from roundtrip.recipe.schema import DEFAULT_PROMPTS, Recipe, TextSource

_HEAD = """# Recipe reference

All keys of a recipe, generated from `roundtrip/recipe/schema.py` by `python -m tests.tools.recipe_reference`. A recipe
is a TOML file; keys that it leaves out have their default. `--set train.lr=1e-4` on the command line overrides a key.
The recipes in `recipes/` are examples; `own-data.toml` is the one to copy.
"""
_NAMES = {bool: "true, false", int: "integer", float: "number", str: "string", NoneType: "none"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every section with its dotted name: that of the recipe itself is empty, that of a text source `SOURCE`."""
    yield from _sections("", Recipe)
    yield "SOURCE", TextSource


def _sections(name: str, section: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield name, section
    for key, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None and inner is not TextSource:
            yield from _sections(f"{name}.{key}" if name else key, inner)


def keys(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a section that are keys, not sections of their own."""
    fields = section.model_fields.items()
    return {key: field for key, field in fields if section_in(field.annotation) in {None, TextSource}}


def reference() -> str:
    """Return the whole page as Markdown."""
    lines = [_HEAD]
    for name, section in sections():
        title = {"": "Top level", "SOURCE": "Text source"}.get(name, f"`[{name}]`")
        lines += [f"## {title}", "", _one_line(inspect.cleandoc(str(section.__doc__)).partition("\n\n")[0]), ""]
        if rows := [_row(key, field) for key, field in keys(section).items()]:
            lines += ["| key | type or values | default | what it does |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(key: str, field: FieldInfo) -> str:
    annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    cells = [f"`{key}`", _type(annotation), _default(key, field), _one_line(field.description)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _type(annotation: Any) -> str:
    """Return a type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if section_in(annotation) is TextSource:
        return "table: language = text sources" if origin is dict else "text sources"
    if origin is Annotated:
        inner, *metadata = arguments
        parts = (part for item in metadata for part in getattr(item, "metadata", [item]))
        limits = ((sign, getattr(part, name, None)) for part in parts for name, sign in _BOUNDS.items())
        bounds = [f"{sign} {value:g}" for sign, value in limits if value is not None]
        return f"{_type(inner)} {', '.join(bounds)}".strip()
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        inner = [argument for argument in arguments if argument is not Ellipsis]
        return f"list of {_type(inner[0])}" if Ellipsis in arguments else f"list of {len(inner)}: {_type(inner[0])}"
    if origin is dict:
        return f"table: language = {_type(arguments[1])}"
    if arguments:
        return " or ".join(_type(argument) for argument in arguments if argument is not NoneType)
    return _NAMES[annotation]


def _default(key: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if key == "prompt":
        return "; ".join(f"{kind}: `{text}`".replace("\n", "\\n") for kind, text in DEFAULT_PROMPTS.items())
    if value in (None, (), {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    sys.stdout.write(reference())
