"""Finding, reading and checking recipe files: one error names every problem with its key and what to do."""

import io
import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from roundtrip.recipe.renamed import explain_unknown_key
from roundtrip.recipe.schema import Adapter, Recipe, TextSource
from roundtrip.recipe.validation import combination_problems
from roundtrip.runtime.downloads import forbid_hub, is_hub_id, parse_dataset, parse_pypi, resolve
from roundtrip.runtime.errors import RecipeError, SourceError, did_you_mean, quantity
from roundtrip.runtime.special_files import SPECIAL_CURE, special_kind

# Sections that may hold a table for one direction alone, as [adapter."en-es"].
BY_DIRECTION = ("model", "adapter")
ADAPTER_CONFIG = "adapter_config.json"
# A recipe fills a page; each limit is far above.
MAX_BYTES, MAX_DEPTH = 1 << 18, 32
_PACKAGE = Path(__file__).parents[1]
# The wheel holds the shipped recipes inside the package, a checkout beside it.
RECIPE_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")
# Of a union's members pydantic adds the type to the path of a key.
_UNION_MEMBER = re.compile(r"str|int|(tuple\[|literal\[|function-).*", re.DOTALL)
_UNKNOWN_DIRECTIONS = ("first direction", "second direction")
KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe: the content of its file, in whose folder relative paths start, and the arguments of `--set`."""

    recipe: Recipe
    path: Path
    text: str
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.path.parent


def find(name: str) -> Path:
    """Return the file of a recipe: a path, or the bare name of a shipped one."""
    try:
        path = Path(name).expanduser()
        kind = special_kind(path)
        is_file = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: `~nobody` has no home
        raise RecipeError(f"not a usable path: {name!r} ({error})", cure="check its spelling") from error
    if kind is not None:
        raise RecipeError(f"{kind}, not a file: '{name}'", cure=SPECIAL_CURE)
    if is_file:
        return path.resolve()
    shipped = {file.stem: file for folder in RECIPE_FOLDERS for file in folder.glob("*.toml")}
    if name in shipped:
        return shipped[name].resolve()
    beside = [str(path.with_name(file.name)) for file in path.parent.glob("*.toml")]
    raise RecipeError(f"no recipe '{name}'", cure=did_you_mean(name, [*shipped, *beside], "there are"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check a recipe.

    Args:
        name: its file, or the bare name of a shipped recipe.
        overrides: `key.path=value` texts; values are TOML, a bare word is a string.

    Raises:
        RecipeError: with every problem found, one per line.

    Example:
        >>> loaded = load_recipe("quickstart", ["train.lr=1e-4"])
        >>> loaded.recipe.languages, loaded.recipe.train.lr
        (('en', 'es'), 0.0001)
    """
    path = find(name)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        # As `read_text` does it.
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()
        data = tomllib.loads(text)
    except (ValueError, OSError, RecursionError) as error:
        cure = f"correct it there; {find('own-data')} is an example"
        raise RecipeError(f"not a readable TOML file: {error}", place=str(path), cure=cure) from error
    for override in overrides:
        _apply_override(data, override)
    if problem := _excess(data):
        raise RecipeError(problem, place=str(path), cure="all keys are in docs/recipe-reference.md")
    recipe, problems = validate_recipe(data, path.parent)
    if recipe is None:
        count = f"{quantity(len(problems), 'problem')} in this recipe"
        raise RecipeError("\n  - ".join([count, *problems]), place=str(path))
    return LoadedRecipe(recipe, path, text, tuple(overrides))


def _excess(data: dict[str, Any]) -> str | None:
    """Return what no key of a recipe takes and no reader of JSON either: deep tables, and numbers beyond 64 bits."""
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        if large := [value for value in level if isinstance(value, int) and value.bit_length() > 63]:
            return f"a number of {large[0].bit_length()} bits, the limit is 63"
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [item for part in inner if isinstance(part, Iterable) and not isinstance(part, str) for item in part]
    return f"tables or arrays nested more than {MAX_DEPTH} deep" if level else None


