"""Reading tensors that were not made here: files that lie about their content and numbers that are none are refused."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from roundtrip.runtime.errors import ModelError, first_line
from roundtrip.runtime.special_files import special_kind

_DAMAGED = "it is damaged: copy or download it again, or train again"


def require_file(path: Path, max_bytes: int | None = None) -> int:
    """Return the size of a file; refuse what is no regular file, which could block or never end, and what is empty."""
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a name
        problem = f"it cannot be read: {getattr(error, 'strerror', None) or error}"
        raise ModelError(problem, place=repr(str(path)), cure="restore the file") from error
    kind = "a folder" if path.is_dir() else special_kind(path)
    if kind or not size:
        raise ModelError(f"it is {kind or 'empty'}, not a file", place=str(path), cure="restore the file")
    if max_bytes is not None and size > max_bytes:
        problem = f"it has {size:,} bytes, more than the {max_bytes:,} that such a file may have"
        raise ModelError(problem, place=str(path), cure="use the file as its author has published it")
    return size


def read_dtypes(path: Path) -> dict[str, str]:
    """Return the dtype of each tensor of a safetensors file, such as `F32`, by its header alone."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_slice(name).get_dtype() for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"no readable safetensors: {first_line(error)}", place=str(path), cure=_DAMAGED) from error


def read_tensors(path: Path, cure: str = _DAMAGED) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file; each is finite."""
    require_file(path)
    try:
        tensors = dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"no readable safetensors: {first_line(error)}", place=str(path), cure=cure) from error
    refuse_nonfinite(tensors, str(path))
    return tensors


def refuse_nonfinite(tensors: Mapping[str, torch.Tensor], place: str) -> None:
    """Refuse weights that are NaN or infinite."""
    # Tied weights are one tensor under several names.
    distinct = {(tensor.data_ptr(), tensor.numel()): name for name, tensor in tensors.items()}
    for name in distinct.values():
        tensor = tensors[name]
        if not tensor.numel() or not tensor.is_floating_point():
            continue
        # Eight bits have no minimum. Minimum and maximum are NaN where one number is, and cannot overflow as a sum.
        wide = tensor.float() if tensor.element_size() == 1 else tensor
        if not torch.stack(torch.aminmax(wide.detach())).isfinite().all():
            num_bad = int((~wide.isfinite()).sum())
            problem = f"{num_bad:,} of the {tensor.numel():,} numbers of '{name}' are not finite"
            raise ModelError(problem, place=place, cure=_DAMAGED)
