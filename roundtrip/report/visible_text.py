"""Text of any origin for a page: nothing in it is invisible, changes the order of what is around it, or is not text."""

import re

from roundtrip.runtime.errors import printable

# Overrides, embeddings and isolates of direction, which may show a text as another one (https://trojansource.codes);
# and what neither HTML nor XML can hold.
_UNSAFE = re.compile("[\u202a-\u202e\u2066-\u2069\ufffe\uffff\u2028\u2029]")


def visible(text: str) -> str:
    """Return text in which control characters are escaped, as `\\x00` and `\\u202e`."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", printable(text))
