"""Encoding text as it is: fast, and with user text that stays text where it spells a special token.

For that the template's special tokens get aliases of private-use characters, which no cleaned text holds.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

_OPEN, _CLOSE = "\ue0b0", "\ue0b1"
_TEXTS_AT_ONCE = 8192
# Where the user's text begins and ends.
Spans = Sequence[tuple[int, int]]


def encoder(tokenizer: Tokenizer, *, specials: bool) -> Callable[[list[str]], list[list[int]]]:
    """Return a function that encodes texts as they are; only with `specials` may text become special tokens."""
    backend = Tokenizer.from_str(tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = not specials

    def encode(texts: list[str]) -> list[list[int]]:
        # In parts: an encoding takes far more memory than its ids.
        parts = (texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE))
        return [
            encoding.ids for part in parts for encoding in backend.encode_batch_fast(part, add_special_tokens=False)
        ]

    return encode


def special_pattern(specials: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of special tokens, the longest first; without any it never matches."""
    return re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)")


def touches(match: re.Match[str], spans: Spans) -> bool:
    return any(match.start() < end and start < match.end() for start, end in spans)


def template_specials(special: re.Pattern[str], text: str, user: Spans) -> Iterator[re.Match[str]]:
    """Yield the special tokens of a text that the user's text has no part in."""
    return (match for match in special.finditer(text) if not touches(match, user))


class LiteralEncoder:
    """An encoder for one fast tokenizer and the texts of its special tokens."""

    def __init__(self, tokenizer: Any, specials: Iterable[str]) -> None:
        document = json.loads(tokenizer.backend_tokenizer.to_str())
        ids = {}
        for token in document["added_tokens"]:
            if token["content"] in specials:
                token["content"] = f"{_OPEN}{token['id']}{_CLOSE}"
            ids[token["content"]] = token["id"]
        document["post_processor"] = document["truncation"] = document["padding"] = None
        self._backend = Tokenizer.from_str(json.dumps(document))
        # The copy assigns new ids to added tokens.
        self._ids = {self._backend.token_to_id(content): number for content, number in ids.items()}
        self._alias = {text: f"{_OPEN}{tokenizer.convert_tokens_to_ids(text)}{_CLOSE}" for text in specials}
        self._special = special_pattern(specials)

    def encode(self, text: str, user: Spans) -> tuple[list[int], list[int]]:
        """Return ids and the end offset of each token; special tokens that touch the user's text stay text."""
        # All in one piece: encoded in parts, some tokenizers would put a space in front of each.
        pieces: list[str] = []
        # Ends of the pieces in the text as it is, and as it is encoded.
        ends, encoded_ends = [0], [0]
        for match in template_specials(self._special, text, user):
            before, alias = text[ends[-1] : match.start()], self._alias[match.group()]
            for piece, end in ((before, match.start()), (alias, match.end())):
                pieces.append(piece)
                ends.append(end)
                encoded_ends.append(encoded_ends[-1] + len(piece))
        pieces.append(text[ends[-1] :])
        encoding = self._backend.encode("".join(pieces), add_special_tokens=False)

        def original(offset: int) -> int:
            piece = bisect_left(encoded_ends, offset)
            exact = piece < len(encoded_ends) and encoded_ends[piece] == offset
            return ends[piece] if exact else ends[piece - 1] + offset - encoded_ends[piece - 1]

        return [self._ids.get(i, i) for i in encoding.ids], [original(end) for _, end in encoding.offsets]
