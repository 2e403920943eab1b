"""What benchmarks share: the machine's name, its GEMM peak, and the best of turns taken in alternation."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from roundtrip.backtranslation.run_folder import versions
from roundtrip.engine.translator import Translator
from roundtrip.runtime import memory

RESULTS = Path("benchmarks/results")
TURNS = 3
# A training batch of 1,024 tokens through the larger layer of SmolLM2-135M.
SHAPE = (1024, 576, 1536)


def best(row_builders: Mapping[str, Callable[[], Any]], turns: int = TURNS) -> dict[str, float]:
    """Return the shortest time of each road in seconds; one turn of warm-up, then A B A B."""
    times: dict[str, list[float]] = {name: [] for name in row_builders}
    for turn in range(turns + 1):
        for name, row_builder in row_builders.items():
            wait()
            start = time.perf_counter()
            row_builder()
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

    def row_builder() -> None:
        for _ in range(20):
            torch.nn.functional.linear(left, right)

    return 20 * 2 * rows * inner * columns / best({"": row_builder}, 5)[""]


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


def parser(description: str | None, turns: int) -> argparse.ArgumentParser:
    """Return what the benchmarks of speed are all asked with."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--name", default="cpu", help="what to call this machine in the file names")
    made.add_argument("--device", default="auto")
    made.add_argument("--turns", type=int, default=turns)
    return made


def num_weights(one: Translator) -> int:
    """Return the weights of the base, its adapters aside; an embedding that is the output layer too counts as that."""
    return sum(value.numel() for name, value in one.base.model.named_parameters() if ".lora_" not in name)


def done(document: Mapping[str, Any], tokens: float, with_logits: float) -> float:
    """Return how many weights are used for tokens in all; the output layer is for those whose logits are wanted."""
    head = document["head_weights"]
    used: float = tokens * (document["weights"] - head) + with_logits * head
    return used


def facts(name: str, one: Translator) -> dict[str, Any]:
    """Return what every result of a speed benchmark begins with: command, machine, versions, GEMM peak.

    Args:
        name: of the benchmark.
    """
    return {
        "command": " ".join(["python -m", f"benchmarks.{name}", *sys.argv[1:]]),
        "hardware": {"processor": processor(), "threads": torch.get_num_threads(), "device": str(one.base.device)},
        "versions": versions(),
        "dtype": str(one.base.dtype),
        "gemm_flops": gemm_flops(one.base.device, one.base.dtype),
        "weights": num_weights(one),
        "head_weights": one.base.model.get_output_embeddings().weight.numel(),
    }


def peaks(row_builders: Mapping[str, Callable[[], Any]]) -> dict[str, int]:
    """Return how many bytes more than before were held while each road was taken, on the device or by the process."""
    found = {}
    for name, row_builder in row_builders.items():
        memory.free_after_failure()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            row_builder()
            found[name] = torch.cuda.max_memory_allocated() - before
        else:
            forget_peak()
            before = memory.used_bytes(torch.device("cpu"))
            row_builder()
            found[name] = process_peak() - before
    return found


def forget_peak() -> None:
    """Let `process_peak` begin anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def process_peak() -> int:
    """Return the most bytes that the process has held since `forget_peak`, or the start (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
