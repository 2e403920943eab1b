"""Which neighbours are canonical: the rules that decide, on the host, whether tokens may stand side by side.

A byte-pair encoding is local: a row is what the tokenizer would write when every pair of neighbouring units is. Five
companions make that true for real tokenizers; docs/design.md tells what each was needed for:

- a token must be reachable, that is written by the tokenizer at all;
- a pair must hold behind many left contexts, since pre-tokenizers split by what stands before;
- a pair must not begin an added token that a third one would complete;
- where whole words win over merges (`ignore_merges`), the first three tokens of such a word are a trap;
- characters that Unicode composes belong to the unit before them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from roundtrip.tokens.literal_encoding import encoder
from roundtrip.tokens.splice import vocabulary
from roundtrip.tokens.splice.vocabulary import BAD, GLUE_LEFT, GLUE_RIGHT, TokenGroup

OnProgress = Callable[[int, int], None]

# What may stand to the left: line break and nothing, space, letters with and without case, digit, each kind of
# punctuation, ideograph, mark. A pair counts wherever the context leaves its first unit as it is.
CONTEXTS = ("\n", "", " ", "a", "Z", "é", "7", ".", ",", "/", "-", "(", "'", '"', "_", "$", "家", "ا", "ก็", "🙂")
_SLICE = 8192


class PairRules:
    """Settles pairs of units for one tokenizer.

    Attributes:
        surface: what the tokens say; tokens that are never written are marked BAD in its flags.
        traps_C3: the first three ids of each word that wins over its merges, int64.
    """

    def __init__(self, tokenizer: Any, on_progress: OnProgress = lambda done, total: None) -> None:
        # User text that spells a special token stays text.
        self._encode = encoder(tokenizer, specials=False)
        self._contexts = [tuple(ids) for ids in self._encode(list(CONTEXTS))]
        self._intact: dict[TokenGroup, int] = {}
        self.vocabulary = vocabulary.read_vocabulary(tokenizer)
        self._mark_unreachable(on_progress)
        self.merge_override_triples_C3 = self._merge_override_triples(tokenizer)

    def settle(self, pairs: Sequence[tuple[TokenGroup, TokenGroup]]) -> list[bool]:
        """Return for each pair whether it is canonical wherever it may stand."""
        texts = [self._texts(pair) for pair in pairs]
        self._find_intact([pair[0] for pair, text in zip(pairs, texts, strict=True) if text is not None])
        good = [text is not None and self._intact[pair[0]] > 0 for pair, text in zip(pairs, texts, strict=True)]
        # Most pairs that are bad are so behind the first context already; the others see the rest.
        for first_only in (True, False):
            asked: list[tuple[int, int]] = []
            windows: list[str] = []
            for number, (pair, text) in enumerate(zip(pairs, texts, strict=True)):
                if text is not None and good[number]:
                    places = self._places(pair[0])
                    places = places[:1] if first_only else places[1:]
                    asked += [(number, place) for place in places]
                    windows += [CONTEXTS[place] + text for place in places]
            for (number, place), ids in zip(asked, self._encode(windows), strict=True):
                first, second = pairs[number]
                if tuple(ids) != (*self._contexts[place], *first, *second):
                    good[number] = False
        return good

    def settle_behind(self, triples: Sequence[tuple[TokenGroup, TokenGroup, TokenGroup]]) -> list[bool]:
        """Return for each pair that is not canonical everywhere whether it is so behind the unit in front of it.

        `(` `name` is one token behind most things and two behind `%`: a software string has it all the time. The unit
        in front counts where a context leaves it and the pair's first unit as they are.
        """
        texts = [self._texts((second, third)) for _, second, third in triples]
        fronts = [self.vocabulary.text(first + second) for first, second, _ in triples]
        good = [text is not None and front is not None for text, front in zip(texts, fronts, strict=True)]
        held = [False] * len(triples)
        for place, context in enumerate(CONTEXTS):
            asked = [number for number, still in enumerate(good) if still]
            wholes = [str(self.vocabulary.text(sum(triples[number], ()))) for number in asked]
            before = self._encode([context + str(fronts[number]) for number in asked])
            after = self._encode([context + whole for whole in wholes])
            for number, front_ids, ids in zip(asked, before, after, strict=True):
                first, second, third = triples[number]
                if tuple(front_ids) == (*self._contexts[place], *first, *second):
                    held[number] = True
                    good[number] = tuple(ids) == (*self._contexts[place], *first, *second, *third)
        return [one and other for one, other in zip(good, held, strict=True)]

    def _texts(self, pair: tuple[TokenGroup, TokenGroup]) -> str | None:
        """Return the text of a pair, None where it is none or may grow into an added token."""
        first, text = self.vocabulary.text(pair[0]), self.vocabulary.text(pair[0] + pair[1])
        if first is None or text is None:
            return None
        grows = any(text[start:] in self.vocabulary.growing for start in range(len(first)))
        return None if grows else text

    def _find_intact(self, groups: Iterable[TokenGroup]) -> None:
        """Remember, as bits, which contexts leave each unit as it is."""
        new = [group for group in dict.fromkeys(groups) if group not in self._intact]
        texts = [str(self.vocabulary.text(group)) for group in new]
        for group in new:
            self._intact[group] = 0
        for place, context in enumerate(CONTEXTS):
            for group, ids in zip(new, self._encode([context + text for text in texts]), strict=True):
                if tuple(ids) == (*self._contexts[place], *group):
                    self._intact[group] |= 1 << place

    def _places(self, group: TokenGroup) -> list[int]:
        return [place for place in range(len(CONTEXTS)) if self._intact[group] >> place & 1]

    def _mark_unreachable(self, on_progress: OnProgress) -> None:
        """Mark every token of whole characters that the tokenizer writes behind no context."""
        flags_V = self.vocabulary.flags_V
        open_ids = np.flatnonzero((flags_V & (BAD | GLUE_LEFT | GLUE_RIGHT)) == 0)
        for place, context in enumerate(CONTEXTS):
            left = []
            for start in range(0, len(open_ids), _SLICE):
                some = open_ids[start : start + _SLICE]
                found = self._encode([context + str(self.vocabulary.text([int(i)])) for i in some])
                expected = self._contexts[place]
                left += [i for i, ids in zip(some, found, strict=True) if tuple(ids) != (*expected, int(i))]
                if not place:
                    on_progress(start + len(some), len(open_ids))
            open_ids = np.array(left, dtype=np.int64)
        flags_V[open_ids] |= BAD

    def _merge_override_triples(self, tokenizer: Any) -> NDArray[np.int64]:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        if not content["model"].get("ignore_merges"):
            return np.zeros((0, 3), dtype=np.int64)
        content["model"]["ignore_merges"] = False
        merging = Tokenizer.from_str(json.dumps(content))
        merging.no_truncation()
        merging.encode_special_tokens = True
        whole = np.flatnonzero((self.vocabulary.flags_V & (BAD | GLUE_LEFT | GLUE_RIGHT)) == 0)
        texts = [str(self.vocabulary.text([int(i)])) for i in whole]
        found = {
            tuple(one.ids[:3]) for one in merging.encode_batch_fast(texts, add_special_tokens=False) if len(one) > 2
        }
        return np.array(sorted(found), dtype=np.int64).reshape(-1, 3)
