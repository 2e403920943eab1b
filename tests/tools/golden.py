"""The recorded losses of two small runs, with the environment that they were recorded in.

    python -m tests.tools.golden

records them into tests/golden/losses.json, and refuses while the tree has uncommitted changes: figures that nobody can
reproduce prove nothing. `tests/system/test_golden.py` compares them with a new run: exactly on the same versions and
kind of processor, else within TOLERANCE.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import processor
from roundtrip.backtranslation.run_folder import versions
from roundtrip.runtime.errors import RunError
from tests import ROOT

PATH = ROOT / "tests" / "golden" / "losses.json"
# Relative, on another machine or version; between AVX2 and AVX-512 the difference is less than a tenth of it.
TOLERANCE = 1e-3
# The runs by name, as changes of the recipe of the tests.
RUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "steps": (),
    "full, dropout": (("[model]\n", "[model]\nshared = false\n"), ("rank = 4\n", 'method = "full"\n')),
}
STEPS = ("direction", "step", "loss", "grad_norm", "labels", "tokens")


def environment() -> dict[str, Any]:
    """Return what the last bits of a loss depend on."""
    kept = {
        name: value for name, value in versions().items() if name in {"torch", "transformers", "peft", "tokenizers"}
    }
    kind = f"{processor()}, {torch.backends.cpu.get_cpu_capability()}"
    return kept | {"processor": kind, "threads": 1}


def losses(folder: Path, name: str) -> list[dict[str, Any]]:
    """Run the small recipe of the tests in a folder, as one of `RUNS`, on one thread, and return its steps."""
    from tests.conftest import RECIPE, save_model, toy_pairs
    from tests.runs import go

    text = RECIPE.format(model=folder / "model")
    for old, new in RUNS[name]:
        assert old in text
        text = text.replace(old, new)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        save_model(folder / "model")
        (folder / "toy.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in toy_pairs()), encoding="utf-8")
        (folder / "small.toml").write_text(text, encoding="utf-8")
        go(folder / "small.toml", folder / "run")
    finally:
        torch.set_num_threads(before)
    events = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    return [{key: event[key] for key in STEPS} for event in events if event["event"] == "step"]


def refuse_dirty(root: Path) -> str:
    """Return the commit of a tree.

    Raises:
        RunError: the tree has uncommitted changes.
    """
    changes = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    if changes.stdout.strip():
        raise RunError(
            f"the tree has changes: {changes.stdout.split()[1]} and perhaps more",
            place=str(root),
            cure="commit them first; golden figures are those of a commit",
        )
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    return head.stdout.strip()


def main() -> None:
    commit = refuse_dirty(ROOT)
    document: dict[str, Any] = {"commit": commit, "environment": environment()}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            document[name] = losses(Path(folder), name)
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(len(document[name]) for name in RUNS)} steps of {commit[:12]} written to {PATH}")


if __name__ == "__main__":
    main()
