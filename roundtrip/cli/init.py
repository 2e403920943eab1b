"""roundtrip init [FOLDER or FILES...]: looks at text files, and writes a recipe that trains on them."""

import argparse
import json
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from roundtrip.cli.app import ArgumentParser, run_cli
from roundtrip.recipe.schema import TextSource
from roundtrip.runtime.atomic_io import write_text
from roundtrip.runtime.errors import UsageError, quantity
from roundtrip.runtime.event_log import print_line

PARTS = ("train", "dev", "test", "mono")
# Sources of one part from which on those in one folder are named by a pattern.
MIN_PATTERN = 4
# Files that are not used and named, each with why.
MAX_UNUSED = 10
# Weights that a recipe of a beginner proposes from the disk, in bytes.
MAX_MODEL_BYTES = 8 << 30
# Pairs from which on figures were kept, see docs/quality.md and docs/small-data.md.
_QUALITY = {
    0: "Quality: without pairs nothing was measured here; a base that knows both languages is needed.",
    1: "Quality: nothing was measured with fewer than 500 pairs; see docs/small-data.md.",
    500: "Quality: with 500 pairs, 30 to 53 chrF++ were measured, -0.3 to 5.2 above pairs alone (docs/small-data.md).",
    1000: "Quality: with 1,000 pairs, 34 to 35 chrF++ were measured with models from scratch (docs/quality.md).",
    5000: "Quality: with 5,000 pairs, some 50 chrF++ were measured on dev with models from scratch (docs/quality.md).",
    20000: "Quality: with 28,900 pairs alone, 64 to 68 chrF++ were measured, models from scratch (docs/quality.md).",
}


def main() -> None:
    description = (
        "Look at a folder or at files, find out what they hold, and write a short recipe that trains on them. On a "
        "terminal it asks what it cannot know; elsewhere the options say it."
    )
    parser = ArgumentParser(prog="roundtrip init", description=description)
    add = parser.add_argument
    add("paths", nargs="*", type=Path, metavar="FOLDER or FILE", help="where the text is (default: this folder)")
    add("--languages", metavar="A,B", help="the two languages, as en,fr (default: those that the files hold)")
    for part in PARTS:
        what = "text of one language" if part == "mono" else "pairs" if part == "train" else f"pairs of the {part} set"
        add(f"--{part}", nargs="+", action="extend", default=[], type=Path, metavar="FILE", help=f"files of {what}")
    add("--model", help="a hub id, a folder or a .gguf file (default: what is on this machine, or SmolLM2-135M)")
    add("--device", default="auto", help="cpu, cuda, cuda:0, ... (default: auto)")
    add("--out", type=Path, metavar="RECIPE", help="the file to write (default: own.toml)")
    run_cli(_init, parser)


def _init(arguments: argparse.Namespace) -> None:
    console, asks = Console(), sys.stdin.isatty() and sys.stdout.isatty()
    out = arguments.out or Path(_ask("File to write", "own.toml") if asks else "own.toml")
    if out.suffix != ".toml":
        raise UsageError(f"'{out}' is not the name of a recipe", place="--out", cure=f"name it {out}.toml")
    if out.exists():
        raise UsageError(f"'{out}' exists, and is not overwritten", place="--out", cure="name another file")
    if not out.parent.is_dir():
        raise UsageError(f"no such folder: '{out.parent}'", place="--out", cure="make it first, or name another")
    from roundtrip.data import inspect_files
    from roundtrip.recipe.writing import RecipeDraft, recipe_text

    named = {path: part for part in PARTS for path in getattr(arguments, part)}
    folders = arguments.paths or ([] if named else [Path()])
    listed = inspect_files.list_files([*folders, *named])
    by_file = {path.resolve(): part for path, part in named.items()}
    texts, skipped = inspect_files.inspect_files({path: by_file.get(path.resolve()) for path in listed})
    if not texts:
        where = ", ".join(map(str, [*folders, *named]))
        reasons = "".join(f"\n  {reason}" for reason in skipped)
        raise UsageError(f"no files of text{reasons}", place=where, cure="name files, or a folder that has some")
    languages = _languages(arguments.languages, inspect_files.languages_of(texts), asks)
    sources, without_text = inspect_files.find_sources(texts, languages)
    for source in sources:
        shown = " + ".join(source.source.paths)
        noun = "line" if source.part.startswith("mono") else "pair"
        columns = f", columns {', '.join(map(str, source.source.columns))}" if source.source.columns else ""
        print_line(console, f"{source.part}: {shown}: {inspect_files.rows_in_words(source.num_rows, noun)}{columns}")
    unused = [*skipped, *without_text]
    for reason in unused[:MAX_UNUSED]:
        print_line(console, f"not used: {reason}")
    if len(unused) > MAX_UNUSED:
        print_line(console, f"not used: {quantity(len(unused) - MAX_UNUSED, 'more file')}")
    numbers = inspect_files.num_rows(sources)
    rounds, fewest = _rounds(languages, numbers)
    model, note, template = _model(arguments.model, folders, asks)
    by_part = {part: [each.source for each in sources if each.part == part] for part in numbers}
    if not rounds:
        by_part = {part: each for part, each in by_part.items() if not part.startswith("mono")}
    draft = RecipeDraft(
        languages=languages,
        model=model,
        model_note=note,
        template=template,
        sources={part: _compact(each, out.parent) for part, each in by_part.items()},
        rounds=rounds,
        monolingual_lines=fewest,
        device=arguments.device,
        notes=_notes(languages, numbers),
    )
    _write(out, recipe_text(draft, out))
    for line in _expectations(numbers, rounds, out):
        print_line(console, line)


