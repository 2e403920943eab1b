"""The boundaries of the source slot: what each token of the vocabulary becomes there, found by trying every one.

A hypothesis generated behind `assistant` and a line break begins with another token than a slot behind `Spanish:` needs
(`Hola`, ` Hola`), white space at its ends is stripped, and a full stop may merge with the line break behind it. Where
one token becomes one token the tables hold it; anything else is refused, and the row takes the text path.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roundtrip.runtime.errors import TemplateError
from roundtrip.tokens.literal_encoding import encoder
from roundtrip.tokens.prompt_template import PromptTemplate, num_common
from roundtrip.tokens.splice.pair_rules import OnProgress, PairRules
from roundtrip.tokens.splice.vocabulary import BAD, PARTIAL, TokenVocabulary

# What precedes a last token while the boundary behind it is tried, where no special token separates them.
CONTEXTS = ("\n", " ", "a", "7", ".", "家")
PROBE = "Ein"
MAX_MIDS = 8


@dataclass(frozen=True)
class BoundaryTables:
    """The fixed ids around a source, and what each token becomes at either end of it."""

    head: Sequence[int]  # in front of the slot, the prefix included
    mids: Sequence[Sequence[int]]  # between source and target, behind different last tokens; the first is the usual one
    first_V: Sequence[int]  # what a token becomes as the first of the slot, -1 where that is not one token
    last_V: Sequence[int]  # the same for the last
    mid_V: Sequence[int]  # which of `mids` follows a last token
    space: int  # id of a space that the head leaves to the slot (`English: ` before `家`), -1 where there is none


class BoundaryProbe:
    """Finds the boundary tables of a template; a TemplateError says that it does not keep source and target apart."""

    def __init__(self, template: PromptTemplate, one_line: bool) -> None:
        # Of one line: a hypothesis ends at its first line break.
        self.template, self.one_line = template, one_line
        self._encode = encoder(template.tokenizer.backend_tokenizer, specials=True)
        segments = template.segments
        prefix = segments.prefix_ids
        probes = ("a", "Ein", "1", "家", "(")
        encoded = self._encode([segments.head + probe for probe in probes])
        self.head = (*prefix, *encoded[0][: num_common(*encoded)])
        row = template.rows([("a", PROBE)])[0]
        self.probe = tuple(row.ids[row.start : -1])
        before = [*prefix, *encoded[0]]
        self.mid = tuple(row.ids[len(before) : row.start])
        if row.ids[: len(before)] != before or not self.mid:
            raise TemplateError(
                "nothing of the template stands between source and target that keeps their tokens apart",
                place="template",
                cure="put a word or a line break between {source} and {target}, or use the chat template",
            )
        separated = any(segments.mid.startswith(text) for text in template.special_texts)
        self.contexts = CONTEXTS[:1] if separated else CONTEXTS
        self._context_ids = [tuple(ids) for ids in self._encode(list(self.contexts))]
        # What precedes the last special token changes nothing behind it.
        self._head_text = segments.head[template.last_special(segments.head) :]
        encoded = self._encode([self._head_text + probe for probe in probes])
        self._head_end = encoded[0][: num_common(*encoded)]
        (ids,) = self._encode([segments.head])
        one_space = segments.head.endswith(" ") and not segments.head.endswith("  ")
        self.space = ids[-1] if one_space and (*prefix, *ids[:-1]) == self.head else -1

    def unchanged(self, size: int) -> BoundaryTables:
        """Return tables that leave every token of a vocabulary as it is: for rows that the host verifies."""
        return BoundaryTables(self.head, (self.mid,), range(size), range(size), [0] * size, self.space)

    def find(self, vocabulary: TokenVocabulary, on_progress: OnProgress) -> BoundaryTables:
        """Try every token of the template's tokenizer at both boundaries."""
        flags_V = vocabulary.flags_V
        # Rows with parts of characters are verified by the host.
        first_V = np.where(flags_V & PARTIAL != 0, np.arange(len(flags_V)), -1)
        last_V, mid_V = first_V.copy(), np.zeros(len(flags_V), dtype=np.int64)
        tried: list[int] = np.flatnonzero(flags_V & (PARTIAL | BAD) == 0).tolist()
        texts = [str(vocabulary.text([token])) for token in tried]
        first_V[tried] = self._firsts(texts)
        pairs = zip(tried, self._lasts(tried, texts, on_progress), strict=True)
        lasts = {token: last for token, last in pairs if last is not None}
        rests = Counter(rest for _, rest in lasts.values())
        mids = [self.mid, *(rest for rest, _ in rests.most_common(MAX_MIDS) if rest and rest != self.mid)][:MAX_MIDS]
        for token, (last_id, rest) in lasts.items():
            if rest in mids:
                last_V[token], mid_V[token] = last_id, mids.index(rest)
        if self.space >= 0:
            first_V[self.space] = self.space
        # A token is kept only where its replacement is replaced by itself.
        for table_V in (first_V, last_V):
            kept = table_V >= 0
            table_V[kept & (table_V[np.where(kept, table_V, 0)] != table_V)] = -1
        return BoundaryTables(self.head, mids, first_V.tolist(), last_V.tolist(), mid_V.tolist(), self.space)

    def unproved(self, rules: PairRules) -> str | None:
        """Return what may form across a boundary out of three tokens, which the tables do not show; None if nothing."""
        head = self.template.segments.head
        # A source neither begins nor ends with white space.
        for content in rules.vocabulary.added:
            for size in range(1, min(len(head) + 1, len(content))):
                if head.endswith(content[:size]) and not content[size].isspace():
                    return f"the added token {content!r} may form out of the template's {content[:size]!r} and a source"
        for first, second, third in rules.merge_override_triples_C3.tolist():
            texts = [str(rules.vocabulary.text([token])) for token in (first, second, third)]
            starts = self.head[-1:] == (first,) and not texts[1][:1].isspace()
            starts |= self.head[-2:] == (first, second) and not texts[2][:1].isspace()
            ends = self.mid[0] == third and not texts[1][-1:].isspace()
            ends |= self.mid[:2] == (second, third) and not texts[0][-1:].isspace()
            if starts or ends:
                return f"the word {''.join(texts)!r} may form across a boundary and win over its merges"
        return None

    def _firsts(self, texts: Sequence[str]) -> list[int]:
        """Return what tokens of these texts become as the first of the slot, -1 where that is not one token."""
        texts = [text.lstrip() for text in texts]
        encoded, size = self._encode([self._head_text + text for text in texts]), len(self._head_end)
        return [
            ids[size] if text and len(ids) == size + 1 and ids[:size] == self._head_end else -1
            for text, ids in zip(texts, encoded, strict=True)
        ]

    def _lasts(
        self, tokens: Sequence[int], texts: Sequence[str], on_progress: OnProgress
    ) -> list[tuple[int, tuple[int, ...]] | None]:
        """Return what each token becomes as the last of the slot, and what follows it; None where it is not one."""
        texts = [self._ending(text) for text in texts]
        outcomes: list[set[tuple[int, tuple[int, ...]] | None]] = [set() for _ in tokens]
        for done, (context, context_ids) in enumerate(zip(self.contexts, self._context_ids, strict=True)):
            on_progress("trying every token at the boundaries", done, len(self.contexts))
            joint = self._encode([context + text + self.template.segments.mid + PROBE for text in texts])
            usual = ((*context_ids, token, *self.mid, *self.probe) for token in tokens)
            others = [number for number, ids in enumerate(usual) if ids != tuple(joint[number])]
            # A context counts where it leaves the token as it is, which a usual row shows already.
            alone = zip(others, self._encode([context + texts[number] for number in others]), strict=True)
            size = len(context_ids)
            changed = {n for n, ids in alone if len(ids) != size + 1 or tuple(ids[:-1]) != context_ids}
            for number, ids in enumerate(joint):
                end = len(ids) - len(self.probe)
                framed = end > size and (tuple(ids[:size]), tuple(ids[end:])) == (context_ids, self.probe)
                if number not in changed:
                    outcomes[number].add((ids[size], tuple(ids[size + 1 : end])) if framed else None)
        return [some.pop() if text and len(some) == 1 else None for text, some in zip(texts, outcomes, strict=True)]

    def _ending(self, text: str) -> str:
        """Return the text of a last token as `hypothesis_text` leaves it; nothing where that depends on the rest."""
        if self.one_line and "\n" in text:
            before, _, behind = text.partition("\n")
            return "" if behind.strip() else before.rstrip()
        return text.rstrip()
