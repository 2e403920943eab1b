"""The processes that share a run: each does a part of the work, and all come to the same weights.

They are started by `torchrun` or whatever else sets RANK and WORLD_SIZE, and meet through accelerate: over gloo on
CPUs, over NCCL on GPUs. No wrapper is put around a model: what is summed are the gradients of one direction, by us.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from roundtrip.runtime.errors import DistributedError, RoundtripError
from roundtrip.runtime.memory import is_out_of_memory

T = TypeVar("T")
# Seconds between two signs of life, and after how many without one a process counts as dead.
PULSE, DEAD = 3.0, 40.0
# Waiting for each other is bounded by the signs of life: a part of the work may take hours.
_LONG = timedelta(days=30)
_AGAIN = "go on with --resume, on any number of processes; the last checkpoint is whole"


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run as one of them sees them.

    Attributes:
        rank: this process, from 0. The first one alone writes and speaks.
        world_size: how many there are.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def shard(self, values: Sequence[T]) -> list[T]:
        """Return this process's part, dealt like cards: of values sorted by size every part is about as large."""
        return list(values[self.rank :: self.world_size])

    def gather(self, value: T) -> list[T]:
        """Return the value of each process, in order; all have to ask.

        Raises:
            RanksError: another process has ended.
        """
        if self.world_size == 1:
            return [value]
        from accelerate.utils import gather_object

        found: list[T] = _together(lambda: gather_object([value]))
        return found

    def broadcast(self, value: T) -> T:
        """Return the value of the first process; what it has done before is done when this returns."""
        return self.gather(value)[0]

    def any(self, value: bool) -> bool:
        """Return whether it is so for any process."""
        return value if self.world_size == 1 else any(self.gather(value))

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes, in place, the same to the last bit for each, and return it."""
        if self.world_size > 1:
            _together(lambda: torch.distributed.all_reduce(tensor))
        return tensor

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Let the first process do something before the others do: what it puts into a cache they find there."""
        if self.is_main:
            yield
        self.broadcast(None)
        if not self.is_main:
            yield


SINGLE_PROCESS = ProcessGroup()


def _together(work: Callable[[], T]) -> T:
    try:
        return work()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise DistributedError("another process of this run has ended", cure=_AGAIN) from error


def launched_rank() -> tuple[int, int]:
    """Return which process this is and of how many, as the launcher says."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def join_processes(on_cpu: bool) -> Iterator[ProcessGroup]:
    """Meet the other processes of a run for a while; alone where no launcher has set up several.

    A process that ends for an error or a signal takes the others along, in seconds; one that is killed in less than a
    minute.

    Args:
        on_cpu: the models are on CPUs.

    Raises:
        RanksError: they do not come together, or one has ended.
    """
    number, count = launched_rank()
    if count == 1:
        yield SINGLE_PROCESS
        return
    from accelerate import PartialState

    try:
        PartialState(cpu=on_cpu, timeout=_LONG)
        store = torch.distributed.PrefixStore("roundtrip", torch.distributed.distributed_c10d._get_default_store())
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"the {count} processes do not come together: {error}",
            cure="look at RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which torchrun sets",
        ) from error
    over, closing = threading.Event(), threading.Event()
    beats = [time.monotonic()]
    watch = threading.Thread(target=_watch, args=(store, number, count, over, closing, beats), daemon=True)
    watch.start()
    threading.Thread(target=_watch_the_watch, args=(over, beats), daemon=True).start()
    processes = ProcessGroup(number, count)
    try:
        yield processes
        processes.broadcast(None)
        # From here on nobody needs another, and whoever keeps the store may be gone.
        closing.set()
        processes.broadcast(None)
    except BaseException as error:
        # From here on this process ends by itself, with its own words.
        over.set()
        # Who was told by the others need not tell them, and they may be gone.
        if not isinstance(error, DistributedError):
            _leave(store, number, error.exit_code if isinstance(error, RoundtripError) else 1)
        raise
    over.set()
    watch.join(PULSE)
    torch.distributed.destroy_process_group()


def _leave(store: Any, number: int, code: int) -> None:
    """Tell the others that this process ends, and see to it that they hear of it before the store is gone with it.

    The launcher ends a process when another has ended; until then this one has something to say to the person.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def tell() -> None:
        with suppress(RuntimeError):
            store.set(f"left/{number}", str(code))

    # The store may not answer any more.
    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    telling.join(PULSE)
    atexit.register(time.sleep, 2 * PULSE)


def _watch(
    store: Any, number: int, count: int, over: threading.Event, closing: threading.Event, beats: list[float]
) -> None:
    """Give signs of life and look for those of the others; where one is dead this process ends, whatever it is at.

    Args:
        closing: the work is done by all.
        beats: gets the time of each look.
    """
    seen = {other: (0, time.monotonic()) for other in range(count) if other != number}
    while not over.wait(PULSE):
        try:
            store.add(f"alive/{number}", 1)
            now = time.monotonic()
            # Who has slept himself, as a whole machine may, has not seen whether others were alive.
            slept = now - beats[-1] > DEAD / 2
            for other, (counted, since) in seen.items():
                if store.check([f"left/{other}"]):
                    code = int(store.get(f"left/{other}"))
                    _end(over, f"process {other} of this run has ended with exit code {code}", code)
                count_now = store.add(f"alive/{other}", 0)
                if count_now != counted or slept:
                    seen[other] = count_now, now
                elif now - since > DEAD and not closing.is_set():
                    _end(over, f"process {other} of this run has given no sign of life for {DEAD:.0f} seconds", 3)
            beats[-1] = time.monotonic()
        except RuntimeError:
            if closing.is_set():
                return
            _end(over, "the process that the others of this run meet at has ended", 3)


def _watch_the_watch(over: threading.Event, beats: list[float]) -> None:
    """End this process where nobody answers any more at the place where all meet."""
    before = time.monotonic()
    while not over.wait(PULSE):
        now = time.monotonic()
        if now - before > DEAD / 2:
            beats[-1] = now
        elif now - beats[-1] > DEAD:
            _end(over, f"the process that the others of this run meet at has not answered for {DEAD:.0f} seconds", 3)
        before = now


def _end(over: threading.Event, problem: str, code: int) -> None:
    if over.is_set():
        return
    try:
        sys.stdout.flush()
        os.write(2, f"error: {problem}\n  {_AGAIN}\n".encode())
    finally:
        # The main thread may wait for the dead for ever.
        os._exit(code)