def _ask(question: str, default: str) -> str:
    try:
        return input(f"{question} [{default}]: ").strip() or default
    except EOFError as error:
        raise UsageError("no answer", place=question, cure="give it as an option: roundtrip init --help") from error


def _languages(given: str | None, counts: dict[str, int], asks: bool) -> tuple[str, str]:
    """Return the two languages: those given, or the only two that files hold, or what a person answers."""
    codes = sorted(counts, key=lambda code: (code != "en", code))
    shown = ", ".join(f"{code} ({quantity(counts[code], 'file')})" for code in codes) or "none"
    if given is None and asks:
        given = _ask(f"The files hold: {shown}. The two languages", ",".join(codes[:2]))
    if given is None and len(codes) != 2:
        problem = f"two languages are needed, and the files hold: {shown}"
        raise UsageError(problem, place="--languages", cure="name two of them, as --languages en,fr")
    parts = [code.strip() for code in given.split(",")] if given is not None else codes
    if len(parts) != 2 or not all(parts):
        raise UsageError(f"two codes are needed: '{given}'", place="--languages", cure="as --languages en,fr")
    return parts[0], parts[1]


def _rounds(languages: tuple[str, str], numbers: dict[str, int]) -> tuple[int, int]:
    """Return the number of rounds, and of the lines that one takes; refuse what nothing can be trained on."""
    from roundtrip.data.corpora import MIN_PAIRS, MIN_PAIRS_ALONE, num_round_trip_lines

    pairs = numbers.get("train", 0)
    lines = {code: numbers.get(f"mono.{code}", 0) for code in languages}
    if all(lines.values()):
        fewest = min(lines.values())
        held_out = 0 if numbers.get("dev") or pairs >= MIN_PAIRS else num_round_trip_lines(fewest)
        return 2, min(1000, fewest - held_out)
    if not pairs or (pairs < MIN_PAIRS_ALONE and not numbers.get("dev")):
        held = ", ".join(f"{quantity(number, 'line')} of {code}" for code, number in lines.items())
        problem = f"too little to train on: {quantity(pairs, 'pair')}, {held}"
        cure = f"add {MIN_PAIRS_ALONE} pairs or more, or text of both languages; check --languages"
        raise UsageError(problem, cure=cure)
    return 0, 1


def _model(given: str | None, folders: Sequence[Path], asks: bool) -> tuple[str, str, str]:
    """Return a model, a comment on it, and the kind of its template."""
    proposals = _models_on_disk(folders) if given is None else []
    packaged = _packaged_model()
    proposal = proposals[0] if proposals else packaged
    if given is None and asks:
        others = "".join(f"\n  {path}" for path in proposals[1:6])
        answer = _ask(f"Model: a hub id, a folder or a .gguf file{others}", proposal.partition("#")[0])
        given = None if answer == proposal.partition("#")[0] else answer
    model = proposal if given is None else given
    if model == packaged:
        return model, "SmolLM2-135M out of a package; it knows English, and little else", "plain"
    path = Path(model).expanduser()
    if path.exists():
        model = str(path.resolve())
    elif model.endswith(".gguf") or model.startswith((".", "/", "~")):
        raise UsageError(f"no such model: '{model}'", place="--model", cure="check its spelling, or name a hub id")
    return model, "a hub id, a folder, or a .gguf file", "chat" if _has_chat_template(path, model) else "plain"


def _packaged_model() -> str:
    from roundtrip.recipe.loader import load_recipe

    return str(next(iter(load_recipe("quickstart").recipe.model.values())).path)


