"""python -m benchmarks.serve RUN: the server under concurrent requests, with and without batches.

As many clients as requests send one line each at the same moment, half of them in each direction, over sockets of the
loopback address. Variants, in one process with the same models: `batched`, as `serve` does it, and `one by one`, where
every request is translated alone. Answers are counted: every request must get one, and `differing` are those that the
variants do not have in common (the last bits of a batch depend on its rows). Writes benchmarks/results/serve-NAME.json.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import common
from roundtrip.backtranslation.dev_scoring import search_settings
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.backtranslation.trained_models import load_directions
from roundtrip.cli.serve import work
from roundtrip.data.corpora import reopen
from roundtrip.data.sampler import Cursor, take_rows
from roundtrip.recipe.plan import directions
from roundtrip.runtime.interrupts import StopRequest
from roundtrip.serving.api import Api
from roundtrip.serving.served_run import ServedRun
from roundtrip.serving.translation_queue import Limits, TranslationQueue

# Longer than a benchmark takes.
_SECONDS = 3600.0
VARIANTS = {"batched": Limits.batch_chars, "one by one": 1}

# Source language, target language, text.
Line = tuple[str, str, str]


@contextmanager
def serving(run: ServedRun, limits: Limits) -> Iterator[tuple[str, int]]:
    """Serve a run on a free port of the loopback address, and give its address."""
    stop = StopRequest()
    queue = TranslationQueue(run.translate, limits, stop)
    api = Api(queue, [each.direction for each in run.translators.values()], limits)
    with socket.socket() as sock, ThreadPoolExecutor(1) as pool:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        working = pool.submit(work, queue, api, sock, stop)
        try:
            yield sock.getsockname()
        finally:
            stop.request()
        working.result()


def ask(address: tuple[str, int], line: Line) -> str | None:
    """Return the translation of a line, None where the answer is an error."""
    source, target, text = line
    connection = HTTPConnection(*address, timeout=_SECONDS)
    body = json.dumps({"q": text, "source": source, "target": target})
    connection.request("POST", "/translate", body, {"content-type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return answer["translatedText"] if response.status == 200 else None


def measure(run: ServedRun, lines: Sequence[Line], batch_chars: int) -> dict[str, Any]:
    """Send all lines at the same moment; return the translations, and the seconds until each came."""
    limits = Limits(max_waiting=len(lines), seconds=_SECONDS, batch_chars=batch_chars)
    barrier = threading.Barrier(len(lines))

    def client(line: Line) -> tuple[str | None, float]:
        barrier.wait()
        start = time.perf_counter()
        return ask(address, line), time.perf_counter() - start

    with serving(run, limits) as address, ThreadPoolExecutor(len(lines)) as pool:
        ask(address, lines[0])
        total, answers = common.timed(lambda: list(pool.map(client, lines)))
    percentiles = statistics.quantiles([seconds for _, seconds in answers], n=100, method="inclusive")
    return {
        "requests": len(lines),
        "lost": sum(text is None for text, _ in answers),
        "seconds": total,
        "p50": percentiles[49],
        "p95": percentiles[94],
        "translations": [text for text, _ in answers],
    }


def document(folder: Path, num_requests: int, device: str) -> dict[str, Any]:
    """Measure both variants with a run."""
    run = RunFolder(folder)
    recipe, manifest = run.recipe(), run.manifest()
    mono = reopen(recipe, run.data, manifest.lines).mono
    both = directions(recipe)
    taken = {code: take_rows(texts, Cursor(), num_requests // 2, 1)[0] for code, texts in mono.items()}
    lines = [(each.source, each.target, text) for each in both for (text,) in taken[each.source]]
    served = ServedRun(load_directions(run, both, device=device), search_settings(recipe))
    variants = {name: measure(served, lines, batch_chars) for name, batch_chars in VARIANTS.items()}
    texts = [variant.pop("translations") for variant in variants.values()]
    differing = sum(first != second for first, second in zip(*texts, strict=True))
    base = next(iter(served.translators.values())).base
    return common.provenance("serve", base.device) | {"variants": variants, "differing": differing}


def show(document: Mapping[str, Any], console: Console) -> None:
    rows = []
    for name, each in document["variants"].items():
        times = [f"{each[key]:.1f}" for key in ("p50", "p95", "seconds")]
        rows.append([name, str(each["requests"]), str(each["lost"]), *times])
    title = f"concurrent requests; {document['differing']} translations differ"
    common.print_table(console, title, ["", "requests", "lost", "p50, s", "p95, s", "all, s"], rows)


def main() -> None:
    parser = common.parser(__doc__, device=True)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--requests", type=int, default=200, help="concurrent requests, an even number (200)")
    asked = parser.parse_args()
    measured = document(asked.run, asked.requests, asked.device)
    common.finish(measured, common.result_path("serve", asked.name), show)
    sys.exit(1 if any(each["lost"] for each in measured["variants"].values()) else 0)


if __name__ == "__main__":
    main()
