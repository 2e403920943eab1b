"""Scores systems by COMET; runs in COMET's own environment, and knows nothing of roundtrip.

    PYTHON -I comet_worker.py [IN.json OUT.json CHECKPOINT]

IN holds {"src": [...], "ref": [...], "systems": {NAME: [...]}}; OUT gets {"version", "systems": {NAME: {"scores",
"mean"}}}. Without arguments it only imports COMET.
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
    input_path, output_path, checkpoint = sys.argv[1:]
    texts = json.loads(Path(input_path).read_text(encoding="utf-8"))
    model = load_from_checkpoint(checkpoint, local_files_only=True)
    systems = {}
    for name, lines in texts["systems"].items():
        rows = [
            {"src": texts["src"][index], "mt": line, "ref": texts["ref"][index]} for index, line in enumerate(lines)
        ]
        prediction = model.predict(rows, batch_size=8, gpus=int(cuda.is_available()), progress_bar=False)
        systems[name] = {"scores": [float(x) for x in prediction.scores], "mean": float(prediction.system_score)}
    try:
        version = metadata.version("unbabel-comet")
    except metadata.PackageNotFoundError:
        version = "unknown"
    # NaN becomes an error here, not a score there.
    document = json.dumps({"version": version, "systems": systems}, allow_nan=False)
    Path(output_path).write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main()
