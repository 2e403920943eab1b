"""python -m benchmarks.soak RECIPE: hours of rounds in one process; memory, open files and throughput must stay flat.

Runs the training command with `rounds.count` out of reach, samples the process from outside every --every seconds, and
ends it with SIGTERM after --minutes. Each figure is a median over a tenth of the time. The first two tenths do not
count: the kinds of batches come one by one, and each takes memory once. A figure is flat if it differs by less than
5 % between the third and the last tenth: resident memory, open files, threads, and the time for 1,000 tokens of
training (which another job on the machine disturbs; give both a core of their own). Writes
benchmarks/results/soak-NAME.json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import common

NUM_PARTS = 10
# Relative change up to which a figure counts as flat.
FLAT = 0.05


def sample(pid: int) -> dict[str, float]:
    """Return what a process holds now (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {
        "time": time.time(),
        "resident_bytes": 1024 * int(fields["VmRSS"].split()[0]),
        "open_files": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        "threads": int(fields["Threads"]),
    }


def soak(asked: argparse.Namespace, out: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Run for the time asked for; return all samples of the process, and the rounds by its events."""
    changes = [f"--set={change}" for change in ("rounds.count=1000000", *asked.set)]
    command = [sys.executable, "-m", "roundtrip.train", asked.recipe, "--out", str(out), *changes]
    samples = []
    log_path = out.parent / "log.txt"
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + 60 * asked.minutes
        while time.monotonic() < until and process.poll() is None:
            time.sleep(asked.every)
            if process.poll() is None:
                samples.append(sample(process.pid))
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=600)
    if code != 128 + signal.SIGTERM:
        raise SystemExit(f"the run ended by itself with {code}:\n{log_path.read_text(encoding='utf-8')[-3000:]}")
    events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return samples, rounds(events)


def rounds(events: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Return when each phase of a round ended, the seconds since the one before, and its rows and tokens."""
    phases, before, tokens = [], None, 0
    for event in events:
        if event["event"] == "step":
            tokens += event["tokens"]
        elif event["event"] == "phase":
            now = event["time"]
            if before is not None and event["stage"].startswith("round-"):
                figures = {"rows": event["rows"], "tokens": tokens, "loss": event["mean_loss"]}
                phases.append({"time": now, "seconds": now - before} | figures)
            before, tokens = now, 0
    return phases


def medians(values: Sequence[Mapping[str, float]], key: str, start: float, end: float) -> list[float]:
    """Return the median of a figure in each part of the time."""
    width = (end - start) / NUM_PARTS
    groups: list[list[float]] = [[] for _ in range(NUM_PARTS)]
    for value in values:
        number = int((value["time"] - start) // width)
        if 0 <= number < NUM_PARTS:
            groups[number].append(value[key])
    return [statistics.median(group) if group else float("nan") for group in groups]


def timed_rounds(phases: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the phases that trained on something, with their seconds for 1,000 tokens."""
    return [{**p, "seconds_per_1000_tokens": 1000 * p["seconds"] / p["tokens"]} for p in phases if p["tokens"]]


def summary(samples: Sequence[dict[str, float]], phases: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return each figure by tenth of the time, and whether it stayed flat."""
    start, end = samples[0]["time"], samples[-1]["time"] + 1e-6
    figures = {key: medians(samples, key, start, end) for key in ("resident_bytes", "open_files", "threads")}
    figures["seconds_per_1000_tokens"] = medians(timed_rounds(phases), "seconds_per_1000_tokens", start, end)
    change = {key: values[-1] / values[2] - 1 for key, values in figures.items()}
    return {
        "minutes": (end - start) / 60,
        "num_phases": len(phases),
        "by_tenth": figures,
        "change": change,
        "flat": {key: abs(value) < FLAT for key, value in change.items()},
    }


def show(document: Mapping[str, Any], console: Console) -> None:
    rows = []
    for key, values in document["by_tenth"].items():
        cells = [f"{value / 2**20:,.0f}" if "bytes" in key else f"{value:.3g}" for value in values]
        rows.append((key.replace("bytes", "MiB"), *cells, f"{document['change'][key]:+.1%}"))
    columns = ["median of each tenth", *map(str, range(1, NUM_PARTS + 1)), "last / third"]
    title = f"{document['minutes']:.0f} minutes, {document['num_phases']} phases"
    common.print_table(console, title, columns, rows)


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw memory, open files and threads, and throughput over the time."""
    samples, phases = document["samples"], timed_rounds(document["rounds"])
    minutes = [(each["time"] - samples[0]["time"]) / 60 for each in samples]
    with common.plot(path, (8, 7), nrows=3, sharex=True) as axes:
        memory, counts, speed = axes[:, 0]
        memory.plot(minutes, [each["resident_bytes"] / 2**20 for each in samples], color="tab:blue", linewidth=0.7)
        memory.set_ylabel("resident memory, MiB")
        counts.plot(minutes, [each["open_files"] for each in samples], color="tab:green", label="open files")
        counts.plot(minutes, [each["threads"] for each in samples], color="tab:gray", label="threads")
        counts.legend()
        ends = [(phase["time"] - samples[0]["time"]) / 60 for phase in phases]
        speed.plot(ends, [p["seconds_per_1000_tokens"] for p in phases], ".", markersize=3, color="tab:red")
        speed.set(ylabel="seconds per 1,000 tokens trained", xlabel="minutes")
        for panel in (memory, counts, speed):
            panel.set_ylim(bottom=0)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples, phases = soak(asked, Path(folder) / "run")
    document = common.provenance("soak")
    document["hardware"]["threads"] = os.environ.get("OMP_NUM_THREADS", "all")
    document |= summary(samples, phases)
    document |= {"rounds": phases, "samples": samples[:: max(1, len(samples) // 300)]}
    common.finish(document, common.result_path("soak", asked.name), show, draw)


if __name__ == "__main__":
    main()
