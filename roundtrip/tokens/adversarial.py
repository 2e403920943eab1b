"""Adversarial rows for the checker: random rows that spell a text in other tokens than the tokenizer would.

A model that samples generates such rows now and then; here they are many, so that a rule which accepts a wrong row is
found before it is trusted. The text path decides, so an attack needs no knowledge of tokenizers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from roundtrip.tokens.splice.vocabulary import TokenVocabulary

_LONGEST = 24  # bytes of a token that an attack looks for


class AdversarialRows:
    """Makes attacked rows for one vocabulary.

    Args:
        vocabulary: of the tokenizer.
        seed: of the random choices.
    """

    def __init__(self, vocabulary: TokenVocabulary, seed: int) -> None:
        self._texts = vocabulary.texts
        self._by_text = {text: number for number, text in enumerate(vocabulary.texts) if text and len(text) <= _LONGEST}
        self._tokens = sorted(self._by_text.values())
        # Tokens that are rare among all and seldom harmless: added ones, and white space.
        added = {content.encode("utf-8") for content in vocabulary.added}
        self._odd = [i for i, text in enumerate(vocabulary.texts) if text and (not text.strip() or text in added)]
        self._random = random.Random(seed)

    def rows(self, canonical: Sequence[Sequence[int]], number: int) -> Iterator[list[int]]:
        """Yield attacked rows: a token, a span or all of a row respelt, foreign and odd tokens, pieces of two rows."""
        rows = [list(row) for row in canonical if row]
        kinds = (
            *(self._token, self._span, self._span, self._whole, self._foreign),
            *(self._odds, self._joined, self._framed, self._cut),
        )
        for count in range(number if rows else 0):
            yield kinds[count % len(kinds)](list(self._random.choice(rows)), rows)

    def split(self, text: bytes) -> list[int]:
        """Return random tokens that spell these bytes; empty where none do."""
        found: list[int] = []
        at = 0
        while at < len(text):
            ends = [end for end in range(at + 1, min(len(text), at + _LONGEST) + 1) if text[at:end] in self._by_text]
            if not ends:
                return []
            end = self._random.choice(ends)
            found.append(self._by_text[text[at:end]])
            at = end
        return found

    def _token(self, row: list[int], rows: list[list[int]]) -> list[int]:
        at = self._random.randrange(len(row))
        return self._respelt(row, at, at + 1)

    def _span(self, row: list[int], rows: list[list[int]]) -> list[int]:
        at = self._random.randrange(len(row))
        return self._respelt(row, at, min(len(row), at + self._random.randint(2, 5)))

    def _whole(self, row: list[int], rows: list[list[int]]) -> list[int]:
        return self._respelt(row, 0, len(row))

    def _foreign(self, row: list[int], rows: list[list[int]]) -> list[int]:
        at = self._random.randrange(len(row) + 1)
        return [*row[:at], self._random.choice(self._tokens), *row[at:]]

    def _odds(self, row: list[int], rows: list[list[int]]) -> list[int]:
        at = self._random.randrange(len(row) + 1)
        return [*row[:at], self._random.choice(self._odd or self._tokens), *row[at:]]

    def _joined(self, row: list[int], rows: list[list[int]]) -> list[int]:
        other = self._random.choice(rows)
        return row[: self._random.randint(1, len(row))] + other[self._random.randrange(len(other)) :]

    def _framed(self, row: list[int], rows: list[list[int]]) -> list[int]:
        """Put a token of any kind at either end, white space and line breaks among them."""
        blanks = [self._by_text[text] for text in (b" ", b"\n", b"  ", b".\n", b"\n\n") if text in self._by_text]
        either = self._random.choice([*blanks, self._random.choice(self._tokens)])
        return [either, *row] if self._random.random() < 0.5 else [*row, either]

    def _cut(self, row: list[int], rows: list[list[int]]) -> list[int]:
        start = self._random.randrange(len(row))
        return row[start : start + self._random.randint(1, 8)]

    def _respelt(self, row: list[int], start: int, end: int) -> list[int]:
        pieces = [self._texts[token] for token in row[start:end]]
        new = [] if None in pieces else self.split(b"".join(piece for piece in pieces if piece))
        return [*row[:start], *new, *row[end:]] if new else row
