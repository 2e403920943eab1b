"""Scores systems by COMET; runs in COMET's own environment, and knows nothing of roundtrip.

    PYTHON -I comet_worker.py [IN.json OUT.json CHECKPOINT]

IN holds {"src": [...], "ref": [...], "systems": {NAME: [...]}}; OUT gets {"version", "systems": {NAME: {"scores",
"mean"}}}. Without arguments it only sees whether COMET is there.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path


def main() -> None:
    from comet import load_from_checkpoint
    from torch import cuda

    if len(sys.argv) == 1:
        return
    source, target, checkpoint = sys.argv[1:]
    given = json.loads(Path(source).read_text(encoding="utf-8"))
    model = load_from_checkpoint(checkpoint, local_files_only=True)
    systems = {}
    for name, lines in given["systems"].items():
        rows = [{"src": given["src"][at], "mt": line, "ref": given["ref"][at]} for at, line in enumerate(lines)]
        found = model.predict(rows, batch_size=8, gpus=int(cuda.is_available()), progress_bar=False)
        systems[name] = {"scores": [float(x) for x in found.scores], "mean": float(found.system_score)}
    try:
        version = metadata.version("unbabel-comet")
    except metadata.PackageNotFoundError:
        version = "unknown"
    # What is no number is an error there, not a figure here.
    document = json.dumps({"version": version, "systems": systems}, allow_nan=False)
    Path(target).write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main()
