"""Translates files: reads them all, translates what they need, and writes each as a whole."""

import argparse
import hashlib
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from roundtrip import __version__
from roundtrip.backtranslation import trained_models
from roundtrip.backtranslation.dev_scoring import search_settings
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.cli.file_plan import Plan
from roundtrip.data.documents.document import Document, Request
from roundtrip.data.documents.formats import read_document
from roundtrip.engine.checked_translation import CheckedTranslation, back_translations, translate_checked
from roundtrip.engine.document_translation import (
    CHUNK_TEXTS,
    CHUNK_TEXTS_GPU,
    TranslatedDocument,
    TranslationCache,
    texts_of,
    translate_document,
    translate_texts,
)
from roundtrip.engine.request import Callbacks
from roundtrip.engine.translator import Translator
from roundtrip.recipe.plan import Direction
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.atomic_io import atomic_path, remove_path
from roundtrip.runtime.disk_space import report_full_disk
from roundtrip.runtime.errors import Interrupted, TextError, UsageError, quantity
from roundtrip.runtime.event_log import EventLog, ProgressHandle
from roundtrip.runtime.integrity import file_hash

# Units that are named with the reason why they were left alone; all are counted.
MAX_LISTED = 100


def translate_files(arguments: argparse.Namespace, plan: Plan, run: RunFolder) -> None:
    """Translate files; what is finished is kept beside the output until all are written."""
    direction = trained_models.direction_into(run, arguments.to)
    settings, events = search_settings(run.recipe()), EventLog(Console(stderr=True))
    key = _key(run, direction, settings, arguments)
    cache = TranslationCache(plan.cache(key), key)
    cache.read()
    identities = {output: _identity(path, output, arguments) if cache.written else "" for path, output in plan.files}
    files = [(path, output) for path, output in plan.files if identities[output] not in cache.written]
    existing = [output for _, output in files if output.exists()]
    if existing and not (arguments.in_place or arguments.force):
        raise UsageError("exists already", place=str(existing[0]), cure="name another output, or add --force")
    documents, refused = _read_all(files, direction, arguments)
    if len(plan.files) == 1 and refused:
        raise refused[0]
    models = Models(arguments, run, direction)
    try:
        for path, output in plan.files:
            if (texts := cache.written.get(identities[output])) is not None:
                events.say(f"{path} -> {output}: complete before")
                if arguments.explain:
                    explain(models, [(text, cache.known[text].text) for text in texts], settings)
        _translate_all(documents, models, settings, cache, events)
    except KeyboardInterrupt:
        kept = f"what is finished is kept in {cache.path}" if cache.path.exists() else "nothing is finished yet"
        cure = f"repeat the same command to continue: {kept}"
        raise Interrupted(signal.SIGINT, cure) from None
    remove_path(cache.path)
    for error in refused:
        events.say(f"left alone: {error}")
    if refused:
        problem = f"{len(refused)} of {quantity(len(plan.files), 'file')} could not be read"
        raise TextError(problem, place=str(arguments.paths[0]), cure="what is wrong with each of them stands above")


def _key(run: RunFolder, direction: Direction, settings: Generate, arguments: argparse.Namespace) -> str:
    """Return the hash of all that translations depend on."""
    # The other direction selects samples.
    names = [direction.name, *([direction.reverse.name] if arguments.samples else [])]
    weights = run.recorded(*(run.adapters / arguments.stage / name for name in names))
    parts = [__version__, weights, run.manifest().base_hashes, names, settings.model_dump(), arguments.samples]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_all(
    files: Sequence[tuple[Path, Path]], direction: Direction, arguments: argparse.Namespace
) -> tuple[list[tuple[Document, Path]], list[TextError]]:
    """Return the documents with their outputs, and what is wrong with those that cannot be read."""
    source, target = (
        int(name) if name and name.isdecimal() else name for name in (arguments.from_column, arguments.to_column)
    )
    request = Request(direction.source, direction.target, source, target, mark=not arguments.no_mark)
    documents, refused = [], []
    for path, output in files:
        try:
            documents.append((read_document(path, request), output))
        except TextError as error:
            refused.append(error)
    return documents, refused


class Models:
    """The directions of a run that a command needs, which are loaded when one is first used, on one base."""

    def __init__(self, arguments: argparse.Namespace, run: RunFolder, direction: Direction) -> None:
        self.arguments, self._run, self.direction = arguments, run, direction
        self._loaded: dict[str, Translator] = {}

    def get(self, direction: Direction) -> Translator:
        if not self._loaded:
            needs_both = self.arguments.samples or self.arguments.explain
            wanted = [self.direction, self.direction.reverse] if needs_both else [self.direction]
            stage, device = self.arguments.stage, self.arguments.device
            self._loaded = trained_models.load_directions(self._run, wanted, stage, device)
        return self._loaded[direction.name]