def _models_on_disk(folders: Sequence[Path]) -> list[str]:
    """Return models in the given folders, then in the cache of the hub, the largest that is not too large first."""
    models: list[tuple[int, str]] = []
    for folder in (folder for folder in folders if folder.is_dir()):
        models += [(file.stat().st_size, str(file)) for file in folder.glob("*.gguf")]
        for config in folder.glob("*/config.json"):
            models.append(
                (sum(file.stat().st_size for file in config.parent.glob("*.safetensors")), str(config.parent))
            )
    local = [name for size, name in sorted(models, reverse=True) if 0 < size <= MAX_MODEL_BYTES]
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = [repo for repo in scan_cache_dir().repos if repo.repo_type == "model"]
    except (CacheNotFound, OSError):
        cached = []
    usable = [
        (repo.size_on_disk, repo.repo_id)
        for repo in cached
        if repo.size_on_disk <= MAX_MODEL_BYTES
        and any(_is_causal(revision.snapshot_path) for revision in repo.revisions)
    ]
    return [*local, *(name for _, name in sorted(usable, reverse=True))]


def _is_causal(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        has_weights = any(folder.glob("*.safetensors"))
        return has_weights and any("CausalLM" in str(name) for name in config.get("architectures") or ())
    except (OSError, ValueError, AttributeError):
        return False


def _has_chat_template(path: Path, model: str) -> bool:
    """Return whether a model has a chat template, by its files, or the name of one that is not on the disk."""
    if not path.is_dir():
        return any(word in model.lower() for word in ("instruct", "chat", "-it")) and not model.endswith(".gguf")
    if (path / "chat_template.jinja").exists():
        return True
    try:
        return '"chat_template"' in (path / "tokenizer_config.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _compact(sources: Sequence[TextSource], folder: Path) -> list[TextSource]:
    """Return sources with a pattern in place of those that are all files of an ending in their folder."""
    compact: dict[str, TextSource] = {}
    by_folder: dict[Path, list[TextSource]] = {}
    for source in sources:
        if isinstance(source.path, str) and source.columns is None and source.format == "auto":
            by_folder.setdefault(Path(source.path).parent / f"*{Path(source.path).suffix}", []).append(source)
    for pattern, each in by_folder.items():
        if len(each) >= MIN_PATTERN and len(list(pattern.parent.glob(pattern.name))) == len(each):
            compact |= {str(source.path): TextSource(path=str(pattern)) for source in each}
    return list({str(new.path): new for new in (compact.get(str(each.path), each) for each in sources)}.values())


def _notes(languages: tuple[str, str], numbers: dict[str, int]) -> list[str]:
    """Return what the recipe does without, as comments of it."""
    from roundtrip.data.corpora import MIN_PAIRS

    notes = []
    if numbers.get("train") and not numbers.get("dev"):
        few = numbers["train"] < MIN_PAIRS and all(numbers.get(f"mono.{code}") for code in languages)
        chooses = "round trips of monolingual lines choose" if few else "a fifth of train is held out and chooses"
        notes.append(f"No dev pairs: {chooses} the best stage (docs/small-data.md).")
    if not numbers.get("test"):
        notes.append("No test pairs, so no test scores: name some as data.test.")
    missing = [code for code in languages if not numbers.get(f"mono.{code}")]
    if missing:
        lacking = " and ".join(missing)
        notes.append(
            f"No text of one language in {lacking}, so no back-translation: add [data.mono] of both languages,"
        )
        notes.append("and set rounds.count = 2.")
    return notes


def _write(out: Path, text: str) -> None:
    """Write a recipe, if it is valid."""
    from roundtrip.data.corpora import check_sources
    from roundtrip.recipe.loader import validate_recipe

    recipe, problems = validate_recipe(tomllib.loads(text), out.parent)
    if recipe is None:
        cure = "name two languages, files and a model that a recipe can have"
        raise UsageError("\n  - ".join(["this would be no valid recipe", *problems]), place=str(out), cure=cure)
    check_sources(recipe, out.parent)
    write_text(out, text)


def _expectations(numbers: dict[str, int], rounds: int, out: Path) -> list[str]:
    """Return what was written, what to expect, and what to type next."""
    pairs = numbers.get("train", 0)
    quality = [text for least, text in _QUALITY.items() if pairs >= least][-1]
    return [
        f"\nwrote {out}: {_rounds_in_words(rounds)}, {quantity(pairs, 'pair')} to train on",
        quality,
        "Time: 500 pairs and two rounds of 1,600 lines took 3 minutes with SmolLM2-135M on an H200 (docs/quality.md).",
        f"Time and memory on this machine, and what is in the text: roundtrip check {out}",
        f"Then: roundtrip train {out}",
    ]


def _rounds_in_words(rounds: int) -> str:
    return quantity(rounds, "round") if rounds else "no rounds, since text of one language is missing"
