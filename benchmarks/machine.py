"""What benchmarks share: the machine's name, its GEMM peak, and the best of turns taken in alternation."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

TURNS = 3
# A training batch of 1,024 tokens through the larger layer of SmolLM2-135M.
SHAPE = (1024, 576, 1536)


def best(roads: Mapping[str, Callable[[], Any]], turns: int = TURNS) -> dict[str, float]:
    """Return the shortest time of each road in seconds; one turn of warm-up, then A B A B."""
    times: dict[str, list[float]] = {name: [] for name in roads}
    for turn in range(turns + 1):
        for name, road in roads.items():
            wait()
            start = time.perf_counter()
            road()
            wait()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: min(found) for name, found in times.items()}


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def gemm_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return FLOP/s of a matrix product of SHAPE, the best of some turns: what the machine can do."""
    rows, inner, columns = SHAPE if device.type == "cpu" else (8192, 4096, 4096)
    left, right = (torch.randn(shape, dtype=dtype, device=device) for shape in ((rows, inner), (columns, inner)))

    def road() -> None:
        for _ in range(20):
            torch.nn.functional.linear(left, right)

    return 20 * 2 * rows * inner * columns / best({"": road}, 5)[""]


def processor() -> str:
    """Return what the machine says of its processor."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return f"{model}; {' '.join(flag for flag in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16') if flag in flags)}"