def validate_recipe(data: dict[str, Any], folder: Path) -> tuple[Recipe | None, list[str]]:
    """Return the recipe, or None and every problem in it; relative paths start at `folder`."""
    recipe, invalid = _parse(data)
    if recipe is None:
        # Check what is left without the invalid keys, so that one error shows everything.
        recipe, _ = _parse(_without(data, invalid))
    problems = [f"{'.'.join(map(str, key))}: {text}" for key, text in invalid.items()]
    if recipe is not None:
        problems += _unused_adapter_keys(data, recipe)
        problems += [*combination_problems(recipe), *_path_problems(recipe, folder)]
    return (None if problems else recipe), problems


def forbid_unused_hub(recipe: Recipe, folder: Path) -> None:
    """Keep libraries, before they are imported, from contacting the hub where the recipe names nothing on it."""
    if not names_hub(recipe, folder):
        forbid_hub()


def names_hub(recipe: Recipe, folder: Path) -> bool:
    """Return whether a recipe names a model or data set on the hub."""
    paths = [model.path for model in recipe.model.values() if model.path is not None]
    is_dataset = any(str(source.path).startswith("hf:") for _, source, _ in recipe.sources())
    return is_dataset or any(is_hub_id(path, folder) for path in paths)


def _path_problems(recipe: Recipe, folder: Path) -> list[str]:
    """Return a problem for each missing local file and malformed remote path; downloads are tried later."""
    specs = [(key, path) for key, source, _ in recipe.sources() for path in source.paths]
    for spec in dict.fromkeys(model.path for model in recipe.model.values()):
        if spec is not None and (spec.startswith(("pypi:", ".", "/", "~")) or spec.endswith(".gguf")):
            specs.append(("model.path", spec))
    for name, adapter in recipe.adapter.items():
        if adapter.init is not None and adapter.method != "full":
            specs.append((f"adapter.{name}.init", str(Path(adapter.init).expanduser() / ADAPTER_CONFIG)))
    problems = []
    for key, spec in specs:
        try:
            if spec.startswith("hf:"):
                parse_dataset(spec)
            elif spec.startswith("pypi:"):
                parse_pypi(spec)
            else:
                resolve(spec, folder)
        except SourceError as error:
            problems.append(f"{key}: {error.problem}; {error.cure} (in {error.place})")
    return problems


def _parse(data: dict[str, Any]) -> tuple[Recipe | None, dict[KeyPath, str]]:
    """Return the recipe, or None and what is wrong with each invalid key."""
    names = _UNKNOWN_DIRECTIONS
    match data.get("languages"):
        case [first, second] if str(first) != str(second):
            names = (f"{first}-{second}", f"{second}-{first}")
    try:
        # Through JSON, since only there does pydantic's strict mode take an array for a tuple.
        return Recipe.model_validate_json(json.dumps(_spread(data, names), default=str)), {}
    except ValidationError as error:
        invalid = {}
        for item in error.errors():
            key = _as_written(item["loc"], data, names)
            of_direction = len(key) == 2 and key[0] in BY_DIRECTION and isinstance(item["input"], dict)
            if of_direction and names == _UNKNOWN_DIRECTIONS:
                continue  # the names of the directions are unknown while the languages are invalid
            invalid[key] = _explain(item, key, names)
        return None, invalid or {("languages",): "two different language codes wanted"}