def _translate_all(
    documents: Sequence[tuple[Document, Path]],
    models: Models,
    settings: Generate,
    cache: TranslationCache,
    events: EventLog,
) -> None:
    """Translate what documents need, and write each as soon as it is complete; say what became of them."""
    arguments, direction = models.arguments, models.direction
    needed = [texts_of(document, arguments.retranslate) for document, _ in documents]
    missing = {text for texts in needed for text in texts if text not in cache.known}
    # Loaded before the time of the task begins.
    on_gpu = bool(missing) and models.get(direction).base.device.type == "cuda"
    chunk_texts = CHUNK_TEXTS_GPU if on_gpu else CHUNK_TEXTS
    shown, left_alone = list[str](), list[str]()
    with events.task("generating", direction.name, len(missing)) as task:
        translate = _translation(models, settings, task)
        for (document, output), texts in zip(documents, needed, strict=True):
            translate_texts(texts, translate, cache, chunk_texts)
            result = translate_document(document, cache.known, arguments.retranslate, keep_broken=arguments.keep_broken)
            _write(document, output, result)
            written = _identity(document.path, output, arguments)
            cache.add([["written", written, *(text for text, _ in result.pairs)]])
            if arguments.explain:
                explain(models, result.pairs, settings)
            shown.append(f"{document.path} -> {output}: {_summary(result)}")
            left_alone += [f"{document.path}:{line}: left as it is: {reason}" for line, reason in result.left_alone]
    for text in [*left_alone[:MAX_LISTED], *shown]:
        events.say(text)
    if len(left_alone) > MAX_LISTED:
        events.say(f"... and {len(left_alone) - MAX_LISTED} more that were left as they are")


def _translation(
    models: Models, settings: Generate, task: ProgressHandle
) -> Callable[[list[str]], list[CheckedTranslation]]:
    """Return what translates a chunk of texts and shows the progress."""

    def translate(texts: list[str]) -> list[CheckedTranslation]:
        end, samples = task.done + len(texts), models.arguments.samples
        # Long texts are several prompts.
        callbacks = Callbacks(lambda prompts, tokens: task.advance(min(prompts, end - task.done), tokens))
        forward = models.get(models.direction)
        reverse = models.get(models.direction.reverse) if samples else None
        results = translate_checked(forward, texts, settings, reverse, samples, callbacks)
        task.advance(end - task.done)
        return results

    return translate


def _identity(path: Path, output: Path, arguments: argparse.Namespace) -> str:
    """Return what names an output that is complete: as long as it and its input stay as they are, for this command."""
    names = ("retranslate", "no_mark", "keep_broken", "from_column", "to_column")
    stat, digest = path.stat(), file_hash(output) if output.is_file() else None
    settings = [getattr(arguments, name) for name in names]
    return json.dumps([str(output.absolute()), digest, stat.st_mtime_ns, stat.st_size, *settings])


def _write(document: Document, output: Path, result: TranslatedDocument) -> None:
    data = document.write(result.translations)
    # Not a link itself, which would be replaced.
    output = output.resolve()
    if not result.translations and output == document.path.resolve():
        return
    cure = "free disk space and repeat the command, which continues where it was"
    with report_full_disk(output, len(data), cure), atomic_path(output) as temporary:
        temporary.write_bytes(data)


def _summary(result: TranslatedDocument) -> str:
    parts = [f"{quantity(len(result.translations), 'text')} translated"]
    if result.num_kept:
        parts.append(f"{result.num_kept} translated before")
    if result.left_alone:
        parts.append(f"{len(result.left_alone)} left as they are")
    return ", ".join(parts)


def explain(models: Models, pairs: Sequence[tuple[str, str]], settings: Generate) -> None:
    """Print each source and translation with its translation back and the chrF of that, as columns or JSON lines."""
    reverse, is_json = models.get(models.direction.reverse), models.arguments.explain == "json"
    for (source, translation), (back, chrf) in zip(pairs, back_translations(reverse, pairs, settings), strict=True):
        row = {"source": source, "translation": translation, "back": back, "chrf": round(chrf, 1)}
        line = json.dumps(row, ensure_ascii=False) if is_json else "\t".join(map(str, row.values()))
        sys.stdout.buffer.write(line.encode("utf-8") + b"\n")
    sys.stdout.buffer.flush()
