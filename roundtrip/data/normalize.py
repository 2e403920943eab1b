"""Normalization of text to one line in Unicode NFC without control characters, on which every later step relies."""

import re
import unicodedata
from itertools import groupby

# The C0 and C1 controls that are not white space, and the byte order mark.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]+")
_BREAK = re.compile("[\t\n\v\f\r\x85\u2028\u2029]")
_SPACES = re.compile(r"\s+")
# More marks in a row than this are separated after each 30. White space, letters and digits are none.
_MAX_MARKS = 40
_MAYBE_MARKS = re.compile(rf"[^\w\s\x00-\x7f]{{{_MAX_MARKS // 2},}}")
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """Return the text as one line in Unicode NFC, without control characters and byte order marks.

    A run of white space that holds a line break or a tab becomes one space, and the ends are stripped; other
    inner spacing stays. Lone surrogates become U+FFFD, so that the result can be written as UTF-8. More than 40
    combining marks in a row get U+034F after each 30, as in Unicode's stream-safe text format. Cleaning twice gives
    what cleaning once gives.
    """
    if _SURROGATE.search(text):
        # Decoding joins surrogate pairs that were escaped separately; only lone surrogates are replaced.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = _INVISIBLE.sub("", text).strip()
    if _BREAK.search(text):
        text = _SPACES.sub(_one_line, text)
    # Sorting the marks of one letter takes time that grows with the square of their number.
    text = _MAYBE_MARKS.sub(_separate_marks, text)
    # Last, because a removed control character may have separated a letter from its accent.
    return unicodedata.normalize("NFC", text)


def _one_line(run: re.Match[str]) -> str:
    return " " if _BREAK.search(run.group()) else run.group()


def _separate_marks(run: re.Match[str]) -> str:
    # A few marks are composed of two.
    parts = [unicodedata.normalize("NFD", char) for char in run.group()]
    groups = ["".join(group) for _, group in groupby("".join(parts), lambda char: unicodedata.combining(char) > 0)]
    if all(len(group) <= _MAX_MARKS or not unicodedata.combining(group[0]) for group in groups):
        return run.group()
    return "".join(
        "\u034f".join(group[i : i + 30] for i in range(0, len(group), 30)) if unicodedata.combining(group[0]) else group
        for group in groups
    )
