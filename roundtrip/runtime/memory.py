"""Memory: whether an error says that it ran out, giving it back, and how much is in use."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
from pathlib import Path

import torch

# Prepared products of matrices that are kept on a CPU.
KERNELS = 256
_TEXTS = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Memory footprint")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory has run out, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def free_after_failure() -> None:
    """Give back what a failed batch still holds; call it outside of the `except`, which keeps its frames alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Give free memory of a CPU back to the system, in some tens of milliseconds.

    The C library holds what it once had: without this a run that trains and generates in turns grows by half.
    """
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if give_back is not None:
        give_back(0)


def limit_kernel_cache() -> None:
    """Let PyTorch keep as many prepared products of matrices as a few batches need.

    It prepares one for each shape, and batches of sentences are of ever new shapes: a third of a MiB each, 1,024 of
    them if it is left to itself. Call this before the first product; who has set a variable is not overruled.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))


def peak_bytes(device: torch.device) -> int:
    """Return the most bytes in use so far: on the GPU what PyTorch held there, on a CPU what the process held."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    number = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return number if sys.platform == "darwin" else 1024 * number


def used_bytes(device: torch.device) -> int:
    """Return the bytes in use now, as `peak` counts them; 0 where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    status = Path("/proc/self/statm")
    return int(status.read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE if status.exists() else 0