def _spread(data: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Give each direction its own table: the keys of both, overridden by its own."""
    spread = dict(data)
    for key in BY_DIRECTION:
        table = data.get(key, {})
        if isinstance(table, dict):
            own = {name: table[name] for name in names if isinstance(table.get(name), dict)}
            common = {name: value for name, value in table.items() if name not in own}
            spread[key] = {name: _merge(common, own.get(name, {})) for name in names}
    return spread


def _merge(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    return common | {
        key: _merge(common[key], value) if isinstance(value, dict) and isinstance(common.get(key), dict) else value
        for key, value in own.items()
    }


def _unused_adapter_keys(data: dict[str, Any], recipe: Recipe) -> list[str]:
    """Return a problem for each key of an adapter where all weights are trained."""
    table = data.get("adapter", {})
    full = [name for name, adapter in recipe.adapter.items() if adapter.method == "full"]
    tables = {f"adapter.{name}": table[name] for name in full if isinstance(table.get(name), dict)}
    if len(full) == len(recipe.adapter):
        tables["adapter"] = table
    return [
        f"{section}.{key}: has no effect where all weights are trained (adapter.method = 'full')"
        for section, keys in tables.items()
        for key in Adapter.model_fields
        if key in keys and key not in {"method", "dropout"}
    ]


def _as_written(location: KeyPath, data: dict[str, Any], names: Sequence[str]) -> KeyPath:
    """Return the key of an error of pydantic as the file has it: in the table of both directions, or in that of one."""
    key = tuple(part for part in location if not (isinstance(part, str) and _UNION_MEMBER.fullmatch(part)))
    if len(key) < 2 or key[0] not in BY_DIRECTION or key[1] not in names:
        return key
    own = data[key[0]].get(key[1])
    return key if len(key) > 2 and isinstance(own, dict) and key[2] in own else (key[0], *key[2:])


def _explain(item: Any, key: KeyPath, directions: Sequence[str]) -> str:
    """Return what is wrong with a key, from an error of pydantic."""
    value = f"{item['input']!r}" if not isinstance(item["input"], dict | list) else "this table"
    if item["type"] == "missing":
        return "missing, and there is no default"
    if item["type"] != "extra_forbidden":
        return f"{value}: {item['msg'][0].lower()}{item['msg'][1:]}"
    if len(key) == 2 and key[0] in BY_DIRECTION and key[1] in directions:
        return f"{value}: a table wanted, [{key[0]}.{json.dumps(key[1])}]"
    # The names of its tables, without positions in lists and the name of a direction.
    tables = [part for part in key[:-1] if isinstance(part, str)]
    if tables[:1] and tables[0] in BY_DIRECTION and "-" in "".join(tables[1:2]):
        del tables[1]
    section: type[BaseModel] = Recipe
    for name in tables:
        if section is not TextSource:  # below `data.mono` a name is a language code
            section = section_in(section.model_fields[name].annotation) or section
    known = [*section.model_fields, *(directions if len(key) == 2 and key[0] in BY_DIRECTION else ())]
    return explain_unknown_key(".".join([*tables, str(key[-1])]), known)


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a type holds, as `Model` for `dict[str, Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for part in get_args(annotation) if (section := section_in(part))), None)


def _without(data: dict[str, Any], keys: Iterable[KeyPath]) -> dict[str, Any]:
    copy = deepcopy(data)
    for key in keys:
        table: Any = copy
        for part in key[:-1]:
            table = table.get(part) if isinstance(table, dict) else None
        if isinstance(table, dict):
            table.pop(key[-1], None)
    return copy


def _is_unicode(text: str) -> bool:
    """Return whether a text has no halves of surrogate pairs, which stand for other bytes on the command line."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _apply_override(data: dict[str, Any], override: str) -> None:
    if len(override) > MAX_BYTES or not _is_unicode(override):
        problem = f"more than {MAX_BYTES:,} characters, or bytes that are not UTF-8"
        raise RecipeError(
            f"{override[:40]!r}...: {problem}", place="--set", cure="put long values into the recipe file"
        )
    key, equals, text = override.partition("=")
    parts = [part.strip("\"'") for part in key.strip().split(".")]
    if not equals or not all(parts):
        cure = "write the key with its sections: --set train.lr=1e-4"
        raise RecipeError(f"'{override}' is not of the form key.path=value", place="--set", cure=cure)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    table = data
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            cure = "all keys are in docs/recipe-reference.md"
            raise RecipeError(f"'{key}': '{part}' is a value, not a table", place="--set", cure=cure)
    table[parts[-1]] = value
