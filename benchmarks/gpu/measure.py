"""What the parts share: the clock, rungs that may fail, medians, peak memory, and the peaks of known cards."""

from __future__ import annotations

import importlib.util
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from benchmarks import common
from benchmarks.gpu.shapes import Shape
from roundtrip.runtime import memory
from roundtrip.runtime.errors import ModelError

# Pattern of the name, dense bfloat16 FLOP/s and bytes/s of the memory, by the vendor's data sheets; first match.
CARDS = (
    (r"\bB200\b", 2250e12, 8.0e12),
    (r"\bH200 NVL\b", 835e12, 4.8e12),
    (r"\bH200\b", 989e12, 4.8e12),
    (r"\bH100 NVL\b", 835e12, 3.9e12),
    (r"\bH100 PCIe\b", 756e12, 2.0e12),
    (r"\bH100\b", 989e12, 3.35e12),
    (r"\bA100\b.*80GB", 312e12, 2.0e12),
    (r"\bA100\b.*40GB", 312e12, 1.55e12),
    (r"\bL40S\b", 362e12, 864e9),
    (r"\bL4\b", 121e12, 300e9),
    (r"\bRTX 5090\b", 210e12, 1.79e12),
    (r"\bRTX 4090\b", 165e12, 1.01e12),
    (r"\bRTX 3090\b", 71e12, 936e9),
)

Figures = dict[str, Any]


class Unsupported(Exception):
    """This machine or this version cannot do it; the message says why."""


@dataclass
class Part:
    """A part while it runs: what it measures on, its time, and its result so far.

    Attributes:
        document: the result; `cases` holds the figures of each rung by case and name.
        save: writes the document.
        report: takes a line of progress.
        deadline: of `time.perf_counter`.
    """

    device: torch.device
    shapes: Sequence[Shape]
    document: dict[str, Any]
    save: Callable[[], None]
    report: Callable[[str], None]
    deadline: float

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.deadline - time.perf_counter())

    @property
    def on_gpu(self) -> bool:
        return str(self.device.type) == "cuda"

    def rung(self, case: str, name: str, measure: Callable[[], Figures], *, needs: float = 0.0) -> bool:
        """Measure, keep and print the figures of one rung, or why there are none; return whether there are.

        Args:
            needs: seconds that have to be left for it.
        """
        if self.seconds_left <= needs:
            figures: Figures = {"skipped": f"{self.seconds_left:.0f} s of this part were left"}
        else:
            figures = attempt(measure)
        self.document["cases"].setdefault(case, {})[name] = figures
        self.save()
        self.report(f"  {case}; {name}: {describe(figures)}")
        return "skipped" not in figures and "failed" not in figures

    def build(self, case: str, build: Callable[[], Any]) -> Any:
        """Return what several rungs need; None where it fails, which is kept as a rung of that name."""
        made: list[Any] = []

        def measure() -> Figures:
            seconds, value = common.timed(build)
            made.append(value)
            return {"seconds": seconds}

        return made[0] if self.rung(case, "build", measure) else None


def attempt(measure: Callable[[], Figures]) -> Figures:
    """Return figures, or `skipped` or `failed` with the reason; memory that a failure held is freed."""
    try:
        return measure()
    except Exception as error:
        figures = explain(error)
    if "failed" in figures:
        # After an error of the device itself every call fails, this one too.
        with suppress(RuntimeError):
            memory.free_after_failure()
    return figures


def explain(error: Exception) -> Figures:
    """Return why a rung has no figures."""
    text = " ".join(str(error).split())[:400]
    if memory.is_out_of_memory(error) or (error.__cause__ and memory.is_out_of_memory(error.__cause__)):
        return {"failed": f"out of memory: {text}"}
    if isinstance(error, Unsupported | ImportError | ModelError):
        return {"skipped": text}
    return {"failed": f"{type(error).__name__}: {text}"}


def require(*packages: str) -> None:
    """Raise an error where a package is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise Unsupported(f"{package} is not installed")


def describe(figures: Mapping[str, Any]) -> str:
    """Return figures in a line."""
    return ", ".join(f"{name} {cell(value)}" for name, value in figures.items())


def cell(value: Any) -> str:
    """Return a figure in a few characters."""
    match value:
        case None:
            return "not known"
        case float():
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        case list():
            return " ".join(map(cell, value))
    return str(value)


def median_seconds(call: Callable[[], Any], *, turns: int = 3, seconds: float = 4.0) -> float:
    """Return the median of some timed calls after one of warm-up; fewer calls where they take long.

    Args:
        turns: calls.
        seconds: after which no other call begins.
    """
    common.timed(call)
    times: list[float] = []
    while len(times) < turns and sum(times) < seconds:
        times.append(common.timed(call)[0])
    return statistics.median(times)


def seconds_and_peak(device: torch.device, call: Callable[[], Any], *, turns: int = 3) -> tuple[float, float]:
    """Return `median_seconds` of a call, and the peak memory in GiB during it with all that was held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = median_seconds(call, turns=turns)
    return seconds, memory.peak_bytes(device) / 2**30


def card_peaks(name: str) -> tuple[float, float] | None:
    """Return FLOP/s and bytes/s of a card by its data sheet; None for an unknown one."""
    return next(((flops, rate) for pattern, flops, rate in CARDS if re.search(pattern, name)), None)


@cache
def machine_peaks(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return what the machine can do at most: as measured in this process, and by the data sheet of its card."""
    peaks = card_peaks(common.processor()) if device.type == "cuda" else None
    return {
        "dtype": str(dtype),
        "gemm_flops": common.gemm_flops(device, dtype),
        "copy_bytes": copy_rate(device),
        "card_flops": peaks[0] if peaks else None,
        "card_bytes": peaks[1] if peaks else None,
        "memory_gib": torch.cuda.get_device_properties(device).total_memory / 2**30 if device.type == "cuda" else None,
        "card": "by its data sheet" if peaks else "not known: shares are of the measured peaks only",
    }


def copy_rate(device: torch.device) -> float:
    """Return bytes/s of copies on the device, read and written."""
    size, times = (2**30, 10) if device.type == "cuda" else (2**24, 1)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copies() -> None:
        for _ in range(times):
            target.copy_(source)

    return 2 * size * times / common.best({"": copies}, 5)[""]
