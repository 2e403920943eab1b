"""How a source and a target become one text, and that text token ids: the text path.

One template, `head SOURCE mid TARGET end-token`, serves generation, training and translation. Spaces at the end of
`mid` belong to the first token of the target (` Hola` is one token in most vocabularies), so prompts end before them.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from roundtrip.tokens.literal_encoding import (
    LiteralEncoder,
    Spans,
    encoder,
    special_pattern,
    template_specials,
    touches,
)
from roundtrip.tokens.prompt_segments import Segments

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# Sources that a target is encoded behind where its ids may depend on the source.
_SOURCES = ("a", "?")


@dataclass(frozen=True)
class TokenRow:
    """One training row: `ids[start:]` are the labels (the target and its end token)."""

    ids: list[int]
    start: int


class PromptTemplate:
    """Turns texts into prompts and rows, and hypotheses back into texts, for one direction.

    Args:
        tokenizer: a transformers tokenizer. A fast one gives character offsets, by which labels are found; with a
            Python one they start at the first token in which a row differs from its prompt.
        segments: from `build_segments`.

    Example:
        >>> from roundtrip.recipe.schema import TemplateRecipe
        >>> from roundtrip.tokens.prompt_segments import build_segments
        >>> segments = build_segments(tokenizer, TemplateRecipe(kind="plain"), "en", "es", stop_ids=())
        >>> template = PromptTemplate(tokenizer, segments)
        >>> template.prompt_text("a cat")
        'English: a cat\\nSpanish:'
        >>> (row,) = template.rows([("a cat", "un gato")])
        >>> tokenizer.decode(row.ids[row.start :])
        ' un gato<|im_end|>'
    """

    def __init__(self, tokenizer: Any, segments: Segments) -> None:
        self.tokenizer, self.segments = tokenizer, segments
        is_fast = bool(getattr(tokenizer, "is_fast", False))
        self._encode_fast = encoder(tokenizer.backend_tokenizer, specials=True) if is_fast else None
        self._prefix = list(segments.prefix_ids)
        # Spaces in front of a target belong to its first token; line breaks of a chat template do not.
        self._prompt_end = segments.mid.rstrip(" ")
        # Special tokens without a role (<repo_name>) are in this table only.
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.special_texts = frozenset(added | set(tokenizer.all_special_tokens))
        self._special = special_pattern(self.special_texts)
        self._literal: LiteralEncoder | None = None
        # What was encoded before it was asked for.
        self._prompts: Mapping[str, list[int]] = {}
        self._targets: Mapping[str, list[int] | None] = {}
        self._rows: Mapping[tuple[str, str], TokenRow] = {}
        # Nothing in front of a special token changes the ids behind it: targets are encoded from the last one on.
        self._special_start = self.last_special(segments.mid)
        self._probes = ("",) if self._special.search(segments.mid) else _SOURCES
        # Tokens of a prompt without its source.
        self.num_fixed = len(self.prompts([""])[0])

    def last_special(self, text: str) -> int:
        """Return where the last special token of a part of the template begins, 0 where it has none."""
        return max(0, max((text.rfind(special) for special in self.special_texts), default=0))

    def prompt_text(self, source: str) -> str:
        """Return the text that a target is generated behind."""
        return self.segments.head + source + self._prompt_end

    def expect(
        self, sources: Sequence[str] = (), targets: Sequence[str] = (), pairs: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Encode what will be asked for soon, and keep it until the next call.

        A thread calls it while the device is busy: each real line is encoded once as a source and once as a target.
        """
        self._prompts = dict(zip(sources, self._make_prompts(sources), strict=True))
        self._targets = dict(zip(targets, self._make_targets(targets), strict=True))
        self._rows = dict(zip(pairs, self._make_rows(pairs), strict=True))

    def prompts(self, sources: Sequence[str]) -> list[list[int]]:
        """Return the prompt ids of each source."""
        return _look_up(sources, self._prompts, self._make_prompts)

    def _make_prompts(self, sources: Sequence[str]) -> list[list[int]]:
        start = len(self.segments.head)
        spans = [[(start, start + len(source))] for source in sources]
        return [ids for ids, _ in self._encode([self.prompt_text(source) for source in sources], spans, offsets=False)]

    def row_starts(self, sources: Sequence[str]) -> list[list[int]]:
        """Return the ids that precede the target in the rows of each source.

        They may differ from those of a prompt: two line breaks may be one token at the end of a text, two inside of it.
        """
        target = self._make_targets(["a"])[0] or []
        encoded = self._encode(*self._whole_texts([(source, "a") for source in sources]), offsets=False)
        return [ids[: len(ids) - len(target)] if ids[len(ids) - len(target) :] == target else ids for ids, _ in encoded]

    def _whole_texts(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[Spans]]:
        """Return the text of each pair, and where source and target are in it."""
        head, mid = self.segments.head, self.segments.mid
        texts = [head + source + mid + target for source, target in pairs]
        spans: list[Spans] = [
            [(len(head), len(head) + len(source)), (len(text) - len(target), len(text))]
            for text, (source, target) in zip(texts, pairs, strict=True)
        ]
        return texts, spans

    def rows(self, pairs: Sequence[tuple[str, str]]) -> list[TokenRow]:
        """Return the training row of each (source, target)."""
        return _look_up(pairs, self._rows, self._make_rows)

    def _make_rows(self, pairs: Sequence[tuple[str, str]]) -> list[TokenRow]:
        texts, spans = self._whole_texts(pairs)
        encoded = self._encode(texts, spans)
        if self._encode_fast is None:
            prompts = self.prompts([source for source, _ in pairs])
            starts = [num_common(ids, prompt) for (ids, _), prompt in zip(encoded, prompts, strict=True)]
        else:
            boundaries = [source_end + len(self._prompt_end) for (_, source_end), _ in spans]
            starts = [
                next((i for i, end in enumerate(ends) if end > boundary), len(ids))
                for (ids, ends), boundary in zip(encoded, boundaries, strict=True)
            ]
        return [TokenRow([*ids, self.segments.end_id], start) for (ids, _), start in zip(encoded, starts, strict=True)]

    def plain_rows(self, texts: Sequence[str]) -> list[TokenRow]:
        """Return rows of texts without the template: every token but the prefix is a label, the end token too."""
        encoded = self._encode(list(texts), [[(0, len(text))] for text in texts])
        # Without a prefix the first token cannot be predicted.
        return [TokenRow([*ids, self.segments.end_id], max(1, len(self._prefix))) for ids, _ in encoded]

    def targets(self, targets: Sequence[str]) -> list[list[int] | None]:
        """Return the ids of each target in its slot, without the end token.

        None stands for a target that merges at its boundary, whose ids depend on the source, or of a Python tokenizer.
        """
        return _look_up(targets, self._targets, self._make_targets)

    def _make_targets(self, targets: Sequence[str]) -> list[list[int] | None]:
        if self._encode_fast is None:
            return [None] * len(targets)
        encoded = [self._behind(probe, targets) for probe in self._probes]
        return [ids if all(ids == other for other in others) else None for ids, *others in zip(*encoded, strict=True)]

    def _behind(self, probe: str, targets: Sequence[str]) -> list[list[int] | None]:
        """Return the ids of targets behind a probe and the end of the middle; None where they change those in front."""
        assert self._encode_fast is not None
        front = probe + self.segments.mid[self._special_start :]
        boundary = len(probe + self._prompt_end[self._special_start :])
        # Encoded with a target: two line breaks at the end of a text may be one token, and two inside of it.
        ((ids, ends),) = self._encode([f"{front}a"], [[(0, len(probe))]])
        num_prefix = len(self._prefix)
        before = [token for token, end in zip(ids[num_prefix:], ends[num_prefix:], strict=True) if end <= boundary]
        behind: list[list[int] | None] = []
        for target, ids in zip(targets, self._encode_fast([front + target for target in targets]), strict=True):
            if self._special.search(target):
                text = front + target
                ids, _ = self._encode_around(text, [(0, len(probe)), (len(front), len(text))])
            behind.append(ids[len(before) :] if ids[: len(before)] == before else None)
        return behind

    def hypothesis_text(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids: no special tokens, one line where the template is plain, stripped."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = text.strip()
        return text.split("\n", 1)[0].strip() if self.segments.break_ids else text

    def boundary_holds(self, pair: tuple[str, str]) -> bool:
        """Return whether the row of a pair begins with the ids of its prompt, as generation sees them."""
        row = self.rows([pair])[0]
        return row.ids[: row.start] == self.prompts([pair[0]])[0]

    def _encode(
        self, texts: list[str], user_spans: Sequence[Spans], offsets: bool = True
    ) -> list[tuple[list[int], list[int]]]:
        """Return ids and the end offset of each token, the prefix included; special tokens in user text stay text.

        The offsets are empty where the tokenizer has none, or where they are not asked for, which is faster.
        """
        if not texts:
            return []
        offsets &= self._encode_fast is not None
        encoding: Mapping[str, Any]
        if self._encode_fast is not None and not offsets:
            encoding = {"input_ids": self._encode_fast(texts)}
        else:
            encoding = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=offsets)
        rows = []
        for number, (text, user) in enumerate(zip(texts, user_spans, strict=True)):
            # A special token that the template completes counts too.
            if any(touches(match, user) for match in self._special.finditer(text)):
                ids, ends = self._encode_around(text, user)
            else:
                ids = encoding["input_ids"][number]
                ends = [end for _, end in encoding["offset_mapping"][number]] if offsets else []
            rows.append((self._prefix + ids, [0] * len(self._prefix) + ends))
        return rows

    def _encode_around(self, text: str, user: Spans) -> tuple[list[int], list[int]]:
        """Encode a text in which the user spells special tokens: only the template's own become special ids."""
        if self._encode_fast is not None:
            if self._literal is None:
                self._literal = LiteralEncoder(self.tokenizer, self.special_texts)
            return self._literal.encode(text, user)
        ids: list[int] = []
        start = 0
        for match in (*template_specials(self._special, text, user), None):
            piece = text[start : match.start() if match else len(text)]
            ids += self.tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            if match:
                ids.append(self.tokenizer.convert_tokens_to_ids(match.group()))
                start = match.end()
        return ids, []


def _look_up(keys: Sequence[K], known: Mapping[K, V], make: Callable[[list[K]], list[V]]) -> list[V]:
    """Return the value of each key, those that are not known yet made at once."""
    made = iter(make([key for key in keys if key not in known]))
    return [known[key] if key in known else next(made) for key in keys]


def num_common(*rows: Sequence[int]) -> int:
    """Return how many ids all rows begin with in common."""
    size = 0
    while all(size < len(row) and row[size] == rows[0][size] for row in rows):
        size += 1
    return size
