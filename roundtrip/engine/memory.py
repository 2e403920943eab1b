"""What to do when a batch does not fit: take half of it."""

from __future__ import annotations

import gc

import torch

_TEXTS = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Memory footprint")


def is_out(error: BaseException) -> bool:
    """Return whether an error says that memory has run out, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def release() -> None:
    """Give back what a failed batch still holds; call it outside of the `except`, which keeps its frames alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
