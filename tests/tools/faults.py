"""Runs of a small recipe under injected faults, each in a process of its own: what happens, and how they end.

    python -m tests.tools.faults RECIPE FOLDER --faults 200 --seed 1

runs the recipe once undisturbed, then again and again with faults until so many have struck; every run goes on with
`--resume` after each fault, and in the end has to be the undisturbed one, to the last bit. Prints counts as JSON.

A fault is one of
    kill        SIGKILL after a time
    kill at     the end of the process, without a handler, a moment after some change to the file system
    storm       SIGTERMs with random pauses until the process has ended
    ENOSPC, EIO some change to the file system fails
    fsync       what was written does not get to disk
    clock       the clock of the machine jumps, now and then
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
# What `sys.addaudithook` calls the changes to a file system; the first argument is the path.
_CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}
# Faults that one run meets; then it may come to its end.
IN_ONE_RUN = 8


def start(recipe: Path, out: Path, fault: str, at: int, pause: float, counted: Path | None = None) -> int:
    """Fork a process that runs or resumes the recipe through the door, and return its number.

    Args:
        at: number of the change to the run folder at which the fault strikes.
        pause: seconds after it, for `kill at`.
        counted: file for the number of changes, where the process comes to its end.
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
    changes = _strike(out, fault, at, pause)
    sys.argv = ["train", str(recipe), "--out", str(out), *resume]
    code = 1
    try:
        from roundtrip.cli import train

        train.main()
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    if counted is not None:
        counted.write_text(str(changes[0]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _strike(out: Path, fault: str, at: int, pause: float) -> list[int]:
    """Arrange for a fault in this process; return the count of changes to the run folder, which goes on."""
    changes, place = [0], str(out)
    error = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}.get(fault)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _CHANGES or not isinstance(arguments[0], str) or not arguments[0].startswith(place):
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
        clock, dice = time.time, random.Random(at)
        time.time = lambda: clock() + dice.choice([0.0, 1e7, -1e7])
    return changes


def end(child: int, fault: str, seconds: float, dice: random.Random) -> int:
    """Wait for a process, do to it what comes from outside, and return its exit status as a shell would."""
    started = time.monotonic()
    due = started + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code
        if time.monotonic() > started + 240:
            os.kill(child, signal.SIGABRT)
        if fault in {"kill", "storm"} and time.monotonic() > due:
            os.kill(child, signal.SIGKILL if fault == "kill" else signal.SIGTERM)
            due = time.monotonic() + dice.choice([0.001, 0.2, 1.3])
        time.sleep(0.001)


# How a process may end under a fault, besides coming through (0).
_ENDS = {
    "kill": {137},
    "kill at": {142},
    "storm": {143},
    # Before the first checkpoint the folder of the run is said to be of no use (2), later the disk (3).
    "ENOSPC": {2, 3},
    "EIO": {2, 3},
    "fsync": {2, 3},
    "clock": set(),
    "none": set(),
}


def campaign(recipe: Path, folder: Path, number: int, seed: int) -> dict[str, Any]:
    """Let faults strike; return how many of each did, and how the processes ended.

    Raises:
        AssertionError: a process ended as none should, or a run as another one.
    """
    from tests.runs import assert_same, end_state

    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    assert end(start(recipe, folder / "plain", "none", 0, 0, folder / "changes"), "none", 0, dice) == 0
    duration = time.monotonic() - began
    num_changes = int((folder / "changes").read_text())
    expected = end_state(folder / "plain")
    struck: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    num_runs = 0
    while struck.total() < number:
        out = folder / f"run-{num_runs}"
        here = 0
        while True:
            over = here >= IN_ONE_RUN or struck.total() >= number
            fault = "none" if over else dice.choice(FAULTS)
            # Of little use in a run that is nearly over are high numbers.
            at, pause = round(num_changes ** dice.random()), dice.choice([0.0, 0.0005, 0.002, 0.01])
            code = end(start(recipe, out, fault, at, pause), fault, dice.uniform(0, duration), dice)
            codes[f"{fault}: {code}"] += 1
            if code or fault == "clock":
                here += 1
                struck[fault] += 1
            assert code in {0, *_ENDS[fault]}, (fault, code, out)
            assert "Traceback" not in out.with_suffix(".log").read_text(), out
            if code == 0 and (out / "metrics.json").exists():
                break
        assert_same(end_state(out), expected)
        leftovers = list(out.rglob(".*"))
        assert not leftovers, leftovers
        num_runs += 1
    return {
        "seed": seed,
        "faults": dict(sorted(struck.items())),
        "total": struck.total(),
        "runs": num_runs,
        "exits": dict(sorted(codes.items())),
        "changes in a run": num_changes,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    # Before the first fork, so that no process spends seconds on it; nothing that starts threads is called here.
    import roundtrip.backtranslation.session
    import roundtrip.cli.train  # noqa: F401

    print(
        json.dumps(campaign(arguments.recipe, arguments.folder.resolve(), arguments.faults, arguments.seed), indent=1)
    )


if __name__ == "__main__":
    main()
