"""What computes a call: its attention, how many kernels it launches, and which of them take its time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import common
from benchmarks.gpu.measure import Figures

NUM_KERNELS, MAX_KERNEL_NAME = 12, 100


class _Operators(TorchDispatchMode):
    """Collects the names of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), settings: Any = None) -> Any:
        self.names.add(str(operator))
        return operator(*arguments, **(settings or {}))


def attention_operators(call: Callable[[], Any]) -> list[str]:
    """Return the operators that compute attention in the forward passes of a call."""
    with _Operators() as operators:
        call()
    return sorted(name for name in operators.names if "attn" in name or "attention" in name)


def _profiled(activities: list[str], call: Callable[[], Any]) -> Any:
    """Return the events of a call by name."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[getattr(ProfilerActivity, name) for name in activities]) as profiler:
        common.timed(call)
    return profiler.key_averages()


def num_launches(device: torch.device, call: Callable[[], Any]) -> int | None:
    """Return how many kernels a call launches on a GPU; None without one."""
    if device.type != "cuda":
        return None
    return sum(int(event.count) for event in _profiled(["CPU", "CUDA"], call) if "LaunchKernel" in event.key)


def largest_kernels(device: torch.device, call: Callable[[], Any]) -> Figures:
    """Return the kernels (on a CPU: operators) that take most of a call, in shares of the time of all kernels.

    `busy` is the share of the call in which the GPU computes at all; in the rest of it the GPU waits for launches.
    """
    call()
    seconds, _ = common.timed(call)
    on_gpu = device.type == "cuda"
    times: Counter[str] = Counter()
    for event in _profiled(["CUDA"] if on_gpu else ["CPU"], call):
        if not on_gpu:
            times[event.key[:MAX_KERNEL_NAME]] += event.self_cpu_time_total
        elif event.device_type.name == "CUDA":
            times[event.key[:MAX_KERNEL_NAME]] += event.self_device_time_total
    total = sum(times.values()) or 1.0
    largest = [[name, time / total] for name, time in times.most_common(NUM_KERNELS)]
    return {"busy": total / 1e6 / seconds, "largest": largest}
