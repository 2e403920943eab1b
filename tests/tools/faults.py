"""The fault campaign: runs of a small recipe under injected faults, each resumed until it is finished.

    python -m tests.tools.faults RECIPE FOLDER --faults 200 --seed 1

runs the recipe once without faults, then repeatedly with faults until the given number has occurred. Each run continues
with `--resume` after a fault, and has to end bit-equal to the run without faults. Prints counts as JSON.

A fault is one of
    kill        SIGKILL after a random time
    kill at     SIGALRM without a handler, at a random change to the file system or shortly after it
    storm       SIGTERMs with random pauses until the process has ended
    ENOSPC, EIO a random change to the file system fails
    fsync       a random fsync fails
    clock       the clock jumps by months
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

FAULTS = ("kill", "kill at", "kill at", "kill at", "storm", "ENOSPC", "EIO", "fsync", "clock")
# Audit events of changes to the file system; their first argument is the path.
_CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}
# After so many faults a run may finish.
FAULTS_PER_RUN = 8


def start(recipe: Path, out: Path, fault: str, at: int, pause: float, count_path: Path | None = None) -> int:
    """Fork a process that runs or resumes the recipe on the command line, and return its process id.

    Args:
        at: number of the change to the run folder at which the fault occurs.
        pause: seconds after it, for `kill at`.
        count_path: file for the number of changes, written where the process is not killed.
    """
    child = os.fork()
    if child:
        return child
    with out.with_suffix(".log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    resume = ["--resume"] if any(out.glob("checkpoints/[0-9]*")) else []
    print(f"--- {fault} at {at} {resume}")
    changes = _inject(out, fault, at, pause)
    sys.argv = ["train", str(recipe), "--out", str(out), *resume]
    code = 1
    try:
        from roundtrip.cli import app, train

        app.exit_with(train.main)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    if count_path is not None:
        count_path.write_text(str(changes[0]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _inject(out: Path, fault: str, at: int, pause: float) -> list[int]:
    """Set up a fault in this process; return a list that holds the number of changes to the run folder so far."""
    changes, prefix = [0], str(out)
    error = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}.get(fault)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _CHANGES or not isinstance(arguments[0], str) or not arguments[0].startswith(prefix):
            return
        if event == "open" and not any(letter in str(arguments[1]) for letter in "wax+"):
            return
        changes[0] += 1
        if changes[0] == at:
            if fault == "kill at":
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, max(pause, 1e-6))
            if error is not None:
                raise OSError(error, os.strerror(error), arguments[0])

    sys.addaudithook(hook)
    if fault == "fsync":
        sync, calls = os.fsync, [0]

        def failing(handle: int) -> None:
            calls[0] += 1
            if calls[0] == at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            sync(handle)

        os.fsync = failing
    if fault == "clock":
        clock, rng = time.time, random.Random(at)
        time.time = lambda: clock() + rng.choice([0.0, 1e7, -1e7])
    return changes


def wait(child: int, fault: str, seconds: float, rng: random.Random) -> int:
    """Wait for a process, send it the signals of the fault, and return its exit status as a shell would.

    Args:
        seconds: until the first signal.
    """
    started = time.monotonic()
    due = started + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code
        if time.monotonic() > started + 240:
            os.kill(child, signal.SIGABRT)
        if fault in {"kill", "storm"} and time.monotonic() > due:
            os.kill(child, signal.SIGKILL if fault == "kill" else signal.SIGTERM)
            due = time.monotonic() + rng.choice([0.001, 0.2, 1.3])
        time.sleep(0.001)


# Exit codes that a fault may cause, besides 0.
_EXIT_CODES = {
    "kill": {137},
    "kill at": {142},
    "storm": {143},
    # 2 while the run folder is created, 3 later.
    "ENOSPC": {2, 3},
    "EIO": {2, 3},
    "fsync": {2, 3},
    "clock": set(),
    "none": set(),
}


def campaign(recipe: Path, folder: Path, number: int, seed: int) -> dict[str, Any]:
    """Run until `number` faults have occurred; return how many of each kind did, and the exit codes.

    Raises:
        AssertionError: an exit code, a traceback, a leftover file or the end state of a run is wrong.
    """
    from tests.runs import assert_same, end_state

    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    assert wait(start(recipe, folder / "plain", "none", 0, 0, folder / "changes"), "none", 0, rng) == 0
    duration = time.monotonic() - started
    num_changes = int((folder / "changes").read_text())
    expected = end_state(folder / "plain")
    faults: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    num_runs = 0
    while faults.total() < number:
        out = folder / f"run-{num_runs}"
        faults_in_run = 0
        while True:
            over = faults_in_run >= FAULTS_PER_RUN or faults.total() >= number
            fault = "none" if over else rng.choice(FAULTS)
            # A resumed run has fewer changes left, so low numbers are more frequent.
            at, pause = round(num_changes ** rng.random()), rng.choice([0.0, 0.0005, 0.002, 0.01])
            code = wait(start(recipe, out, fault, at, pause), fault, rng.uniform(0, duration), rng)
            codes[f"{fault}: {code}"] += 1
            if code or fault == "clock":
                faults_in_run += 1
                faults[fault] += 1
            assert code in {0, *_EXIT_CODES[fault]}, (fault, code, out)
            assert "Traceback" not in out.with_suffix(".log").read_text(), out
            if code == 0 and (out / "metrics.json").exists():
                break
        assert_same(end_state(out), expected)
        leftovers = list(out.rglob(".*"))
        assert not leftovers, leftovers
        num_runs += 1
    return {
        "seed": seed,
        "faults": dict(sorted(faults.items())),
        "total": faults.total(),
        "runs": num_runs,
        "exits": dict(sorted(codes.items())),
        "changes in a run": num_changes,
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    # Imported once, before the first fork; nothing here starts threads.
    import roundtrip.backtranslation.session
    import roundtrip.cli.train  # noqa: F401

    print(
        json.dumps(campaign(arguments.recipe, arguments.folder.resolve(), arguments.faults, arguments.seed), indent=1)
    )


if __name__ == "__main__":
    main()
