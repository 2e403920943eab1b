"""Scores systems by COMET; runs in COMET's own environment, and knows nothing of roundtrip.

    PYTHON -I comet_worker.py [IN.json OUT.json CHECKPOINT]

IN holds {"src": [...], "ref": [...], "systems": {NAME: [...]}}; OUT gets {"version", "scores": {NAME: [...]}}.
Without arguments it only imports COMET.
"""

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
    scores = {}
    for name, lines in texts["systems"].items():
        columns = zip(texts["src"], lines, texts["ref"], strict=True)
        rows = [{"src": source, "mt": line, "ref": reference} for source, line, reference in columns]
        prediction = model.predict(rows, batch_size=8, gpus=int(cuda.is_available()), progress_bar=False)
        scores[name] = [float(score) for score in prediction.scores]
    try:
        version = metadata.version("unbabel-comet")
    except metadata.PackageNotFoundError:
        version = "unknown"
    # NaN becomes an error here, not a score there.
    document = json.dumps({"version": version, "scores": scores}, allow_nan=False)
    Path(output_path).write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main()
