"""COMET (https://aclanthology.org/2020.emnlp-main.213/), which cannot be installed beside transformers 5.

So it runs in an environment of its own, driven by files, by a model that lies on disk; nothing is fetched. A checkpoint
is a pickle: to load it is to run what its author wrote, which happens there, with the file that was named.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from roundtrip.runtime.errors import RecipeError

_WORKER = Path(__file__).with_name("comet_worker.py")
# COMET 2.2 asks for a torchmetrics that imports pkg_resources, which setuptools has no more.
_CURE = (
    "python3 -m venv comet && comet/bin/pip install unbabel-comet 'setuptools<81', then --comet-python comet/bin/python"
)
_NO_NETWORK = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class CometScores:
    """What COMET says of one system.

    Attributes:
        scores: of each line.
        mean: of all; 0 to 1 for the usual models, higher is better.
        signature: model and version.
    """

    scores: list[float]
    mean: float
    signature: str


def check(checkpoint: Path, python: str) -> None:
    """See whether COMET and its model are there, before any time is spent.

    Args:
        checkpoint, python: see `comet`.

    Raises:
        RecipeError: they are not.
    """
    if not checkpoint.is_file():
        raise RecipeError(
            "no such file", place=f"--comet {checkpoint}", cure="name the model.ckpt of a COMET model on disk"
        )
    # Not resolved: in the cache of the hub the file is a link, and only the link has its settings beside it.
    settings = checkpoint.absolute().parent.parent / "hparams.yaml"
    if not settings.is_file():
        raise RecipeError(
            f"there is no {settings}", place=f"--comet {checkpoint}", cure="keep the files of the model as published"
        )
    _ask(python, [], {})


def comet(
    sources: Sequence[str],
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    checkpoint: Path,
    python: str,
    device: str = "auto",
) -> dict[str, CometScores]:
    """Score systems by COMET.

    Args:
        checkpoint: file of the model (`.../checkpoints/model.ckpt`), its `hparams.yaml` one folder above its own.
        python: interpreter of the environment that has COMET.
        device: `cpu` keeps it off a GPU.

    Raises:
        RecipeError: COMET is not there, or it failed.
    """
    given = {"src": list(sources), "ref": list(references), "systems": {name: list(x) for name, x in systems.items()}}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.json", Path(folder) / "out.json"
        source.write_text(json.dumps(given), encoding="utf-8")
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        _ask(python, [str(source), str(target), str(checkpoint.absolute())], hidden)
        found = json.loads(target.read_text(encoding="utf-8"))
    for name, one in found["systems"].items():
        if len(one["scores"]) != len(sources):
            raise RecipeError(
                f"COMET gave {len(one['scores'])} scores for {len(sources)} lines of {name}",
                place=f"--comet-python {python}",
                cure="use unbabel-comet 2.2",
            )
    signature = f"model:{_name(checkpoint)}|version:{found['version']}"
    return {name: CometScores(one["scores"], one["mean"], signature) for name, one in found["systems"].items()}


def _ask(python: str, arguments: list[str], settings: Mapping[str, str]) -> None:
    command = [python, "-I", str(_WORKER), *arguments]
    environment = {**os.environ, **_NO_NETWORK, **settings}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    except OSError as error:
        raise RecipeError(f"{error.strerror}", place=f"--comet-python {python}", cure=_CURE) from error
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        cure = (
            "the encoder that hparams.yaml names (pretrained_model) has to be in the cache of the hub on this machine; "
            f"the last it said: {' | '.join(said[-3:])}"
        )
        raise RecipeError(
            f"COMET failed there: {said[-1]}",
            place=f"--comet-python {python}",
            cure=_CURE if "No module named" in said[-1] else cure,
        )


def _name(checkpoint: Path) -> str:
    """Return what others call a model: its id on the hub where it lies in the cache of the hub, else its folder."""
    folder = checkpoint.absolute().parent.parent
    cached = next((part for part in folder.parts if part.startswith("models--")), None)
    return folder.name if cached is None else cached.removeprefix("models--").replace("--", "/")
