"""Finding, reading and judging recipe files: all problems come in one error, each with its place and a cure."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from roundtrip.recipe.schema import Recipe, TextSource
from roundtrip.recipe.validation import OF_ADAPTERS, combination_problems, did_you_mean
from roundtrip.runtime.downloads import forbid_hub, is_hub_id, parse_pypi, resolve
from roundtrip.runtime.errors import RecipeError, SourceError

# Sections in which a table may stand for one direction alone: [adapter."en-es"].
BY_DIRECTION = ("model", "adapter")
CONFIG = "adapter_config.json"
_UNKNOWN = ("first direction", "second direction")
_PACKAGE = Path(__file__).parents[1]
# In the wheel the shipped recipes lie inside the package, in a checkout beside it.
SHELVES = (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that was found sound.

    Attributes:
        recipe: the value.
        path: the file it came from; relative paths in it start at its folder.
        text: the file as written.
        overrides: what `--set` changed, as given.
    """

    recipe: Recipe
    path: Path
    text: str
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.path.parent


def find(name: str) -> Path:
    """Return the file of a recipe: a path, or the bare name of a shipped one.

    Raises:
        RecipeError: there is no such file.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    shipped = {file.stem: file for shelf in SHELVES if shelf.is_dir() for file in sorted(shelf.glob("*.toml"))}
    if name in shipped:
        return shipped[name].resolve()
    beside = [str(path.with_name(file.name)) for file in path.parent.glob("*.toml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(name, [*shipped, *beside], 1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise RecipeError(f"no recipe '{name}'", cure=f"{hint}shipped recipes: {', '.join(sorted(shipped))}")


def load(name: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and judge a recipe.

    Args:
        name: see `find`.
        overrides: `key.path=value` texts; values are TOML, a bare word is a string.

    Raises:
        RecipeError: with every problem found, one per line.
    """
    path = find(name)
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"not a readable TOML file: {error}", place=str(path)) from error
    for override in overrides:
        _override(data, override)
    recipe, problems = validate_recipe(data, path.parent)
    if problems or recipe is None:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise RecipeError(f"{count} in this recipe\n" + "\n".join(f"  - {p}" for p in problems), place=str(path))
    return LoadedRecipe(recipe, path, text, tuple(overrides))


def validate_recipe(data: dict[str, Any], folder: Path) -> tuple[Recipe | None, list[str]]:
    """Return the recipe (None where it has no sound shape) and every problem in it, as text."""
    recipe, problems = _shape(data)
    if recipe is None:
        # Judge what is left without the broken keys, so that one run shows everything.
        recipe, _ = _shape(_without(data, problems))
    texts = [f"{'.'.join(map(str, place))}: {text}" for place, text in problems]
    if recipe is not None:
        texts += _unused(data, recipe)
        texts += combination_problems(recipe)
        texts += path_problems(recipe, folder)
    return (None if texts else recipe), texts


def forbid_unused_hub(recipe: Recipe, folder: Path) -> None:
    """Let nobody in this process speak to the hub where the recipe names nothing there; to be called before imports."""
    if not names_hub(recipe, folder):
        forbid_hub()


def names_hub(recipe: Recipe, folder: Path) -> bool:
    """Return whether a recipe names anything on the hub; if not, nobody has to be asked there."""
    models = [model.path for model in recipe.model.values() if model.path is not None]
    return any(is_hub_id(path, folder) for path in models) or any(
        source.format == "datasets" or str(source.path).startswith("hf:") for _, source, _ in recipe.sources()
    )


def path_problems(recipe: Recipe, folder: Path) -> list[str]:
    """Name the local files that are not there and the specs without form; what is remote is tried when fetched."""
    specs = [
        (key, spec)
        for key, source, _ in recipe.sources()
        for spec in ((source.path,) if isinstance(source.path, str) else source.path)
        if not spec.startswith("hf:")
    ]
    for spec in dict.fromkeys(model.path for model in recipe.model.values()):
        if spec is not None and (spec.startswith(("pypi:", ".", "/", "~")) or spec.endswith(".gguf")):
            specs.append(("model.path", spec))
    for name, adapter in recipe.adapter.items():
        if adapter.init is not None and adapter.method != "full":
            specs.append((f"adapter.{name}.init", str(Path(adapter.init).expanduser() / CONFIG)))
    problems = []
    for key, spec in specs:
        try:
            parse_pypi(spec) if spec.startswith("pypi:") else resolve(spec, folder)
        except SourceError as error:
            problems.append(f"{key}: {error.problem}; {error.cure} (seen from {error.place})")
    return problems


Place = tuple[str | int, ...]


