"""The processes that share a run: each does a part of the work, and all end up with the same weights.

They are started by `torchrun` or any launcher that sets RANK and WORLD_SIZE, and connect through accelerate. Where one
ends, the collectives of the others fail (gloo) or time out (NCCL), and `torchrun` ends the rest.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

from roundtrip.runtime.errors import DistributedError
from roundtrip.runtime.memory import is_out_of_memory

T = TypeVar("T")
# How long a collective waits for the slowest process: longer than its share of a generation phase takes.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, and the rank of this one: the main process, 0, alone writes files and messages."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def shard(self, values: Sequence[T]) -> list[T]:
        """Return this process's values, every `world_size`-th: of values sorted by size all shards are about equal."""
        return list(values[self.rank :: self.world_size])

    def gather(self, value: T) -> list[T]:
        """Return the value of each process, by rank; a collective, which all processes have to call."""
        if self.world_size == 1:
            return [value]
        from accelerate.utils import gather_object

        with _explain_failure():
            values: list[T] = gather_object([value])
        return values

    def broadcast(self, value: T) -> T:
        """Return the value of the main process, and wait for all that it did before."""
        return self.gather(value)[0]

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes, in place, with bit-identical results in each, and return it."""
        if self.world_size > 1:
            with _explain_failure():
                torch.distributed.all_reduce(tensor)
        return tensor

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run a block in the main process before the others, which find in caches what it puts there."""
        if self.is_main:
            yield
        self.broadcast(None)
        if not self.is_main:
            yield


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def _explain_failure() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        cure = "continue with --resume, with any number of processes; the last checkpoint is complete"
        raise DistributedError("another process of this run has ended, or did not answer in time", cure=cure) from error


@contextmanager
def join_processes(on_cpu: bool) -> Iterator[ProcessGroup]:
    """Connect to the other processes of a run; yields a single process where no launcher has set up several."""
    cure = "check RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which torchrun sets"
    try:
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    except ValueError as error:
        raise DistributedError(f"RANK or WORLD_SIZE is not a number: {error}", cure=cure) from error
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    from accelerate import PartialState

    try:
        PartialState(cpu=on_cpu, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise DistributedError(f"the {world_size} processes cannot connect: {error}", cure=cure) from error
    processes = ProcessGroup(rank, world_size)
    # An error leaves the group as it is: to close it would wait for processes that wait for this one.
    yield processes
    processes.broadcast(None)
    torch.distributed.destroy_process_group()
