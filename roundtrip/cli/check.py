"""python -m roundtrip check RECIPE: which road its rows may take from one model to the other, and why."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from roundtrip.cli.app import run_cli
from roundtrip.recipe import loader
from roundtrip.runtime.errors import ModelError
from roundtrip.runtime.event_log import EventLog

if TYPE_CHECKING:
    from roundtrip.data.corpora import Corpora
    from roundtrip.recipe.schema import Recipe


# Real pairs whose length the memory is forecast by.
_PAIRS = 5000


def main() -> None:
    """The door."""
    parser = argparse.ArgumentParser(
        prog="python -m roundtrip check",
        description="Say whether generated ids may become training rows without going through text, and why not.",
    )
    parser.add_argument("recipe", help="a recipe file, or the name of a shipped recipe such as 'quickstart'")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change a key, e.g. template.kind=chat"
    )
    parser.add_argument("--json", action="store_true", help="write the verdicts to standard output as JSON")
    run_cli(_work, parser)


def _work(arguments: argparse.Namespace) -> None:
    loaded = loader.load(arguments.recipe, arguments.set)
    events = EventLog(Console(stderr=arguments.json))
    loader.forbid_unused_hub(loaded.recipe, loaded.folder)
    # Seconds of imports, for which nobody should wait to read about a typo.
    from roundtrip.backtranslation import row_builders
    from roundtrip.backtranslation.forecast import forecast
    from roundtrip.backtranslation.validation import parallel_texts
    from roundtrip.data.corpora import prepare
    from roundtrip.engine.translator import templates as templates_of
    from roundtrip.models import base_model
    from roundtrip.recipe.plan import directions

    recipe = loaded.recipe
    with tempfile.TemporaryDirectory() as scratch, events.task("reading", "reading text", 0):
        corpora = prepare(recipe, loaded.folder, Path(scratch), lambda text: None)
        samples = {
            d.name: list(zip(*parallel_texts(corpora, recipe, "dev", d), strict=True)) for d in directions(recipe)
        }
        pairs = [(source, target) for source, target in corpora.train[:_PAIRS]]
        both_ways = (pairs, [(target, source) for source, target in pairs])
        learnt = {d.name: samples[d.name] + rows for d, rows in zip(directions(recipe), both_ways, strict=True)}
        tokenizers = {d.name: _tokenizer(recipe, d.name, loaded.folder, corpora) for d in directions(recipe)}
    both = {d.name: templates_of(recipe, d, *tokenizers[d.name]) for d in directions(recipe)}
    templates = {name: one.real for name, one in both.items()}
    learners = {name: one.synthetic for name, one in both.items()}
    devices = {name: base_model.choose_device(spec.device) for name, spec in recipe.model.items()}
    _, verdicts = row_builders.find(recipe, templates, learners, samples, devices, events)
    memory, why = None, ""
    try:
        memory = forecast(recipe, loaded.folder, templates, learnt)
    except ModelError as error:
        why = f"{error.place}: {error.problem}"
    if arguments.json:
        document: dict[str, Any] = {name: found.to_dict() for name, found in verdicts.items()}
        document["memory"] = {"reason": why} if memory is None else {"peak_bytes": memory.peak} | asdict(memory)
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
        return
    for name, found in verdicts.items():
        row_builders.show(events, name, found)
        row_builders.show_examples(events, found)
    events.say(why if memory is None else str(memory))


def _tokenizer(recipe: Recipe, name: str, folder: Path, corpora: Corpora) -> tuple[Any, tuple[int, ...]]:
    """Return the tokenizer of a direction and what its model ends at; one from scratch is trained."""
    from roundtrip.models import base_model, from_scratch

    spec = recipe.model[name]
    if spec.from_scratch is None:
        return base_model.load_tokenizer(spec, folder)
    tokenizer = from_scratch.train_tokenizer(corpora.all_text(), spec.from_scratch.vocab_size)
    return tokenizer, (tokenizer.eos_token_id,)
