"""Whole runs in this process, the command line in another process, and the results of a run."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from roundtrip.backtranslation import session
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.recipe import loader
from roundtrip.runtime.event_log import EventLog
from roundtrip.runtime.integrity import read_hashed_json, write_hashed_json

NAMES = ["en-es", "es-en"]


def go(
    path: Path,
    out: Path,
    *,
    resume: bool = False,
    overrides: tuple[str, ...] = (),
    on_evaluation: Callable[[RunFolder], object] | None = None,
) -> str:
    """Run a recipe in this process and return what was shown."""
    shown = io.StringIO()
    loaded = loader.load_recipe(str(path), overrides)
    events = EventLog(Console(file=shown, width=160))
    session.train(loaded, out, resume=resume, events=events, on_evaluation=on_evaluation)
    return shown.getvalue()


def run_module(*arguments: str, stdin: str | None = None, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m` with arguments in another process."""
    return subprocess.run(
        [sys.executable, "-m", *arguments], input=stdin, capture_output=True, text=True, timeout=300, **settings
    )


def change_json(path: Path, /, **keys: Any) -> None:
    """Set keys of a JSON file that has its own hash, or remove those that are None; the hash is that of the result."""
    document = read_hashed_json(path) | keys
    write_hashed_json(path, {key: value for key, value in document.items() if value is not None})


def end_state(folder: Path) -> dict[str, Any]:
    """Return all that two runs must agree on to be the same run."""
    metrics = json.loads((folder / "metrics.json").read_text())
    tensors = {
        str(path.relative_to(folder)): load_file(path) for path in sorted(folder.glob("adapters/**/*.safetensors"))
    }
    examples = {path.name: path.read_text() for path in sorted((folder / "examples").iterdir())}
    return {
        "tensors": tensors,
        "examples": examples,
        **{k: metrics[k] for k in ("dev", "test", "best", "steps", "samples", "token_rows")},
    }


def read_events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind, in order."""
    events = map(json.loads, (folder / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return [event for event in events if event["event"] == kind]


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["tensors"].keys() == other["tensors"].keys()
    for name, tensors in one["tensors"].items():
        for key, value in tensors.items():
            assert torch.equal(value, other["tensors"][name][key]), f"{name} {key}"
    assert {k: v for k, v in one.items() if k != "tensors"} == {k: v for k, v in other.items() if k != "tensors"}
