"""All errors that are raised for the user, each with its problem, place and cure."""

import difflib
import errno
import re
import signal
from collections.abc import Iterable


class RoundtripError(Exception):
    """Base of all errors that are raised on purpose; the command line prints it without a traceback.

    Args:
        problem: what is wrong, in one sentence that contains the offending value.
        place: where: a file, a file and line, a recipe key.
        cure: what to do about it.

    Example:
        >>> print(RoundtripError("no such file: 'a.tsv'", place="data.train", cure="check its spelling"))
        data.train: no such file: 'a.tsv'
          check its spelling
    """

    exit_code = 2

    def __init__(self, problem: str, *, place: str | None = None, cure: str | None = None) -> None:
        self.problem, self.place, self.cure = problem, place, cure
        super().__init__(str(self))

    def __str__(self) -> str:
        problem = _short(self.problem)
        text = f"{_short(self.place)}: {problem}" if self.place else problem
        return f"{text}\n  {_short(self.cure)}" if self.cure else text


def _short(text: str) -> str:
    """Return text without its middle where it has more than 6,000 characters."""
    return text if len(text) <= 6000 else f"{text[:3000]} ... {text[-3000:]}"


def printable(text: str) -> str:
    """Return text that is safe to print on a terminal: control characters are escaped, as `\\x1b`."""
    # All except tab and line feed; C1 too, which begins a sequence in some terminals, and bytes of paths that are not
    # UTF-8, which Python holds as surrogates.
    unsafe = "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"
    return re.sub(unsafe, lambda match: f"\\x{ord(match.group()) & 0xFF:02x}", text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where that is empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def quantity(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 line`, `2 lines`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "known", most: int = 20) -> str:
    """Return a hint for a name that does not exist: a similar one, or `otherwise` and at most `most` known names."""
    names = sorted(set(known))
    if close := difflib.get_close_matches(word, names, n=1, cutoff=0.5):
        return f"did you mean '{close[0]}'?"
    return f"{otherwise}: {', '.join(names[:most]) or 'nothing'}{', ...' if len(names) > most else ''}"


class UsageError(RoundtripError):
    """The arguments of a command or function do not fit together, or one is out of range."""


class RecipeError(RoundtripError):
    """The recipe is invalid."""


class SourceError(RoundtripError):
    """A model or a text file cannot be fetched: no such path, a wrong hash, an unreachable registry."""


class TextError(RoundtripError):
    """A text file is damaged or empty; the place names file and line."""


class TemplateError(RoundtripError):
    """The prompt template cannot be used with this tokenizer."""


class RowBuilderError(RoundtripError):
    """The requested tokenization mode is not available for this tokenizer, or a spliced row is wrong."""

    exit_code = 3


class ModelError(RoundtripError):
    """A model or adapter cannot be loaded or cannot do what the recipe asks."""


class RunError(RoundtripError):
    """The run folder cannot be used: not writable, in use, not a run, or of another recipe."""


class TrainingError(RoundtripError):
    """Training cannot continue: no rows are left to train on, or losses are not finite."""

    exit_code = 3


class DistributedError(RoundtripError):
    """The processes that share a run cannot continue together."""

    exit_code = 3


class DiskError(RoundtripError):
    """The disk is full, or the system refuses a file; what was written before is complete."""

    exit_code = 3


class OutputError(RoundtripError):
    """Standard output cannot be written: its disk is full, or its reader has gone, as `| head` does (code 141)."""

    def __init__(self, error: OSError) -> None:
        problem = f"cannot be written: {error.strerror}"
        super().__init__(problem, place="standard output", cure="write it to a file on a disk with free space")
        self.exit_code = 141 if error.errno == errno.EPIPE else 3


class Interrupted(RoundtripError):
    """A signal has stopped the run, whose state is saved; the exit code is 128 plus its number."""

    def __init__(self, signal_number: int, cure: str = "repeat the command with --resume to continue") -> None:
        super().__init__(f"received {signal.Signals(signal_number).name}", cure=cure)
        self.exit_code = 128 + signal_number
