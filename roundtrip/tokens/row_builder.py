"""From generated ids to training rows: by the splice where it is proved, by strings where it is not, each counted.

Shapes: B rows, N positions of a hypothesis, M of a target, T of a row.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from roundtrip.runtime.errors import RowBuilderError
from roundtrip.tokens.prompt_segments import num_ids
from roundtrip.tokens.prompt_template import PromptTemplate, TokenRow
from roundtrip.tokens.splice import splicing as splices
from roundtrip.tokens.splice.boundary_tables import BoundaryProbe
from roundtrip.tokens.splice.canonicality import EMPTY, PAIR, PROVED, REASONS, CanonicalityChecker
from roundtrip.tokens.splice.splicing import BoundaryTensors, SplicedRows, TrimmedSource

SPLICED = "splice"
BY_ROAD = "strings by [tokens] road"
TARGET = "target merges at its seam"


class _Texts:
    """The texts of hypotheses: known, or decoded when they are asked for."""

    def __init__(
        self, writer: PromptTemplate, ids_BN: torch.Tensor, size_B: torch.Tensor, texts: Sequence[str] | None
    ) -> None:
        self._writer, self._ids_BN, self._size_B, self._texts = writer, ids_BN, size_B, texts

    def some(self, at: Sequence[int]) -> list[str]:
        if self._texts is not None:
            return [self._texts[i] for i in at]
        where = torch.tensor(at, dtype=torch.int64, device=self._ids_BN.device)
        rows = zip(self._ids_BN[where].tolist(), self._size_B[where].tolist(), strict=True)
        return [self._writer.hypothesis_text(ids[:size]) for ids, size in rows]

    def all(self) -> list[str]:
        return self.some(range(len(self._size_B)))


@dataclass(frozen=True)
class RowBuilder:
    """How one direction's rows are made of hypotheses that the reverse direction wrote.

    Attributes:
        template: of the direction that learns.
        writer: of the direction that wrote.
        into: the learner's frame; None sends every row by strings.
        seams: settles units of several tokens at the ends; with the device guard only.
        guard: None is the host guard: every hypothesis is decoded and encoded again.
        strict: a row that would go by strings stops the run.
        audit: share of spliced rows that are done again by strings.
        salts: numbers of the two seams in the guard's memory.
    """

    template: PromptTemplate
    writer: PromptTemplate
    into: BoundaryTensors | None
    boundary_probe: BoundaryProbe | None = None
    guard: CanonicalityChecker | None = None
    strict: bool = False
    audit: float = 0.0
    salts: tuple[int, int] = (1, 2)

    @property
    def reader(self) -> PromptTemplate | None:
        """The template whose prompts the guard on the host compares; None where it needs none."""
        return self.template if self.into is not None and self.guard is None else None

    def rows(
        self,
        ids_BN: torch.Tensor,
        size_B: torch.Tensor,
        targets: Sequence[str],
        texts: Sequence[str] | None = None,
        *,
        prompts: Sequence[Sequence[int]] | None = None,
        seed: int = 0,
    ) -> tuple[SplicedRows, Counter[str]]:
        """Return the training rows of hypotheses and their real targets.

        Args:
            ids_BN: int64, generated ids, left-aligned, any value at and after the size.
            size_B: int64, see `ends`.
            targets: one real line for each.
            texts: the same hypotheses as the writer's `hypothesis_text` gives them, where they are known; else those
                that are needed are decoded.
            prompts: what `template.prompts(texts)` gives, for the guard on the host, where it was made before.
            seed: chooses the rows of the audit.

        Returns:
            The rows, in order, on the device of the ids; and how many went which road, by reason.

        Raises:
            RoadError: under `strict` a row cannot be spliced, or an audited row is not what strings make of it.
        """
        known = _Texts(self.writer, ids_BN, size_B, texts)
        if self.into is None:
            made = self.template.rows(list(zip(known.all(), targets, strict=True)))
            return padded(made, ids_BN.device), Counter({BY_ROAD: len(made)})
        rows, reasons = self._spliced(ids_BN, size_B, targets, known, prompts)
        by_strings = [i for i, reason in enumerate(reasons) if reason != SPLICED]
        counts = Counter(reasons)
        if self.strict and by_strings:
            at = by_strings[0]
            raise RowBuilderError(
                f"a row cannot be spliced ({reasons[at]}): {known.some([at])[0]!r} -> {targets[at]!r}",
                place="tokens.strict",
                cure="leave tokens.strict off, so that such rows go by strings",
            )
        self._audit(rows, known, targets, set(range(len(targets))) - set(by_strings), seed)
        if by_strings:
            pairs = zip(known.some(by_strings), [targets[i] for i in by_strings], strict=True)
            rows = _replaced(rows, by_strings, self.template.rows(list(pairs)))
        return rows, counts

    def ends(self, new_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find where hypotheses end; see `splice.ends`.

        Args:
            new_BN: int64, what generation wrote behind the prompts.

        Returns:
            size_B, int64; finished_B, bool.
        """
        if self.into is not None:
            return splices.find_ends(new_BN, self.into.flags_V)
        segments, device = self.writer.segments, new_BN.device
        flags_V = torch.zeros(num_ids(self.writer.tokenizer), dtype=torch.uint8, device=device)
        return splices.find_ends(new_BN, splices.with_end_flags(flags_V, segments.stop_ids, segments.break_ids))

    def spliced(
        self, ids_BN: torch.Tensor, size_B: torch.Tensor, targets: Sequence[str], texts: Sequence[str] | None = None
    ) -> tuple[SplicedRows, list[str]]:
        """Return every row by the splice, and SPLICED or the reason why each may not be taken."""
        return self._spliced(ids_BN, size_B, targets, _Texts(self.writer, ids_BN, size_B, texts), None)

    def _spliced(
        self,
        ids_BN: torch.Tensor,
        size_B: torch.Tensor,
        targets: Sequence[str],
        texts: _Texts,
        prompts: Sequence[Sequence[int]] | None,
    ) -> tuple[SplicedRows, list[str]]:
        assert self.into is not None
        found = self.template.targets(targets)
        source = splices.trim_source(ids_BN, size_B, self.into)
        target_BM, target_size_B = _ragged([ids or [] for ids in found], ids_BN.device)
        rows = splices.splice_rows(source, target_BM, target_size_B, self.into)
        numbers = self._reasons(source, texts, prompts).tolist()
        reasons = [
            REASONS[number] if number != PROVED else TARGET if ids is None else SPLICED
            for number, ids in zip(numbers, found, strict=True)
        ]
        return rows, reasons

    def _reasons(self, source: TrimmedSource, texts: _Texts, prompts: Sequence[Sequence[int]] | None) -> torch.Tensor:
        """Return for each hypothesis why it is not proved, PROVED where it is."""
        if self.guard is not None and self.boundary_probe is not None:
            good_B = self.guard.lookup(source.ids_BN, source.size_B)
            return self.guard.verify(
                source.ids_BN,
                source.size_B,
                good_B,
                source.fits_B,
                self.salts,
                self.boundary_probe.leaves_first,
                self.boundary_probe.leaves_last,
            )
        assert self.into is not None
        prompts = prompts or self.template.prompts(texts.all())
        head, mids = self.into.head_H.tolist(), self.into.mid_KL.tolist()
        reasons = []
        for ids, size, mid, prompt in zip(
            source.ids_BN.tolist(), source.size_B.tolist(), source.mid_B.tolist(), prompts, strict=True
        ):
            same = [*head, *ids[:size], *mids[mid]] == list(prompt)
            reasons.append(EMPTY if not size else PROVED if same else PAIR)
        return torch.tensor(reasons)

    def _audit(self, rows: SplicedRows, texts: _Texts, targets: Sequence[str], spliced: set[int], seed: int) -> None:
        """Do a share of the spliced rows again by strings."""
        chosen = sorted(spliced)
        if self.audit < 1.0:
            chosen = random.Random(seed).sample(chosen, min(len(chosen), -int(-self.audit * len(chosen) // 1)))
        if not chosen:
            return
        at = torch.tensor(chosen, device=rows.ids_BT.device)
        sizes, starts, ids = rows.size_B[at].tolist(), rows.start_B[at].tolist(), rows.ids_BT[at].tolist()
        sources = texts.some(chosen)
        expected = self.template.rows(list(zip(sources, [targets[i] for i in chosen], strict=True)))
        for number, i in enumerate(chosen):
            got = TokenRow(ids[number][: sizes[number]], starts[number])
            if got != expected[number]:
                raise RowBuilderError(
                    f"the splice made another row than strings do of {sources[number]!r} -> {targets[i]!r}: "
                    + first_difference(self.template.tokenizer, got.ids, expected[number].ids),
                    place="tokens.audit",
                    cure='set tokens.guard = "host", and please report this tokenizer with the row',
                )


def first_difference(tokenizer: Any, got: Sequence[int], expected: Sequence[int]) -> str:
    """Say where two rows part, token by token."""
    place = next(
        (i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected))
    )
    start = max(0, place - 2)

    def show(ids: Sequence[int]) -> str:
        return " ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(list(ids[start : place + 4])))

    return f"at token {place} the splice has {show(got)}, strings have {show(expected)}"


def padded(rows: Sequence[TokenRow], device: torch.device, pad_id: int = 0) -> SplicedRows:
    """Put rows of the string road on a device."""
    ids_BT, size_B = _ragged([row.ids for row in rows], device, pad_id)
    return SplicedRows(ids_BT, size_B, torch.tensor([row.start for row in rows], dtype=torch.int64, device=device))


def _ragged(rows: Sequence[Sequence[int]], device: torch.device, pad_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids_BM, right-padded and one wide at least, and size_B."""
    width = max(1, max((len(row) for row in rows), default=1))
    ids_BM = torch.tensor([[*row, *(width - len(row)) * [pad_id]] for row in rows], dtype=torch.int64)
    return ids_BM.to(device), torch.tensor([len(row) for row in rows], dtype=torch.int64, device=device)


def _replaced(rows: SplicedRows, at: Sequence[int], by: Sequence[TokenRow]) -> SplicedRows:
    """Put rows of the string road in the place of others."""
    new = padded(by, rows.ids_BT.device)
    width = max(rows.ids_BT.shape[1], new.ids_BT.shape[1])
    where_R = torch.tensor(at, device=rows.ids_BT.device)

    def wide(ids_BT: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(ids_BT, (0, width - ids_BT.shape[1]))

    return SplicedRows(
        wide(rows.ids_BT).index_copy(0, where_R, wide(new.ids_BT)),
        rows.size_B.index_copy(0, where_R, new.size_B),
        rows.start_B.index_copy(0, where_R, new.start_B),
    )