def _shape(data: dict[str, Any]) -> tuple[Recipe | None, list[tuple[Place, str]]]:
    names = _direction_names(data)
    try:
        # Through JSON, since only there does pydantic's strict mode take an array for a tuple.
        return Recipe.model_validate_json(json.dumps(_spread(data, names), default=str)), []
    except ValidationError as error:
        found = {}
        for item in error.errors():
            place = tuple(part for part in item["loc"] if not _is_type_name(part))
            place = _as_written(place, data, names)
            if names == _UNKNOWN and len(place) == 2 and place[0] in BY_DIRECTION and isinstance(item["input"], dict):
                continue  # for one direction, whose name is not known while the languages are wrong
            found[place] = _explain(item, place, names)
        return None, list(found.items())


def _direction_names(data: dict[str, Any]) -> tuple[str, str]:
    languages = data.get("languages")
    if isinstance(languages, list) and len(languages) == 2 and len(set(map(str, languages))) == 2:
        first, second = map(str, languages)
        return f"{first}-{second}", f"{second}-{first}"
    return _UNKNOWN


def _spread(data: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Give each direction its own table where directions may differ: what both have in common, then what is its own."""
    spread = dict(data)
    for key in BY_DIRECTION:
        table = data.get(key, {})
        if isinstance(table, dict):
            own = {name: table[name] for name in names if isinstance(table.get(name), dict)}
            common = {name: value for name, value in table.items() if name not in own}
            spread[key] = {name: _over(common, own.get(name, {})) for name in names}
    return spread


def _over(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return a table with the keys of another over it, tables in it too."""
    return common | {
        key: _over(common[key], value) if isinstance(value, dict) and isinstance(common.get(key), dict) else value
        for key, value in own.items()
    }


def _unused(data: dict[str, Any], recipe: Recipe) -> list[str]:
    """Name what a recipe says of adapters where all weights learn."""
    table = data.get("adapter", {})
    full = [name for name, adapter in recipe.adapter.items() if adapter.method == "full"]
    places = {f"adapter.{name}": table[name] for name in full if isinstance(table.get(name), dict)}
    if len(full) == len(recipe.adapter):
        places["adapter"] = table
    return [
        f"{place}.{key}: does nothing where all weights learn (adapter.method = 'full')"
        for place, keys in places.items()
        for key in OF_ADAPTERS
        if key in keys
    ]


def _as_written(place: Place, data: dict[str, Any], names: Sequence[str]) -> Place:
    """Return where a key stands in the file: with both directions, or with the one that has it for itself."""
    if len(place) < 2 or place[0] not in BY_DIRECTION or place[1] not in names:
        return place
    own = data[place[0]].get(place[1])
    return place if len(place) > 2 and isinstance(own, dict) and place[2] in own else (place[0], *place[2:])


def _is_type_name(part: str | int) -> bool:
    """Pydantic adds the member of a union (`str`, `tuple[...]`) to the place; a person wrote no such key."""
    return isinstance(part, str) and (part in {"str", "int"} or part.startswith(("tuple[", "literal[", "function-")))


def _explain(item: Any, place: Place, directions: Sequence[str]) -> str:
    value = f"{item['input']!r}" if not isinstance(item["input"], dict | list) else "this table"
    if item["type"] == "extra_forbidden":
        if len(place) == 2 and place[0] in BY_DIRECTION and place[1] in directions:
            return f"{value}: a table wanted, [{place[0]}.{json.dumps(place[1])}]"
        section = _section(place[:-1])
        names = list(section.model_fields) if section else []
        if place[0] in BY_DIRECTION and len(place) == 2:
            names += directions
        return f"unknown key{did_you_mean(str(place[-1]), names)}"
    if item["type"] == "missing":
        return "missing, and there is no default"
    return f"{value}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _section(place: Place) -> type[BaseModel] | None:
    """Return the model that describes the table at a place."""
    section: Any = Recipe
    for part in place:
        if isinstance(part, int) or (section is not Recipe and "-" in part):  # of a list, or of a direction
            continue
        field = section.model_fields.get(part) if section else None
        section = _model_in(field.annotation) if field else None
        if section is None:
            return TextSource if place and place[0] == "data" else None
    return section  # type: ignore[no-any-return]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


def _without(data: dict[str, Any], problems: list[tuple[Place, str]]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(data, default=str))
    for place, _ in problems:
        holder: Any = copy
        for part in place[:-1]:
            holder = holder.get(part) if isinstance(holder, dict) else None
        if isinstance(holder, dict):
            holder.pop(place[-1], None)
    return copy


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = [part.strip("\"'") for part in key.strip().split(".")]
    if not equals or not all(parts):
        raise RecipeError(f"'{override}' is not of the form key.path=value", place="--set")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    holder = data
    for part in parts[:-1]:
        holder = holder.setdefault(part, {})
        if not isinstance(holder, dict):
            raise RecipeError(f"'{key}': '{part}' is a value, not a table", place="--set")
    holder[parts[-1]] = value
