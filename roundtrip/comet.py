"""COMET (https://aclanthology.org/2020.emnlp-main.213/), which cannot be installed beside transformers 5.

So it runs in an environment of its own, driven by files, by a model that lies on disk; nothing is fetched.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roundtrip.errors import RecipeError

_WORKER = Path(__file__).with_name("comet_worker.py")
_CURE = "python3 -m venv comet && comet/bin/pip install unbabel-comet, then --comet-python comet/bin/python"
_NO_NETWORK = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Comet:
    """What COMET says of one system.

    Attributes:
        scores: of each line.
        mean: of all; 0 to 1 for the usual models, higher is better.
        signature: model and version.
    """

    scores: list[float]
    mean: float
    signature: str


def comet(
    sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str], checkpoint: Path, python: str
) -> Comet:
    """Score a system by COMET.

    Args:
        checkpoint: file of the model (`.../checkpoints/model.ckpt`), with its `hparams.yaml` two folders up or beside.
        python: interpreter of the environment that has COMET.

    Raises:
        RecipeError: model or interpreter is not there, COMET is not in it, or it failed.
    """
    if not checkpoint.is_file():
        raise RecipeError(
            "no such file", place=f"--comet {checkpoint}", cure="name the model.ckpt of a COMET model on disk"
        )
    rows = [
        {"src": source, "mt": hypothesis, "ref": reference}
        for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.json", Path(folder) / "out.json"
        source.write_text(json.dumps(rows), encoding="utf-8")
        command = [python, "-I", str(_WORKER), str(source), str(target), str(checkpoint)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | _NO_NETWORK)
        except OSError as error:
            raise RecipeError(f"{error.strerror}", place=f"--comet-python {python}", cure=_CURE) from error
        if done.returncode or not target.exists():
            said = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["it said nothing"]
            missing = "No module named" in said[-1]
            raise RecipeError(
                f"COMET failed there: {said[-1]}",
                place=f"--comet-python {python}",
                cure=_CURE if missing else f"the last it said: {' | '.join(said[-3:])}",
            )
        found = json.loads(target.read_text(encoding="utf-8"))
    if len(found["scores"]) != len(rows):
        raise RecipeError(
            f"COMET gave {len(found['scores'])} scores for {len(rows)} lines",
            place=f"--comet-python {python}",
            cure="use unbabel-comet 2.2",
        )
    name = checkpoint.resolve().parent.parent.name
    return Comet(found["scores"], found["mean"], f"model:{name}|version:{found['version']}")
