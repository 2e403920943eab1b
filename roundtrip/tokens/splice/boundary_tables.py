"""The source slot of a template: which tokens may stand at its two seams, found by trying every one.

A seam joins a fixed neighbour to any token. The text of each token of the vocabulary is put into the slot and encoded
with the template around it, once; what comes out is kept in tables on disk, by hash of tokenizer and template.

A token need not come out as it went in. A hypothesis written behind `assistant` and a line break begins with another
token than a slot behind `Spanish:` wants (`Hola`, ` Hola`), white space at its ends is stripped, and a full stop may
merge with the line break behind it. Where one token becomes one token the tables say which; anything else is refused,
and the row goes by strings.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from roundtrip.runtime.errors import TemplateError
from roundtrip.tokens.literal_encoding import encoder
from roundtrip.tokens.prompt_template import PromptTemplate
from roundtrip.tokens.splice.vocabulary import BAD, GLUE_LEFT, GLUE_RIGHT, TokenGroup, TokenVocabulary, fingerprint

FORMAT = 1
# What stands in front of a last token while the seam behind it is tried, where no special token makes a wall.
CONTEXTS = ("\n", " ", "a", "7", ".", "家")
PROBE = "Ein"
MAX_MIDS = 8
_SLICE = 8192


@dataclass(frozen=True)
class BoundaryTables:
    """The fixed ids around a source, and what each token becomes at either end of it.

    Attributes:
        head: ids in front of the slot, the BOS included.
        mids: ids between source and target, as they are behind different last tokens; the first is the usual one.
        first_V: int64; what a token becomes as the first of the slot, -1 where that is not one token.
        last_V: int64; the same for the last.
        mid_V: int64; which of `mids` follows a last token.
        space: id of a space that the head leaves to the slot (`English: ` before `家`), -1 where there is none.
        probe: ids of PROBE as a target.
    """

    head: tuple[int, ...]
    mids: tuple[tuple[int, ...], ...]
    first_V: NDArray[np.int64]
    last_V: NDArray[np.int64]
    mid_V: NDArray[np.int64]
    space: int
    probe: tuple[int, ...]


class BoundaryProbe:
    """Finds the slots of a template, and settles units of several tokens at its seams.

    Args:
        template: of the direction that will read the source.
        surface: of its tokenizer, unreachable tokens marked; None where only the fixed parts are wanted.
        one_line: the hypothesis ends at its first line break (a plain template).
    """

    def __init__(self, template: PromptTemplate, vocabulary: TokenVocabulary | None, one_line: bool) -> None:
        self.template, self.one_line, self._surface = template, one_line, vocabulary
        self._encode = encoder(template.tokenizer, specials=True)
        segments = template.segments
        self._bos = () if segments.bos_id is None else (segments.bos_id,)
        probes = ("a", "Ein", "1", "家", "(")
        encoded = self._encode([segments.head + probe for probe in probes])
        self.head = _common(encoded)
        row = template.rows([("a", PROBE)])[0]
        self.probe = tuple(row.ids[row.start : -1])
        source = tuple(self._encode([segments.head + "a"])[0])[len(self.head) :]
        before = (*self._bos, *self.head, *source)
        self.mid = tuple(row.ids[len(before) : row.start])
        if tuple(row.ids[: len(before)]) != before or not self.mid:
            raise TemplateError(
                "nothing of the template stands between source and target that keeps their tokens apart",
                place="template",
                cure="put a word or a line break between {source} and {target}, or use the chat template",
            )
        wall = any(segments.mid.startswith(text) for text in template.special_texts)
        self.contexts = CONTEXTS[:1] if wall else CONTEXTS
        self._wall = template.wall(segments.head)
        self._walled = _common(self._encode([segments.head[self._wall :] + probe for probe in probes]))
        self._context_ids = [tuple(ids) for ids in self._encode(list(self.contexts))]

    @property
    def vocabulary(self) -> TokenVocabulary:
        assert self._surface is not None, "only the fixed parts were wanted"
        return self._surface

    def unchanged(self, size: int) -> BoundaryTables:
        """Return slots that leave every token of a vocabulary as it is: each row is judged whole by somebody else."""
        same_V = np.arange(size)
        return BoundaryTables(
            (*self._bos, *self.head), (self.mid,), same_V, same_V, same_V * 0, self._space(), self.probe
        )

    def find(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> BoundaryTables:
        """Try every token of the vocabulary at both seams."""
        vocabulary = self.vocabulary
        glued = (vocabulary.flags_V & (GLUE_LEFT | GLUE_RIGHT)) != 0
        first_V = np.where(glued, np.arange(len(glued)), -1)
        last_V, mid_V = first_V.copy(), np.zeros(len(glued), dtype=np.int64)
        tried = np.flatnonzero(~glued & ((vocabulary.flags_V & BAD) == 0))
        rests: Counter[tuple[int, ...]] = Counter()
        lasts: dict[int, tuple[int, tuple[int, ...]]] = {}
        for start in range(0, len(tried), _SLICE):
            some = [int(i) for i in tried[start : start + _SLICE]]
            for token, found in zip(some, self._firsts(some), strict=True):
                first_V[token] = found
            for token, last in zip(some, self._lasts(some), strict=True):
                if last is not None:
                    lasts[token] = last
                    rests[last[1]] += 1
            on_progress(start + len(some), len(tried))
        mids = [self.mid, *(rest for rest, _ in rests.most_common(MAX_MIDS) if rest and rest != self.mid)][:MAX_MIDS]
        numbers = {rest: number for number, rest in enumerate(mids)}
        for token, (last_id, rest) in lasts.items():
            if rest in numbers:
                last_V[token], mid_V[token] = last_id, numbers[rest]
        space = self._space()
        if space >= 0:
            first_V[space] = space
        # A token is kept only where a second look leaves what the first one made of it.
        for table_V in (first_V, last_V):
            kept = table_V >= 0
            table_V[kept & (table_V[np.where(kept, table_V, 0)] != table_V)] = -1
        return BoundaryTables((*self._bos, *self.head), tuple(mids), first_V, last_V, mid_V, space, self.probe)

    def risk(self, merge_override_triples_C3: NDArray[np.int64]) -> str | None:
        """Return what may form across a seam out of three tokens, which no look at two of them shows; None if nothing.

        Args:
            traps_C3: see `PairRules`.
        """
        head, said = self.template.segments.head, self.vocabulary.text
        # A source neither begins nor ends with white space.
        for content in self.vocabulary.added:
            for size in range(1, min(len(head) + 1, len(content))):
                if head.endswith(content[:size]) and not content[size].isspace():
                    return f"the added token {content!r} may form out of the template's {content[:size]!r} and a source"
        for first, second, third in merge_override_triples_C3.tolist():
            texts = [str(said([token])) for token in (first, second, third)]
            starts = self.head[-1:] == (first,) and not texts[1][:1].isspace()
            starts |= self.head[-2:] == (first, second) and not texts[2][:1].isspace()
            ends = self.mid[0] == third and not texts[1][-1:].isspace()
            ends |= self.mid[:2] == (second, third) and not texts[0][-1:].isspace()
            if starts or ends:
                return f"the word {''.join(texts)!r} may form across a seam and win over its merges"
        return None

    def leaves_first(self, group: TokenGroup) -> bool:
        """Return whether a first unit of several tokens is left whole."""
        text = self.vocabulary.text(group)
        if text is None:
            return False
        return tuple(self._encode([self.template.segments.head + text.lstrip()])[0]) == (*self.head, *group)

    def leaves_last(self, group: TokenGroup) -> bool:
        """Return whether a last unit of several tokens is left whole, in front of the usual middle."""
        text = self.vocabulary.text(group)
        if text is None or text != text.rstrip() or (self.one_line and "\n" in text):
            return False
        alone = self._encode([context + text for context in self.contexts])
        joint = self._encode([context + text + self.template.segments.mid + PROBE for context in self.contexts])
        intact = [
            (context, tuple(ids))
            for context, one, ids in zip(self._context_ids, alone, joint, strict=True)
            if tuple(one) == (*context, *group)
        ]
        return bool(intact) and all(ids == (*context, *group, *self.mid, *self.probe) for context, ids in intact)

    def _firsts(self, tokens: Sequence[int]) -> list[int]:
        texts = [str(self.vocabulary.text([token])).lstrip() for token in tokens]
        # A special token is a wall: what stands in front of the last one changes nothing behind it.
        head, size = self.template.segments.head[self._wall :], len(self._walled)
        encoded = self._encode([head + text for text in texts])
        return [
            ids[size] if text and len(ids) == size + 1 and tuple(ids[:size]) == self._walled else -1
            for text, ids in zip(texts, encoded, strict=True)
        ]

    def _lasts(self, tokens: Sequence[int]) -> list[tuple[int, tuple[int, ...]] | None]:
        """Return what each token becomes as the last of the slot, and what follows it; None where it is not one."""
        texts = [self._ending(str(self.vocabulary.text([token]))) for token in tokens]
        found: list[set[tuple[int, tuple[int, ...]] | None]] = [set() for _ in tokens]
        for context, context_ids in zip(self.contexts, self._context_ids, strict=True):
            joint = self._encode([context + text + self.template.segments.mid + PROBE for text in texts])
            usual = [
                tuple(ids) == (*context_ids, token, *self.mid, *self.probe)
                for token, ids in zip(tokens, joint, strict=True)
            ]
            others = [number for number, same in enumerate(usual) if not same]
            # The context counts where it leaves the token as it is; where the row came out whole, it does.
            alone = dict(zip(others, self._encode([context + texts[number] for number in others]), strict=True))
            for number, ids in enumerate(joint):
                if usual[number]:
                    found[number].add((tokens[number], self.mid))
                elif len(alone[number]) == len(context_ids) + 1 and tuple(alone[number][:-1]) == context_ids:
                    found[number].add(self._parts(ids, context_ids))
        return [next(iter(one)) if text and len(one) == 1 else None for text, one in zip(texts, found, strict=True)]

    def _parts(self, ids: Sequence[int], context: Sequence[int]) -> tuple[int, tuple[int, ...]] | None:
        """Return the last token of the slot and what follows it, of a row between a context and the probe."""
        size, end = len(context), len(ids) - len(self.probe)
        if tuple(ids[:size]) != tuple(context) or tuple(ids[end:]) != self.probe or end <= size:
            return None
        return ids[size], tuple(ids[size + 1 : end])

    def _ending(self, text: str) -> str:
        """Return the text of a last token as `hypothesis_text` leaves it; nothing where that depends on the rest."""
        if self.one_line and "\n" in text:
            before, _, behind = text.partition("\n")
            return "" if behind.strip() else before.rstrip()
        return text.rstrip()

    def _space(self) -> int:
        head = self.template.segments.head
        if not head.endswith(" ") or head.endswith("  "):
            return -1
        ids = self._encode([head])[0]
        return ids[-1] if tuple(ids[:-1]) == self.head else -1


def cached_tables(
    boundary_probe: BoundaryProbe, folder: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> BoundaryTables:
    """Return the slots from a folder, or find them and keep them there."""
    segments = boundary_probe.template.segments
    name = fingerprint(
        boundary_probe.template.tokenizer,
        segments.head,
        segments.mid,
        str(segments.bos_id),
        str(boundary_probe.one_line),
        str(FORMAT),
    )
    path = folder / f"{name[:32]}.safetensors"
    if path.exists():
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            pass  # made anew below
    tables = boundary_probe.find(on_progress)
    _save(tables, path)
    return tables


def write_cache_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file of the cache whole or not at all; a cache that cannot be written is none, and no reason to stop."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(beside)
        beside.replace(path)
    except (OSError, SafetensorError):
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _save(tables: BoundaryTables, path: Path) -> None:
    fixed = {"head": tables.head, "mids": tables.mids, "space": tables.space, "probe": tables.probe}
    arrays = {
        name: np.ascontiguousarray(getattr(tables, name), dtype=np.int64) for name in ("first_V", "last_V", "mid_V")
    }
    write_cache_file(path, lambda beside: save_file(arrays, beside, metadata={"fixed": json.dumps(fixed)}))


def _load(path: Path) -> BoundaryTables:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        fixed: dict[str, Any] = json.loads(file.metadata()["fixed"])
    tables = load_file(path)
    return BoundaryTables(
        tuple(fixed["head"]),
        tuple(tuple(mid) for mid in fixed["mids"]),
        tables["first_V"],
        tables["last_V"],
        tables["mid_V"],
        int(fixed["space"]),
        tuple(fixed["probe"]),
    )


def _common(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the longest common beginning of all rows."""
    size = 0
    while all(size < len(row) for row in rows) and len({row[size] for row in rows}) == 1:
        size += 1
    return tuple(rows[0][:size])
