"""Attacks on what is read: damage in what was written here, and hostile inputs of strangers.

    python -m tests.tools.attack --trials 2000 --hostile 500 --seed 1

damages files of finished runs, of exports and of the caches, a flipped bit or a truncation each time, and uses them:
the damage has to be named, or made good with a warning, or harmless, which means that results are as before. Hostile
model folders, tokenizers, chat templates, recipes, parquet and GGUF files have to be accepted or refused within 20
seconds and 1 GiB.
Prints counts as JSON; exit code 1 where anything was silent or failed otherwise. `--only PART` attacks one part.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from roundtrip.backtranslation import checkpoint, session, trained_models
from roundtrip.backtranslation.export import export
from roundtrip.backtranslation.reporting import show_if_finished
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.runtime.errors import RoundtripError
from roundtrip.runtime.event_log import EventLog
from tests.conftest import RECIPE, save_model, toy_pairs
from tests.runs import NAMES
from tests.tools.attack_caches import attack_caches
from tests.tools.attack_files import attack_gguf, attack_parquet
from tests.tools.attack_inputs import attack_recipes, attack_templates, attack_tokenizers
from tests.tools.attack_models import attack_models

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
    expected = {path: use(path) for path in files[:trials]}
    for trial in range(trials):
        path = files[trial % len(files)]
        with damaged(path, rng) as what:
            try:
                outcome = "harmless" if use(path) == expected[path] else "silent"
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
        texts: list[str] = []
        if name[0] == "base" or name[:2] == ("adapters", "best"):
            direction = name[2] if name[0] == "adapters" else NAMES[0]
            texts = trained_models.load_trained(run.path, direction, device="cpu").translate(["the dog sleeps"]).texts
        elif name[0] == "adapters":
            run.check_files(run.adapters / name[1] / name[2])
        assert show_if_finished(run, EventLog(Console(quiet=True)))
        return texts, run.manifest()

    return attack_files(run.path, use, seed, trials)


def attack_export(folder: Path, base: str | None, seed: int, trials: int, work: Path) -> Counter[str]:
    """Attack a copy of an exported direction through what loads it; the model card may be edited."""
    target = work / "attacked"
    shutil.copytree(folder, target)
    (target / trained_models.CARD).unlink()

    def use(path: Path) -> object:
        return trained_models.load_exported(target, "cpu", base).translate(["the dog sleeps"]).texts

    return attack_files(target, use, seed, trials)


def _make_run(work: Path, *replace: tuple[str, str]) -> Path:
    """Train the small recipe of the tests, with lines of it replaced."""
    save_model(work / "model")
    (work / "toy.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in toy_pairs()), encoding="utf-8")
    text = RECIPE
    for old, new in replace:
        assert old in text, old
        text = text.replace(old, new)
    (work / "small.toml").write_text(text.format(model=work / "model"), encoding="utf-8")
    session.train(work / "small.toml", work / "run")
    return work / "run"


_ADAPTER, _PATH = "rank = 4\ndropout = 0.1", 'path = "{model}"'
_FULL = [(_ADAPTER, 'method = "full"'), ("count = 1", "count = 0")]
_SCRATCH = "from_scratch = {{ vocab_size = 420, num_layers = 2, hidden_size = 48 }}"
_KINDS = {
    "full": _FULL,
    "from scratch": [*_FULL, (_PATH, _SCRATCH)],
    "pissa": [(_ADAPTER, 'method = "pissa"\nrank = 4'), (_PATH, f"shared = false\n{_PATH}")],
}


def _damage_kind(kind: str, seed: int, trials: int, work: Path) -> Counter[str]:
    return attack_run(_make_run(work, *_KINDS[kind]), seed, trials, work)


def _damage_run(seed: int, trials: int, work: Path) -> Counter[str]:
    return attack_run(_make_run(work), seed, trials, work)


def _damage_export(merged: bool, seed: int, trials: int, work: Path) -> Counter[str]:
    export(_make_run(work), "en-es", work / "export", merged=merged)
    return attack_export(work / "export", None if merged else str(work / "model"), seed, trials, work)


PARTS: dict[str, tuple[float, Callable[[int, int, Path], Any]]] = {
    # Share of the trials with damage, or of the hostile inputs.
    "run": (0.25, _damage_run),
    "full": (0.05, partial(_damage_kind, "full")),
    "from scratch": (0.05, partial(_damage_kind, "from scratch")),
    "pissa": (0.05, partial(_damage_kind, "pissa")),
    "adapter": (0.1, partial(_damage_export, False)),
    "merged": (0.1, partial(_damage_export, True)),
    "caches": (0.4, attack_caches),
    "models": (0.4, attack_models),
    "tokenizers": (0.15, attack_tokenizers),
    "templates": (0.15, attack_templates),
    "recipes": (0.1, attack_recipes),
    "parquet": (0.15, attack_parquet),
    "gguf": (0.05, attack_gguf),
}
_DAMAGE = ("run", "full", "from scratch", "pissa", "adapter", "merged", "caches")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=2000, help="files that are damaged")
    parser.add_argument("--hostile", type=int, default=500, help="hostile inputs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=PARTS)
    arguments = parser.parse_args()
    if arguments.only:
        share, attack_part = PARTS[arguments.only]
        number = round(share * (arguments.trials if arguments.only in _DAMAGE else arguments.hostile))
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as work:
            result = dict(attack_part(arguments.seed, number, Path(work)))
        print(json.dumps({"seconds": round(time.monotonic() - started, 1), **result}))
        return
    results = {}
    for part in PARTS:  # each in a process of its own, whose memory is limited
        command = [sys.executable, "-m", "tests.tools.attack", "--only", part, *sys.argv[1:]]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        results[part] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(results, indent=1))
    wrong = {key for result in results.values() for key in result if key == "silent" or key.startswith("not named")}
    sys.exit(bool(wrong) or any(result.get("faults") for result in results.values()))


if __name__ == "__main__":
    main()
