"""Memory: recognizing that it ran out, continuing with smaller batches, freeing it, and how much is in use."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

import torch

from roundtrip.runtime.errors import RoundtripError

B = TypeVar("B")
R = TypeVar("R")
_TEXTS = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Memory footprint")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory has run out, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def run_in_halves(
    batches: Iterable[B],
    run: Callable[[B], R],
    halve: Callable[[B], Sequence[B]],
    *,
    size: Callable[[B], int],
    too_large: Callable[[B], RoundtripError],
    on_split: Callable[[B], None] = lambda batch: None,
) -> Iterator[R]:
    """Yield the result of each batch, in order; a batch on which memory runs out is replaced by its halves.

    So are waiting batches of at least its size (in units that memory grows with): they would fail as well.

    Args:
        halve: returns the parts of a batch in their order; empty where it cannot be divided.
        too_large: makes the error of a batch that does not fit and cannot be divided.
        on_split: called with the batch that did not fit, before its halves are tried.
    """
    waiting = list(batches)[::-1]
    while waiting:
        batch = waiting.pop()
        try:
            result = run(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not halve(batch):
                raise too_large(batch) from error
        else:
            yield result
            # Not held while the next batch is computed.
            del result
            continue
        free_after_failure()
        limit = size(batch)
        parts = [(size(other) >= limit and list(halve(other))[::-1]) or [other] for other in (*waiting, batch)]
        waiting = list(chain.from_iterable(parts))
        on_split(batch)


def free_after_failure() -> None:
    """Free what a failed batch still holds; call it outside of the `except`, which keeps its frames alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Return free CPU memory to the system, without which a run that trains and generates in turn grows by half."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if malloc_trim is not None:
        malloc_trim(0)


def limit_kernel_cache() -> None:
    """Keep 256 prepared matrix products (a third of a MiB each) on a CPU, not 1,024; call this before the first."""
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, "256")


def peak_bytes(device: torch.device) -> int:
    """Return the most bytes in use so far: by PyTorch on a GPU, by the whole process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
