"""Encoding text as it is: fast, and with user text that stays text where it spells a special token.

For texts in which a user spells special tokens, a copy of the tokenizer has every special token under an alias of
private-use characters, which no cleaned text holds. The template is rewritten with the aliases, the user's text stays,
and the whole is encoded in one piece: encoded in parts, some tokenizers would put a space in front of each.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer

_OPEN, _CLOSE = "\ue0b0", "\ue0b1"


def encoder(tokenizer: Any, *, specials: bool) -> Callable[[list[str]], list[list[int]]]:
    """Return a function that encodes texts with nothing added, by a copy of the tokenizer without its settings.

    Args:
        specials: text that spells a special token becomes that token; else it stays text, as a user's must.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = not specials

    def encode(texts: list[str]) -> list[list[int]]:
        return (
            [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)] if texts else []
        )

    return encode


class LiteralEncoder:
    """An encoder for one fast tokenizer.

    Args:
        tokenizer: a transformers tokenizer with a `tokenizers` backend.
        specials: the texts of its special tokens.
    """

    def __init__(self, tokenizer: Any, specials: Sequence[str]) -> None:
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
        longest_first = sorted(specials, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)))

    def encode(self, text: str, user: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """Return ids and the end offset of each token.

        Args:
            user: where the user's text begins and ends; special tokens that touch it stay text.
        """
        pieces: list[str] = []
        # Ends of the pieces in the text as it is, and as it is encoded.
        ends, encoded_ends = [0], [0]
        at = 0
        for match in self._special.finditer(text):
            if any(match.start() < end and start < match.end() for start, end in user):
                continue
            for piece, end in ((text[at : match.start()], match.start()), (self._alias[match.group()], match.end())):
                pieces.append(piece)
                ends.append(end)
                encoded_ends.append(encoded_ends[-1] + len(piece))
            at = match.end()
        pieces.append(text[at:])
        encoding = self._backend.encode("".join(pieces), add_special_tokens=False)

        def original(offset: int) -> int:
            piece = bisect_left(encoded_ends, offset)
            exact = piece < len(encoded_ends) and encoded_ends[piece] == offset
            return ends[piece] if exact else ends[piece - 1] + offset - encoded_ends[piece - 1]

        return [self._ids.get(i, i) for i in encoding.ids], [original(end) for _, end in encoding.offsets]
