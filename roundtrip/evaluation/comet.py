"""COMET (https://aclanthology.org/2020.emnlp-main.213/), which cannot be installed beside transformers 5.

It therefore runs in an environment of its own, through files, with a model that lies on disk; nothing is downloaded. A
checkpoint is a pickle: loading it runs what its author wrote, in that environment.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from roundtrip.runtime.errors import RecipeError

_WORKER = Path(__file__).with_name("comet_worker.py")
# COMET 2.2 requires a torchmetrics that imports pkg_resources, which later versions of setuptools lack.
_CURE = (
    "python3 -m venv comet && comet/bin/pip install unbabel-comet 'setuptools<81', then --comet-python comet/bin/python"
)
_ENCODER = "the encoder that hparams.yaml names (pretrained_model) must be in the cache of the hub on this machine"
_NO_NETWORK = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class CometModel:
    """A COMET model, and the interpreter of the environment that has COMET."""

    checkpoint: Path  # `.../checkpoints/model.ckpt`, with `hparams.yaml` one folder above its own
    python: str
    device: str = "auto"  # `cpu` hides the GPUs from it

    @property
    def hparams(self) -> Path:
        # Not resolved: in the cache of the hub the file is a link, and only the link has its settings beside it.
        return self.checkpoint.absolute().parent.parent / "hparams.yaml"

    @property
    def name(self) -> str:
        """Its id on the hub if it lies in the cache of the hub, else the name of its folder."""
        folder = self.hparams.parent
        cached = next((part for part in folder.parts if part.startswith("models--")), None)
        return folder.name if cached is None else cached.removeprefix("models--").replace("--", "/")


def check(model: CometModel) -> None:
    """Refuse a COMET or a model that is not there, before any time is spent."""
    place = f"--comet {model.checkpoint}"
    if not model.checkpoint.is_file():
        raise RecipeError("no such file", place=place, cure="name the model.ckpt of a COMET model on disk")
    if not model.hparams.is_file():
        raise RecipeError(f"there is no {model.hparams}", place=place, cure="keep the files of the model as published")
    _run_worker(model, [])


def comet_scores(
    sources: Sequence[str], systems: Mapping[str, Sequence[str]], references: Sequence[str], model: CometModel
) -> tuple[str, dict[str, list[float]]]:
    """Score systems by COMET (Rei et al. 2020), all with one load of the model.

    Returns the signature, and by system the score of each line: 0 to 1 for the usual models, higher is better.
    """
    texts = {"src": sources, "ref": references, "systems": systems}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.json", Path(folder) / "out.json"
        source.write_text(json.dumps(texts), encoding="utf-8")
        _run_worker(model, [str(source), str(target), str(model.checkpoint.absolute())])
        results = json.loads(target.read_text(encoding="utf-8"))
    for name, scores in results["scores"].items():
        if len(scores) != len(sources):
            problem = f"COMET gave {len(scores)} scores for {len(sources)} lines of {name}"
            raise RecipeError(problem, place=f"--comet-python {model.python}", cure="use unbabel-comet 2.2")
    return f"model:{model.name}|version:{results['version']}", results["scores"]


def _run_worker(model: CometModel, arguments: list[str]) -> None:
    """Run `comet_worker.py` in COMET's environment; without arguments it only imports COMET."""
    command = [model.python, "-I", str(_WORKER), *arguments]
    environment = {**os.environ, **_NO_NETWORK} | ({"CUDA_VISIBLE_DEVICES": ""} if model.device == "cpu" else {})
    place = f"--comet-python {model.python}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    except OSError as error:
        raise RecipeError(f"cannot be run: {error.strerror}", place=place, cure=_CURE) from error
    if done.returncode:
        messages = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        cure = _CURE if "No module named" in messages[-1] else f"{_ENCODER}; last messages: {' | '.join(messages[-3:])}"
        raise RecipeError(f"COMET failed there: {messages[-1]}", place=place, cure=cure)
