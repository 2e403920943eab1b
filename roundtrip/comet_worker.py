"""Scores a file of lines by COMET; runs in COMET's own environment, and knows nothing of roundtrip.

    PYTHON -I comet_worker.py IN.json OUT.json CHECKPOINT

IN holds a list of {"src", "mt", "ref"}; OUT gets {"version", "scores", "mean"}.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path


def main() -> None:
    source, target, checkpoint = sys.argv[1:]
    from comet import load_from_checkpoint
    from torch import cuda

    model = load_from_checkpoint(checkpoint, local_files_only=True)
    rows = json.loads(Path(source).read_text(encoding="utf-8"))
    found = model.predict(rows, batch_size=8, gpus=int(cuda.is_available()))
    try:
        version = metadata.version("unbabel-comet")
    except metadata.PackageNotFoundError:
        version = "unknown"
    document = {"version": version, "scores": [float(x) for x in found.scores], "mean": float(found.system_score)}
    Path(target).write_text(json.dumps(document), encoding="utf-8")


if __name__ == "__main__":
    main()
