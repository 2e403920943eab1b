"""python -m benchmarks.soak RECIPE: hours of rounds in one process; memory, open files and throughput must stay flat.

Runs the door with `rounds.count` out of reach, looks at the process from outside every --every seconds, and ends it
with SIGTERM after --minutes. Each figure is a median over a tenth of the time. The first two tenths are left out of
the verdict: the kinds of batches come by and by, and each costs memory once. Flat is what differs by less than 5 %
between the third and the last tenth: resident memory, open files, threads, and the time that a tenth's rounds took
for their rows (which another job on the machine disturbs; give both a core of their own). Writes
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import RESULTS, processor
from roundtrip.backtranslation.run_folder import versions

NUM_PARTS = 10
# Share by which flat may differ.
FLAT = 0.05


def look(pid: int) -> dict[str, float]:
    """Return what a process holds now (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {
        "time": time.time(),
        "resident_bytes": 1024 * int(fields["VmRSS"].split()[0]),
        "open_files": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        "threads": int(fields["Threads"]),
    }


def soak(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Run for so long; return all looks at the process, and what its events say of the rounds."""
    changes = [f"--set={change}" for change in ("rounds.count=1000000", *arguments.set)]
    command = [sys.executable, "-m", "roundtrip.train", arguments.recipe, "--out", str(out), *changes]
    looks = []
    with (out.parent / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < until and process.poll() is None:
            time.sleep(arguments.every)
            if process.poll() is None:
                looks.append(look(process.pid))
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=600)
    text = (out.parent / "log.txt").read_text(encoding="utf-8")
    if code != 143:
        raise SystemExit(f"the run ended by itself with {code}:\n{text[-3000:]}")
    events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return {"command": " ".join(command[1:]), "looks": looks, "rounds": rounds(events)}


def rounds(events: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Return when each phase of a round ended, how long it took since the one before, and its rows and tokens."""
    found, before, tokens = [], None, 0
    for event in events:
        if event["event"] == "step":
            tokens += event["tokens"]
        elif event["event"] == "phase":
            if before is not None and event["stage"].startswith("round-"):
                found.append(
                    {
                        "time": event["time"],
                        "seconds": event["time"] - before,
                        "rows": event["rows"],
                        "tokens": tokens,
                        "loss": event["mean_loss"],
                    }
                )
            before, tokens = event["time"], 0
    return found


def parts(values: Sequence[dict[str, float]], key: str, start: float, end: float) -> list[float]:
    """Return the median of a figure in each part of the time."""
    width = (end - start) / NUM_PARTS
    groups = [
        [one[key] for one in values if number <= (one["time"] - start) / width < number + 1]
        for number in range(NUM_PARTS)
    ]
    return [statistics.median(group) if group else float("nan") for group in groups]


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Return each figure by tenth of the time, and whether it stayed flat."""
    start, end = found["looks"][0]["time"], found["looks"][-1]["time"] + 1e-6
    timed = [
        one | {"seconds_per_1000_tokens": 1000 * one["seconds"] / one["tokens"]}
        for one in found["rounds"]
        if one["tokens"]
    ]
    figures = {key: parts(found["looks"], key, start, end) for key in ("resident_bytes", "open_files", "threads")}
    figures["seconds_per_1000_tokens"] = parts(timed, "seconds_per_1000_tokens", start, end)
    change = {key: values[-1] / values[2] - 1 for key, values in figures.items()}
    return {
        "minutes": (end - start) / 60,
        "num_phases": len(found["rounds"]),
        "by_tenth": figures,
        "change": change,
        "flat": {key: abs(value) < FLAT for key, value in change.items()},
    }


def show(found: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{found['minutes']:.0f} minutes, {found['num_phases']} phases")
    table.add_column("median of each tenth")
    for number in range(NUM_PARTS):
        table.add_column(str(number + 1), justify="right")
    table.add_column("last / third", justify="right")
    for key, values in found["by_tenth"].items():
        shown = [f"{value / 2**20:,.0f}" if "bytes" in key else f"{value:.3g}" for value in values]
        table.add_row(key.replace("bytes", "MiB"), *shown, f"{found['change'][key]:+.1%}")
    console.print(table)


def draw(found: dict[str, Any], looks: Sequence[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, figsize=(8, 7), sharex=True, layout="constrained")
    minutes = [(one["time"] - looks[0]["time"]) / 60 for one in looks]
    axes[0].plot(minutes, [one["resident_bytes"] / 2**20 for one in looks], color="tab:blue", linewidth=0.7)
    axes[0].set_ylabel("resident memory, MiB")
    axes[1].plot(minutes, [one["open_files"] for one in looks], color="tab:green", label="open files")
    axes[1].plot(minutes, [one["threads"] for one in looks], color="tab:gray", label="threads")
    axes[1].legend()
    timed = [one for one in found["rounds"] if one["tokens"]]
    axes[2].plot(
        [(one["time"] - looks[0]["time"]) / 60 for one in timed],
        [1000 * one["seconds"] / one["tokens"] for one in timed],
        ".",
        markersize=3,
        color="tab:red",
    )
    axes[2].set_ylabel("seconds per 1,000 tokens learnt")
    axes[2].set_xlabel("minutes")
    for axis in axes:
        axis.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("recipe")
    made.add_argument("--minutes", type=float, default=120)
    made.add_argument("--every", type=float, default=5.0)
    made.add_argument("--name", default="cpu")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(arguments, Path(folder) / "run")
    document = {
        "command": " ".join(["python -m benchmarks.soak", *sys.argv[1:]]),
        "hardware": {"processor": processor(), "threads": os.environ.get("OMP_NUM_THREADS", "all")},
        "versions": versions(),
        **summary(found),
        "rounds": found["rounds"],
        "looks": found["looks"][:: max(1, len(found["looks"]) // 300)],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"soak-{arguments.name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw(document, found["looks"], path.with_suffix(".png"))
    show(document, Console(width=160))


if __name__ == "__main__":
    main()
