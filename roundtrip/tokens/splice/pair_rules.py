"""Which neighbouring tokens are canonical: the rules that decide it on the host.

A byte-pair encoding is local: under the five conditions that docs/design.md derives, a row of tokens is what the
tokenizer produces from its text when every pair is. A row with part of a character is not decided by pairs.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from roundtrip.tokens.literal_encoding import encoder
from roundtrip.tokens.splice import vocabulary
from roundtrip.tokens.splice.vocabulary import BAD, PARTIAL

# Called with what is being done, how far it is, and how far it goes.
OnProgress = Callable[[str, int, int], None]

# Left contexts: line break and nothing, space, letters with and without case, digit, each kind of punctuation,
# ideograph, mark. A pair is tried behind each context that leaves its first token as it is.
CONTEXTS = ("\n", "", " ", "a", "Z", "é", "7", ".", ",", "/", "-", "(", "'", '"', "_", "$", "家", "ا", "ก็", "🙂")


def silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


class PairRules:
    """Decides about pairs of whole-character tokens of one tokenizer; `vocabulary` marks unreachable ones as BAD."""

    def __init__(self, tokenizer: Any, on_progress: OnProgress = silent) -> None:
        # User text that spells a special token stays text.
        self._encode = encoder(tokenizer.backend_tokenizer, specials=False)
        self._context_ids = [tuple(ids) for ids in self._encode(list(CONTEXTS))]
        self._intact: dict[int, list[int]] = {}
        self.vocabulary = vocabulary.read_vocabulary(tokenizer)
        self._mark_unreachable(on_progress)
        # The first three ids of each word that wins over its merges (`ignore_merges`).
        self.merge_override_triples_C3 = self._merge_override_triples(tokenizer)

    def settle(self, pairs: Sequence[tuple[int, int]]) -> list[bool]:
        """Return for each pair of tokens whether it is canonical in every context that leaves its first token whole."""
        texts = [self.vocabulary.text(pair) for pair in pairs]
        self._find_intact(first for first, _ in pairs)
        canonical = [
            text is not None and bool(self._intact[pair[0]]) and not self._begins_added_token(pair, text)
            for pair, text in zip(pairs, texts, strict=True)
        ]
        # Most wrong pairs fail in their first context; the others are tried in the rest.
        for some in (slice(1), slice(1, None)):
            tried = [
                (number, context)
                for number, (first, _) in enumerate(pairs)
                if canonical[number]
                for context in self._intact[first][some]
            ]
            encoded = self._encode([f"{CONTEXTS[context]}{texts[number]}" for number, context in tried])
            for (number, context), ids in zip(tried, encoded, strict=True):
                canonical[number] &= tuple(ids) == (*self._context_ids[context], *pairs[number])
        return canonical

    def _begins_added_token(self, pair: tuple[int, int], text: str) -> bool:
        first = str(self.vocabulary.text(pair[:1]))
        return any(text[start:] in self.vocabulary.added_prefixes for start in range(len(first)))

    def _find_intact(self, tokens: Iterable[int]) -> None:
        """Remember which contexts leave each token whole."""
        new = [token for token in dict.fromkeys(tokens) if token not in self._intact]
        self._intact |= {token: [] for token in new}
        whole = [(token, text) for token in new if (text := self.vocabulary.text([token])) is not None]
        for number, context in enumerate(CONTEXTS):
            encoded = self._encode([context + text for _, text in whole])
            for (token, _), ids in zip(whole, encoded, strict=True):
                if tuple(ids) == (*self._context_ids[number], token):
                    self._intact[token].append(number)

    def _mark_unreachable(self, on_progress: OnProgress) -> None:
        """Mark every whole-character token that the tokenizer produces behind no context."""
        flags_V = self.vocabulary.flags_V
        open_ids = self._whole_tokens()
        for number, context in enumerate(CONTEXTS):
            on_progress("reading the vocabulary", number, len(CONTEXTS))
            encoded = self._encode([f"{context}{self.vocabulary.text([token])}" for token in open_ids])
            intact = [[*self._context_ids[number], token] for token in open_ids]
            open_ids = [ids[-1] for ids, other in zip(intact, encoded, strict=True) if ids != other]
        flags_V[open_ids] |= BAD

    def _whole_tokens(self) -> list[int]:
        return [int(i) for i in np.flatnonzero((self.vocabulary.flags_V & (BAD | PARTIAL)) == 0)]

    def _merge_override_triples(self, tokenizer: Any) -> NDArray[np.int64]:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        if not content["model"].get("ignore_merges"):
            return np.zeros((0, 3), dtype=np.int64)
        content["model"]["ignore_merges"] = False
        encode = encoder(Tokenizer.from_str(json.dumps(content)), specials=False)
        encoded = encode([str(self.vocabulary.text([token])) for token in self._whole_tokens()])
        return np.array(sorted({tuple(ids[:3]) for ids in encoded if len(ids) > 2}), dtype=np.int64).reshape(-1, 3)
