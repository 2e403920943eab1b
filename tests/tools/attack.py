"""Attacks on what was written: single flipped bits and truncations in every file of a finished run and of an export.

Each trial damages one file and uses the folder; it has to be named, or harmless: the results are as before.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from roundtrip.backtranslation import checkpoint, trained_models
from roundtrip.backtranslation.reporting import show_if_finished
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.runtime.errors import RoundtripError
from roundtrip.runtime.event_log import EventLog

# Held by a process, and always empty.
_NOT_READ = {"lock"}


@contextmanager
def damaged(path: Path, rng: random.Random) -> Iterator[str]:
    """Flip a bit of a file, or truncate it, within a block; yields what was done."""
    content = path.read_bytes()
    if content and rng.random() < 0.8:
        position = rng.randrange(8 * len(content))
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
        what = f"bit {position}"
    else:
        size = rng.randrange(max(1, len(content)))
        path.write_bytes(content[:size])
        what = f"cut at {size}"
    try:
        yield what
    finally:
        path.write_bytes(content)


def attack_files(folder: Path, use: Callable[[Path], object], seed: int, trials: int) -> Counter[str]:
    """Damage files of a folder, each as often as the others, and use it: `named`, `harmless` or `silent`.

    Args:
        use: takes the damaged file, and returns all that depends on the folder, or raises a RoundtripError.
    """
    rng, outcomes = random.Random(seed), Counter[str]()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in _NOT_READ)
    for trial in range(trials):
        path = files[trial % len(files)]
        expected = use(path)
        with damaged(path, rng) as what:
            try:
                outcome = "harmless" if use(path) == expected else "silent"
            except RoundtripError as error:
                outcome = "named" if path.name in str(error) else f"not named: {error}"
        outcomes[outcome] += 1
        if outcome not in {"named", "harmless"}:
            print(f"{path}: {what}: {outcome}")
    return outcomes


def attack_run(run_dir: Path, seed: int, trials: int, work: Path) -> Counter[str]:
    """Attack a copy of a finished run through whatever reads the damaged file."""
    shutil.copytree(run_dir, work / "attacked", dirs_exist_ok=True)
    run = RunFolder(work / "attacked")

    def use(path: Path) -> object:
        name = path.relative_to(run.path).parts
        if name[0] == "checkpoints":
            try:
                return checkpoint.load(path.parent)[0]
            except (OSError, ValueError) as error:
                raise RoundtripError(str(error)) from error
        if name[0] == "adapters":
            run.check_files(run.adapters / name[1] / name[2])
        assert show_if_finished(run, EventLog(Console(quiet=True)))
        return run.manifest()

    return attack_files(run.path, use, seed, trials)


def attack_export(folder: Path, base: str | None, seed: int, trials: int, work: Path) -> Counter[str]:
    """Attack a copy of an exported direction through what loads it; the model card may be edited."""
    target = work / "attacked"
    shutil.copytree(folder, target)
    (target / trained_models.CARD).unlink()

    def use(path: Path) -> object:
        return trained_models.load_exported(target, "cpu", base).translate(["the dog sleeps"]).texts

    return attack_files(target, use, seed, trials)
