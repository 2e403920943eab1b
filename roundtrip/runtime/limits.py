"""Calls with hostile input in a process of their own that ends at limits of time and memory."""

import gc
import json
import math
import os
import selectors
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

CALL_SECONDS = 10.0
# How much longer than its time of the processor a call may take by the clock, where the machine is busy or a disk slow,
# and the most that it may.
_PATIENCE, CLOCK_SECONDS = 3.0, 20.0
# Memory that a call may take beyond what this process has at its start.
CALL_BYTES = 1 << 30
# The longest result, as JSON.
RESULT_BYTES = 64 << 20
_ERROR_CHARS = 2000
_IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class LimitedCallError(Exception):
    """A limited call has failed, or has exceeded its time, its memory or the size of its result."""


def call_limited(function: Callable[[], Any], seconds: float = CALL_SECONDS, memory: int = CALL_BYTES) -> Any:
    """Call a function in a fork of this process, which has all that is imported, and return its result.

    Where there is no `os.fork` (Windows), it is called in this process without limits; macOS limits the time only.

    Args:
        function: must not use PyTorch or wait for another thread: after a fork, locks of other threads stay locked. Its
            result must be JSON, and comes back as JSON has it (a tuple as a list).
        seconds: of the processor; by the clock it may take three times as long, but 20 seconds at most.
        memory: bytes of address space beyond that of this process.

    Raises:
        LimitedCallError: the function has raised an error, or exceeded a limit.
    """
    if not hasattr(os, "fork"):
        return _outcome(_run(function))
    reader, writer = os.pipe()
    try:
        with _no_fork_warnings():
            child = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if child == 0:
        _serve(function, writer, seconds, memory)
    try:
        os.close(writer)
        content = _read(reader, time.monotonic() + min(_PATIENCE * seconds, CLOCK_SECONDS))
    except TimeoutError as error:
        raise _too_long(min(_PATIENCE * seconds, CLOCK_SECONDS)) from error
    finally:
        os.close(reader)
        status = 0
        # Where SIGCHLD is ignored, the system has removed it.
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        raise _too_long(seconds)
    if not content:
        ending = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"
        raise LimitedCallError(f"it ended its process by {ending}, as for more memory or recursion than there is")
    return _outcome(content)


def _too_long(seconds: float) -> LimitedCallError:
    return LimitedCallError(f"it takes more than {seconds:g} seconds")


def describe_error(error: BaseException) -> str:
    """Return what the error of a limited call says, in at most 2,000 characters."""
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error)[:_ERROR_CHARS] or type(error).__name__


@contextmanager
def _no_fork_warnings() -> Iterator[None]:
    """Keep Python and tokenizers, which prints in the child, from warning of threads that the child does not use."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _serve(function: Callable[[], Any], writer: int, seconds: float, memory: int) -> NoReturn:
    """Call the function in the child, write its outcome, and end without handlers of the parent."""
    try:
        # Threads need memory of their own, and those of the parent are not here to do what they are asked for.
        os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
        # No finalizer may touch what belongs to the parent, as memory of a GPU.
        gc.disable()
        for name in _IGNORED_SIGNALS:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            if standard != writer:
                os.dup2(null, standard)
        # A lock on a file is held until all copies of its descriptor are closed.
        for path in [*Path("/dev/fd").iterdir()]:
            if (descriptor := int(path.name)) > 2 and descriptor != writer:
                with suppress(OSError):
                    os.close(descriptor)
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8", errors="replace")  # noqa: SIM115, to the end
        _limit_process(seconds, memory)
        content = _run(function)
        while content:
            content = content[os.write(writer, content) :]
        os._exit(0)
    except BaseException:
        os._exit(1)


def _limit_process(seconds: float, memory: int) -> None:
    import resource

    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: math.ceil(seconds)}
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + memory
    for kind, value in limits.items():
        _, hard = resource.getrlimit(kind)
        # At the hard limit of time the system kills without saying why.
        limit = value + (kind == resource.RLIMIT_CPU)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (min(value, limit), limit))


def _run(function: Callable[[], Any]) -> bytes:
    """Return the JSON of a function's result, or of its error."""
    try:
        content = json.dumps({"result": function()}).encode("ascii")
        if len(content) <= RESULT_BYTES:
            return content
        problem = f"its result has more than {RESULT_BYTES >> 20} MiB"
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        problem = describe_error(error)
    return json.dumps({"error": problem}).encode("ascii")


def _read(reader: int, deadline: float) -> bytes:
    """Read to the end, which the child's exit is too."""
    parts: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise TimeoutError
            part = os.read(reader, 1 << 20)
            if not part:
                return b"".join(parts)
            parts.append(part)


def _outcome(content: bytes) -> Any:
    try:
        outcome = json.loads(content)
    except ValueError as error:
        raise LimitedCallError("its process was ended while it returned its result") from error
    if "error" in outcome:
        raise LimitedCallError(outcome["error"])
    return outcome["result"]
