"""Finding, reading and judging recipe files: all problems come in one error, each with its place and a cure."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import langcodes
from pydantic import BaseModel, ValidationError

from roundtrip.errors import RecipeError, SourceError
from roundtrip.recipe import Recipe, TextSource
from roundtrip.sources import parse_pypi, resolve

_PACKAGE = Path(__file__).parent
# In the wheel the shipped recipes lie inside the package, in a checkout beside it.
SHELVES = (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")


@dataclass(frozen=True)
class Loaded:
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


def load(name: str, overrides: Sequence[str] = ()) -> Loaded:
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
    recipe, problems = judge(data, path.parent)
    if problems or recipe is None:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise RecipeError(f"{count} in this recipe\n" + "\n".join(f"  - {p}" for p in problems), place=str(path))
    return Loaded(recipe, path, text, tuple(overrides))


def judge(data: dict[str, Any], folder: Path) -> tuple[Recipe | None, list[str]]:
    """Return the recipe (None where it has no sound shape) and every problem in it, as text."""
    recipe, problems = _shape(data)
    if recipe is None:
        # Judge what is left without the broken keys, so that one run shows everything.
        recipe, _ = _shape(_without(data, problems))
    texts = [f"{'.'.join(map(str, place))}: {text}" for place, text in problems]
    if recipe is not None:
        texts += combination_problems(recipe)
        texts += path_problems(recipe, folder)
    return (None if texts else recipe), texts


def combination_problems(recipe: Recipe) -> list[str]:
    """Name the keys that are sound by themselves and impossible together."""
    problems: list[str] = []
    codes = recipe.languages
    unknown = [code for code in codes if not _is_language(code)]
    problems += [f"languages: '{code}' is not a language code; use BCP 47 such as 'en', 'pt-BR'" for code in unknown]
    if not unknown and langcodes.standardize_tag(codes[0]) == langcodes.standardize_tag(codes[1]):
        problems.append(f"languages: '{codes[0]}' and '{codes[1]}' are the same language; name two")
    data = recipe.data
    named = [key for key in ("train", "dev", "test", "mono") if getattr(data, key)]
    if data.cut is not None and named:
        problems.append(
            f"data.cut: excludes {', '.join(f'data.{k}' for k in named)}; the cut makes all parts from one corpus"
        )
    if not recipe.rounds.number and not recipe.train.parallel_passes:
        problems.append("rounds.number: 0 rounds and 0 train.parallel_passes train nothing")
    if data.cut is not None and not recipe.rounds.number and not data.cut.train:
        problems.append("data.cut.train: 0 pairs and 0 rounds train nothing")
    if data.cut is not None and not data.cut.corpus:
        problems.append("data.cut.corpus: no source given")
    if data.cut is None:
        problems += [f"data.{key}: nothing given; needed for scores" for key in ("dev", "test") if key not in named]
        if not data.train and not recipe.rounds.number:
            problems.append("data.train: nothing to train on, and rounds.number is 0")
        for code in codes:
            if recipe.rounds.number and not data.mono.get(code):
                problems.append(f"data.mono: no '{code}'; both languages need text, or set rounds.number = 0")
        problems += [
            f"data.mono.{code}: not one of the languages {codes[0]}, {codes[1]}"
            for code in data.mono
            if code not in codes
        ]
    if data.filter.max_words is not None and data.filter.max_words < data.filter.min_words:
        problems.append(f"data.filter.max_words: {data.filter.max_words} is below min_words {data.filter.min_words}")
    if recipe.train.max_row_tokens > recipe.train.tokens_per_forward:
        problems.append(
            f"train.max_row_tokens: {recipe.train.max_row_tokens} does not fit into "
            f"train.tokens_per_forward {recipe.train.tokens_per_forward}"
        )
    if recipe.generate.temperature == 0 and (recipe.generate.top_p < 1 or recipe.generate.top_k):
        problems.append("generate: top_p and top_k do nothing at temperature 0; set generate.temperature")
    template = recipe.template
    fields = template.text if template.kind == "plain" else template.instruction
    needed = ["{source}", "{target}"] if template.kind == "plain" else ["{source}"]
    key = "template.text" if template.kind == "plain" else "template.instruction"
    for field in needed:
        if fields.count(field) != 1:
            problems.append(f"{key}: needs {field} exactly once, has it {fields.count(field)} times")
    known = {
        "source_language",
        "target_language",
        "source",
        *(["target"] if template.kind == "plain" else []),
    }
    for field in re.findall(r"\{(\w*)\}", fields):
        if field not in known:
            problems.append(f"{key}: unknown field {{{field}}}{_did_you_mean(field, known)}")
    foreign = {"instruction", "system"} if template.kind == "plain" else {"text"}
    for name in sorted(foreign & template.model_fields_set):
        problems.append(f"template.{name}: a {template.kind} template does not use it")
    for field in re.findall(r"\{(\w*)\}", template.system or ""):
        if field not in {"source_language", "target_language"}:
            problems.append(f"template.system: unknown field {{{field}}}")
    if template.kind == "plain" and fields.rstrip()[-8:] != "{target}":
        problems.append("template.text: must end with {target}; the end token follows it")
    tokens = recipe.tokens
    if tokens.strict and tokens.road == "strings":
        problems.append("tokens.strict: asks that no row goes by strings, and tokens.road sends every row there")
    if tokens.road == "strings":
        unused = sorted({"guard", "audit"} & tokens.model_fields_set)
        problems += [f"tokens.{name}: does nothing where tokens.road sends every row by strings" for name in unused]
    if tokens.strict and tokens.guard == "device":
        problems.append("tokens.strict: proves every row on the host; set tokens.guard to 'auto' or 'host'")
    for language in recipe.score.bleu_tokenize:
        if language not in codes:
            problems.append(f"score.bleu_tokenize.{language}: not one of the languages {codes[0]}, {codes[1]}")
    for key, source, num_languages in recipe.sources():
        problems += [f"{key}: {text}" for text in _source_problems(source, num_languages)]
    return problems


def _is_language(code: str) -> bool:
    # A code becomes part of file and adapter names.
    return re.fullmatch(r"[A-Za-z0-9-]+", code) is not None and bool(langcodes.tag_is_valid(code))


def _source_problems(source: TextSource, num_languages: int) -> list[str]:
    problems = []
    if isinstance(source.path, tuple) and num_languages == 1:
        problems.append(f"two files {list(source.path)} where one language is wanted")
    if source.columns is not None and len(source.columns) != num_languages:
        problems.append(f"columns {list(source.columns)}: {num_languages} wanted, one a language")
    hub = isinstance(source.path, str) and source.path.startswith("hf:")
    if not hub and {"subset", "split"} & source.model_fields_set:
        problems.append("subset and split: only a path hf:DATASET has them")
    if source.format == "datasets" and not hub:
        problems.append("format 'datasets': the path must be hf:DATASET")
    tables = ("tsv", "tab", "csv", "jsonl", "ndjson", "parquet")
    endings = str(source.path).removesuffix(".gz").rpartition(".")[2].lower()
    if not (hub or source.format in tables or (source.format == "auto" and endings in tables)):
        unused = sorted({"columns", "header"} & source.model_fields_set)
        problems += [f"{key}: only tables have it, {source.path} is none" for key in unused]
    return problems


def path_problems(recipe: Recipe, folder: Path) -> list[str]:
    """Name the local files that are not there and the specs without form; what is remote is tried when fetched."""
    specs = [
        (key, spec)
        for key, source, _ in recipe.sources()
        for spec in ((source.path,) if isinstance(source.path, str) else source.path)
        if not spec.startswith("hf:")
    ]
    if recipe.model.path.startswith(("pypi:", ".", "/", "~")) or recipe.model.path.endswith(".gguf"):
        specs.append(("model.path", recipe.model.path))
    problems = []
    for key, spec in specs:
        try:
            parse_pypi(spec) if spec.startswith("pypi:") else resolve(spec, folder)
        except SourceError as error:
            problems.append(f"{key}: {error.problem}; {error.cure} (seen from {error.place})")
    return problems


def _did_you_mean(word: str, known: Sequence[str] | set[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), 1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known))}"


Place = tuple[str | int, ...]


def _shape(data: dict[str, Any]) -> tuple[Recipe | None, list[tuple[Place, str]]]:
    try:
        # Through JSON, since only there does pydantic's strict mode take an array for a tuple.
        return Recipe.model_validate_json(json.dumps(data, default=str)), []
    except ValidationError as error:
        found = {}
        for item in error.errors():
            place = tuple(part for part in item["loc"] if not _is_type_name(part))
            found[place] = _explain(item, place)
        return None, list(found.items())


def _is_type_name(part: str | int) -> bool:
    """Pydantic adds the member of a union (`str`, `tuple[...]`) to the place; a person wrote no such key."""
    return isinstance(part, str) and (part in {"str", "int"} or part.startswith(("tuple[", "literal[", "function-")))


def _explain(item: Any, place: Place) -> str:
    value = f"{item['input']!r}" if not isinstance(item["input"], dict | list) else "this table"
    if item["type"] == "extra_forbidden":
        section = _section(place[:-1])
        names = list(section.model_fields) if section else []
        return f"unknown key{_did_you_mean(str(place[-1]), names)}"
    if item["type"] == "missing":
        return "missing, and there is no default"
    return f"{value}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _section(place: Place) -> type[BaseModel] | None:
    """Return the model that describes the table at a place."""
    section: Any = Recipe
    for part in place:
        if isinstance(part, int):
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
    parts = key.strip().split(".")
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
