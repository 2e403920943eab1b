"""Hostile inputs in turn, each within limits of time and memory, and what became of them."""

from __future__ import annotations

import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from roundtrip.runtime.errors import RoundtripError, first_line

# For each input: seconds, MiB of memory, and bytes of addresses, most of which PyTorch never uses.
LIMIT, MEMORY, ADDRESSES = 20, 1024, 3 << 30


def outcome(use: Callable[[], object]) -> tuple[str, str]:
    """Use an input; return how it ended, `accepted`, `refused` or `fault`, and the message."""

    def expire(*arguments: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(LIMIT)
    try:
        use()
    except RoundtripError as error:
        return "refused", first_line(error)
    except KeyboardInterrupt:
        return "fault", f"not finished after {LIMIT} s: {traceback.format_exc(limit=-4)}"
    except BaseException as error:
        return "fault", f"{type(error).__name__}: {error}"[:500] + traceback.format_exc(limit=-4)[-2000:]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return "accepted", ""


def _pages(column: int) -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[column]) * resource.getpagesize()


def attack(inputs: Iterable[tuple[str, Callable[[], object]]]) -> dict[str, Any]:
    """Use inputs by name; return counts by outcome, seconds, MiB of memory above those of the start, and each fault.

    The libraries that are used should be imported before.
    """
    counts: Counter[str] = Counter()
    limit, base = _pages(0) + ADDRESSES, _pages(1) >> 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    started, faults, slowest = time.monotonic(), [], 0.0
    for name, use in inputs:
        before = time.monotonic()
        ended, message = outcome(use)
        slowest = max(slowest, time.monotonic() - before)
        counts[ended] += 1
        if ended == "fault":
            faults.append({"what": name, "fault": message})
            print(f"{name}: {message}", file=sys.stderr, flush=True)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) >> 10
    if peak - base > MEMORY:
        faults.append({"what": "memory", "fault": f"{peak - base} MiB above the {base} of the start"})
    seconds = {"seconds": round(time.monotonic() - started, 1), "slowest": round(slowest, 1)}
    return {**dict(sorted(counts.items())), **seconds, "mib_above_base": peak - base, "faults": faults}
