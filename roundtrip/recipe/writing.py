"""Writes a short commented recipe: only the keys that a person would change, each with what it does."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roundtrip.recipe.schema import TextSource
from roundtrip.runtime.errors import UsageError


@dataclass(frozen=True)
class RecipeDraft:
    """What a written recipe says; sources are by part: `train`, `dev`, `test`, and `mono.CODE`."""

    languages: tuple[str, str]
    model: str
    model_note: str
    template: str  # "chat" or "plain"
    sources: Mapping[str, Sequence[TextSource]]
    rounds: int
    monolingual_lines: int
    device: str = "auto"
    notes: Sequence[str] = field(default_factory=tuple)  # comments at the top


def recipe_text(draft: RecipeDraft, path: Path) -> str:
    """Return a recipe as TOML for the file `path`, from whose folder relative paths start."""
    folder = path.parent.resolve()
    lines = [f"# Trains {' and '.join(draft.languages)} in both directions:", "#"]
    lines += [f"#   roundtrip check {path.name}   what is in the text, how long it takes, what memory it needs"]
    lines += [f"#   roundtrip train {path.name}", "#"]
    lines += [f"# {note}" for note in (*draft.notes, "All keys: docs/recipe-reference.md.")]
    lines += ["", f"languages = {_value(list(draft.languages))}        # BCP 47 codes", "", "[model]"]
    lines += [f"# {draft.model_note}", f"path = {_value(draft.model)}"]
    if draft.device != "auto":
        lines.append(f"device = {_value(draft.device)}")
    if draft.template != "chat":
        lines += ["", "[template]", f"kind = {_value(draft.template)}   # continued text instead of a chat template"]
    lines += ["", "[data]   # paths start at the folder of this file"]
    comments = {
        "train": "pairs to train on",
        "dev": "pairs that choose the best stage of each direction",
        "test": "pairs for the final scores, never trained on",
    }
    for part, comment in comments.items():
        if sources := draft.sources.get(part):
            lines += [f"# {comment}", f"{part} = {_sources(sources, folder)}"]
    mono = {part.removeprefix("mono."): each for part, each in draft.sources.items() if part.startswith("mono.")}
    if mono:
        lines += ["", "[data.mono]   # text of one language, as much as there is"]
        lines += [f"{code} = {_sources(sources, folder)}" for code, sources in mono.items()]
    lines += ["", "[rounds]   # in a round both directions translate for each other and train on the result"]
    lines += [f"count = {draft.rounds}"]
    if draft.rounds:
        lines += [f"monolingual_lines = {draft.monolingual_lines}   # of each language in a round"]
    return "\n".join(lines) + "\n"


def _sources(sources: Sequence[TextSource], folder: Path) -> str:
    """Return sources as TOML: a string, a table, or an array of these, one a line."""
    texts = [_source(source, folder) for source in sources]
    return texts[0] if len(texts) == 1 else "[\n" + "".join(f"    {text},\n" for text in texts) + "]"


def _source(source: TextSource, folder: Path) -> str:
    paths = [_relative(Path(path), folder) for path in source.paths]
    path = _value(paths[0] if len(paths) == 1 else paths)
    keys = {"format": None if source.format == "auto" else source.format, "columns": source.columns}
    extra = "".join(f", {key} = {_value(value)}" for key, value in keys.items() if value is not None)
    return f"{{ path = {path}{extra} }}" if extra or len(paths) == 2 else path


def _relative(path: Path, folder: Path) -> str:
    path = path.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _value(value: object) -> str:
    """Return a text, a number or a list of these as TOML, whose strings are nearly those of JSON."""
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UsageError(f"the name of a file is not UTF-8: {text}", cure="rename it")
    return text
