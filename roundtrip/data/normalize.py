"""Normalization of text to one line in Unicode NFC without control characters, on which every later step relies."""

import re
import unicodedata

# The C0 and C1 controls that are not white space, and the byte order mark.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]+")
_BREAK = re.compile("[\t\n\v\f\r\x85\u2028\u2029]")
_SPACES = re.compile(r"\s+")
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """Return the text as one line in Unicode NFC, without control characters and byte order marks.

    A run of white space that holds a line break or a tab becomes one space, and the ends are stripped; other
    inner spacing stays. Lone surrogates become U+FFFD, so that the result can be written as UTF-8. Cleaning
    twice gives what cleaning once gives.
    """
    if _SURROGATE.search(text):
        # Decoding joins surrogate pairs that were escaped separately; only lone surrogates are replaced.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = _INVISIBLE.sub("", text).strip()
    if _BREAK.search(text):
        text = _SPACES.sub(_one_line, text)
    # Last, because a removed control character may have separated a letter from its accent.
    return unicodedata.normalize("NFC", text)


def _one_line(run: re.Match[str]) -> str:
    return " " if _BREAK.search(run.group()) else run.group()
