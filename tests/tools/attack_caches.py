"""Damage in the cache: the next use is right, or makes the file again and logs it, or is refused; never silently wrong.

    python -m tests.tools.attack_caches --trials 500 --kills 60 --seed 1

Damages files of wheels, a converted model and tables of boundaries, one or two at a time; then, with `--kills`, kills
processes that convert a model. Prints counts as JSON; the first wrong result ends the command.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tqdm import tqdm

from roundtrip.models import gguf
from roundtrip.models.model_files import find_files
from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.runtime import downloads
from roundtrip.runtime.errors import RoundtripError
from roundtrip.tokens import compatibility
from roundtrip.tokens.prompt_segments import build_segments
from roundtrip.tokens.prompt_template import PromptTemplate
from tests.conftest import small_tokenizer, toy_pairs
from tests.models.test_gguf import tiny_llama, write_gguf
from tests.runtime.test_downloads import make_wheel, spec_of

MEMBERS = {f"words/{name}.po": f"{name} {name}\n" * 40 for name in ("es", "de", "fr")}
# What is damaged, by what uses it.
FILES = {
    "wheel": ("files/**/*", "files/*.json", "wheels/*/*"),
    "model": ("models/**/*", "models/*/*.safetensors"),
    "tables": ("tokens/*.json",),
}


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def attack_caches(seed: int, trials: int, work: Path) -> Counter[str]:
    """Damage files of a filled cache at random, use it, and return how often each outcome occurred, by what was used.

    Raises:
        AssertionError: something else than before was read, without a message or with one.
    """
    rng, counts = random.Random(seed), Counter[str]()
    cache, filled = work / "cache", work / "filled"
    messages = _Messages()
    logger = logging.getLogger("roundtrip")
    logger.addHandler(messages)
    wheel = make_wheel(work, MEMBERS)
    try:
        with (
            patch.dict(os.environ, {"ROUNDTRIP_CACHE": str(cache)}),
            patch.object(downloads, "_pip_download", lambda name, version, folder: shutil.copy(wheel, folder)),
            patch.object(os, "fsync", lambda handle: None),  # of the machine nothing is tested
        ):
            uses = _uses(cache, wheel, write_gguf(work / "tiny.gguf", tiny_llama()))
            expected = {kind: use() for kind, use in uses.items()}
            shutil.copytree(cache, filled)
            for number in range(trials):
                kind = rng.choices(list(uses), (6, 2, 4))[0]
                damage = _damage(cache, FILES[kind], rng)
                messages.texts.clear()
                try:
                    result = uses[kind]()
                except RoundtripError:
                    outcome = "refused"
                else:
                    assert result == expected[kind], (seed, number, damage, messages.texts)
                    outcome = "repaired" if messages.texts else "right"
                counts[f"{kind}: {outcome}"] += 1
                shutil.rmtree(cache)
                shutil.copytree(filled, cache)
    finally:
        logger.removeHandler(messages)
    return counts


def _uses(cache: Path, wheel: Path, model: Path) -> dict[str, Callable[[], Any]]:
    """Return functions that use a part of the cache, and return what they have read from it."""
    tokenizer, spec = small_tokenizer(), spec_of(wheel, "words/**/*.po")
    forward, reverse = (
        PromptTemplate(tokenizer, build_segments(tokenizer, TemplateRecipe(kind="plain"), *codes, ()))
        for codes in (("en", "es"), ("es", "en"))
    )
    options = compatibility.BuildOptions(num_attacks=20, cache_folder=cache / "tokens")

    def use_wheel() -> dict[str, str]:
        return {path.name: path.read_text() for path in downloads.resolve(spec, Path())}

    def use_model() -> dict[str, bytes]:
        folder = gguf.convert(model, cache)
        find_files(str(folder), None).digest()  # as `load` does, before it reads weights
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def use_tables() -> tuple[Any, ...]:
        builder, report = compatibility.build_row_builder(reverse, forward, toy_pairs()[::40], options)
        assert builder.tensors is not None
        tensors = {name: getattr(value, "tolist", lambda: None)() for name, value in vars(builder.tensors).items()}
        return report, tensors, builder.tensors.space

    return {"wheel": use_wheel, "model": use_model, "tables": use_tables}


def _damage(cache: Path, patterns: tuple[str, ...], rng: random.Random) -> list[str]:
    """Change one or two files, and return what was done; times stay, as where the disk itself fails."""
    done = []
    for _ in range(rng.choice((1, 1, 2))):
        path = rng.choice(sorted(path for path in cache.glob(rng.choice(patterns)) if path.is_file()))
        content, status = bytearray(path.read_bytes()), path.stat()
        position = rng.randrange(max(1, len(content)))
        how = rng.choice(("flip", "flip", "flip", "cut", "zero"))
        if how == "flip" and content:
            content[position] ^= 1 << rng.randrange(8)
        elif how == "cut":
            del content[position:]
        else:
            content[position : position + 512] = bytes(len(content[position : position + 512]))
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        done.append(f"{how} {path.relative_to(cache)} at {position}")
    return done


def kill_conversions(seed: int, kills: int, work: Path) -> Counter[str]:
    """Kill processes that convert a model, two at once, at random moments; each next conversion has to be right."""
    rng, counts = random.Random(seed), Counter[str]()
    tqdm.set_lock(threading.RLock())  # instead of one that is shared with processes that are killed
    model, cache = write_gguf(work / "tiny.gguf", tiny_llama()), work / "killed"
    gguf.convert(model, work / "first")  # which imports modules
    started = time.monotonic()
    folder = gguf.convert(model, work / "plain")
    duration = time.monotonic() - started
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    while counts["killed"] < kills:
        children = [_fork(lambda: gguf.convert(model, cache)) for _ in range(2)]
        time.sleep(rng.uniform(0, 3 * duration))
        for child in children:
            os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code in {0, -signal.SIGKILL}, code
            counts["killed" if code else "finished"] += 1
        counts["unfinished folders"] += len([*cache.glob("models/.*")])
        if rng.random() < 0.5:  # the others start where this one ended
            made = gguf.convert(model, cache)
            assert {path.name: path.read_bytes() for path in made.iterdir()} == expected
            assert not [*cache.glob("models/.*")], "a temporary file is left"
            shutil.rmtree(cache)
    return counts


def _fork(function: Callable[[], object]) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        function()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for attack, number in ((attack_caches, arguments.trials), (kill_conversions, arguments.kills)):
        with tempfile.TemporaryDirectory() as work:
            started = time.monotonic()
            counts = dict(sorted(attack(arguments.seed, number, Path(work)).items()))
            print(json.dumps(counts | {"seconds": round(time.monotonic() - started, 1)}, indent=1))


if __name__ == "__main__":
    main()
