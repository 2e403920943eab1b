"""From generated ids to training rows: spliced where that is proved exact, through text elsewhere; each row is counted.

The text path is the specification: decode the hypothesis, put it into the template, encode it in one piece. A spliced
row is proved to be equal: by a lookup of its token pairs on the device, and what the lookup leaves open by encoding its
prompt on the host.

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
from roundtrip.tokens.splice import splicing
from roundtrip.tokens.splice.canonicality import BOUNDARY, EMPTY, PAIR, PROVED, REASONS, CanonicalityChecker
from roundtrip.tokens.splice.splicing import BoundaryTensors, SplicedRows

SPLICED = "splice"
TEXT_ONLY = "text path for all rows"
TARGET = "target merges at its boundary"


class _Texts:
    """The texts of hypotheses: known, or decoded when they are asked for."""

    def __init__(
        self, template: PromptTemplate, ids_BN: torch.Tensor, size_B: torch.Tensor, texts: Sequence[str] | None
    ) -> None:
        self._template, self._ids_BN, self._size_B, self._texts = template, ids_BN, size_B, texts

    def some(self, rows: Sequence[int]) -> list[str]:
        if self._texts is not None:
            return [self._texts[i] for i in rows]
        rows_R = torch.tensor(rows, dtype=torch.int64, device=self._ids_BN.device)
        found = zip(self._ids_BN[rows_R].tolist(), self._size_B[rows_R].tolist(), strict=True)
        return [self._template.hypothesis_text(ids[:size]) for ids, size in found]


@dataclass(frozen=True)
class RowBuilder:
    """Makes one direction's training rows out of hypotheses that the reverse direction generated.

    Attributes:
        forward_template: of the direction that trains.
        reverse_template: of the direction that generated the sources.
        tensors: the boundaries of the forward template; None sends every row down the text path.
        checker: looks up pairs of tokens; None verifies every row on the host.
        strict: a row that cannot be spliced raises an error.
        audit: share of the spliced rows that is made again through text and compared.

    Example:
        >>> from roundtrip import build_row_builder
        >>> row_builder, _ = build_row_builder(template("es", "en"), template("en", "es"), [("a cat", "un gato")])
        >>> new_BN = torch.tensor([tokenizer.encode(" a cat") + [tokenizer.eos_token_id]])  # from `model.generate`
        >>> size_B, finished_B = row_builder.find_ends(new_BN)
        >>> rows, counts = row_builder.build(new_BN, size_B, targets=["un gato"])
        >>> sorted(rows.padded()), dict(counts)
        (['attention_mask', 'input_ids', 'labels', 'position_ids'], {'splice': 1})
    """

    forward_template: PromptTemplate
    reverse_template: PromptTemplate
    tensors: BoundaryTensors | None
    checker: CanonicalityChecker | None = None
    strict: bool = False
    audit: float = 0.0

    @property
    def reread_template(self) -> PromptTemplate | None:
        """The template that encodes the prompt of every hypothesis for verification; None where few rows need it."""
        return self.forward_template if self.tensors is not None and self.checker is None else None

    def build(
        self,
        ids_BN: torch.Tensor,
        size_B: torch.Tensor,
        targets: Sequence[str],
        texts: Sequence[str] | None = None,
        *,
        row_starts: Sequence[Sequence[int]] | None = None,
        seed: int = 0,
    ) -> tuple[SplicedRows, Counter[str]]:
        """Return the training rows of hypotheses and their real targets.

        Args:
            ids_BN: int64, generated ids, left-aligned, any value at and after the size.
            size_B: int64, from `find_ends`.
            targets: one real line for each.
            texts: `reverse_template.hypothesis_text` of each, if known; else those that are needed are decoded.
            row_starts: `forward_template.row_starts(texts)`, if known.
            seed: chooses the rows of the audit.

        Returns:
            The rows, in order, on the device of the ids; and how many were spliced, or took the text path and why.

        Raises:
            RowBuilderError: under `strict` a row cannot be spliced, or an audited row differs from the text path's.
        """
        known = _Texts(self.reverse_template, ids_BN, size_B, texts)
        if self.tensors is None:
            pairs = zip(known.some(range(len(targets))), targets, strict=True)
            return padded(self.forward_template.rows(list(pairs)), ids_BN.device), Counter({TEXT_ONLY: len(targets)})
        rows, reasons = self._splice(ids_BN, size_B, targets, known, row_starts)
        by_text = [i for i, reason in enumerate(reasons) if reason != SPLICED]
        if self.strict and by_text:
            first = by_text[0]
            raise RowBuilderError(
                f"a row cannot be spliced ({reasons[first]}): {known.some([first])[0]!r} -> {targets[first]!r}",
                place="tokens.mode",
                cure='set tokens.mode = "auto", so that such rows take the text path',
            )
        self._audit(rows, known, targets, [i for i, reason in enumerate(reasons) if reason == SPLICED], seed)
        if by_text:
            pairs = zip(known.some(by_text), [targets[i] for i in by_text], strict=True)
            rows = _replaced(rows, by_text, self.forward_template.rows(list(pairs)))
        return rows, Counter(reasons)

    def find_ends(self, new_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find where hypotheses end; see `splicing.find_ends`.

        Args:
            new_BN: int64, what was generated behind the prompts.

        Returns:
            size_B, int64; finished_B, bool.
        """
        if self.tensors is not None:
            return splicing.find_ends(new_BN, self.tensors.flags_V)
        template = self.reverse_template
        flags_V = torch.zeros(num_ids(template.tokenizer), dtype=torch.uint8, device=new_BN.device)
        return splicing.find_ends(new_BN, splicing.with_end_flags(flags_V, template.segments))

    def splice(
        self, ids_BN: torch.Tensor, size_B: torch.Tensor, targets: Sequence[str], texts: Sequence[str] | None = None
    ) -> tuple[SplicedRows, list[str]]:
        """Return every row as spliced, and SPLICED or the reason why it is not proved; arguments as for `build`."""
        return self._splice(ids_BN, size_B, targets, _Texts(self.reverse_template, ids_BN, size_B, texts), None)

    def _splice(
        self,
        ids_BN: torch.Tensor,
        size_B: torch.Tensor,
        targets: Sequence[str],
        texts: _Texts,
        row_starts: Sequence[Sequence[int]] | None,
    ) -> tuple[SplicedRows, list[str]]:
        assert self.tensors is not None
        target_ids = self.forward_template.targets(targets)
        source_BN, source_size_B, mid_B, fits_B = splicing.trim_source(ids_BN, size_B, self.tensors)
        target_BM, target_size_B = _ragged([ids or [] for ids in target_ids], ids_BN.device)
        rows = splicing.splice_rows(source_BN, source_size_B, mid_B, target_BM, target_size_B, self.tensors)
        checked_B = torch.full_like(source_size_B, PAIR)
        if self.checker is not None:
            checked_B = self.checker.verify(source_BN, source_size_B)
        checked_B = torch.where(fits_B, checked_B, torch.where(source_size_B > 0, BOUNDARY, EMPTY))
        reasons = [
            REASONS[number] if number != PROVED else TARGET if ids is None else SPLICED
            for number, ids in zip(self._verify(rows, checked_B.tolist(), texts, row_starts), target_ids, strict=True)
        ]
        return rows, reasons

    def _verify(
        self, rows: SplicedRows, checked: list[int], texts: _Texts, row_starts: Sequence[Sequence[int]] | None
    ) -> list[int]:
        """Encode what the lookup leaves open, whose ids up to the target must be the spliced ones.

        Args:
            checked: for each row PROVED, PAIR where it is open, or the number of another reason.

        Returns:
            The same with PROVED for the rows that are equal.
        """
        open_rows = [i for i, reason in enumerate(checked) if reason == PAIR]
        if not open_rows:
            return checked
        if row_starts is None:
            starts: Sequence[Sequence[int]] = self.forward_template.row_starts(texts.some(open_rows))
        else:
            starts = [row_starts[i] for i in open_rows]
        for i, start, row in zip(open_rows, starts, rows.select(open_rows).to_rows(), strict=True):
            if row.ids[: row.start] == list(start):
                checked[i] = PROVED
        return checked

    def _audit(
        self, rows: SplicedRows, texts: _Texts, targets: Sequence[str], spliced: Sequence[int], seed: int
    ) -> None:
        """Make a share of the spliced rows again through text, and compare."""
        chosen = list(spliced)
        if self.audit < 1.0:
            chosen = random.Random(seed).sample(chosen, min(len(chosen), -int(-self.audit * len(chosen) // 1)))
        if not chosen:
            return
        sources = texts.some(chosen)
        pairs = list(zip(sources, [targets[i] for i in chosen], strict=True))
        spliced_rows = rows.select(chosen).to_rows()
        for pair, got, expected in zip(pairs, spliced_rows, self.forward_template.rows(pairs), strict=True):
            if got != expected:
                raise RowBuilderError(
                    f"splice and text path differ for {pair[0]!r} -> {pair[1]!r}: "
                    + first_difference(self.forward_template.tokenizer, got.ids, expected.ids),
                    place="tokens.audit",
                    cure='set tokens.mode = "text", and please report this tokenizer with the row',
                )


def first_difference(tokenizer: Any, got: Sequence[int], expected: Sequence[int]) -> str:
    """Return a description of where two rows part, with the tokens there."""
    at = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected)))
    start = max(0, at - 2)

    def show(ids: Sequence[int]) -> str:
        return " ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(list(ids[start : at + 4])))

    return f"at token {at} the splice has {show(got)}, the text path {show(expected)}"


def padded(rows: Sequence[TokenRow], device: torch.device, pad_id: int = 0) -> SplicedRows:
    """Put rows of the text path on a device."""
    ids_BT, size_B = _ragged([row.ids for row in rows], device, pad_id)
    return SplicedRows(ids_BT, size_B, torch.tensor([row.start for row in rows], dtype=torch.int64, device=device))


def _ragged(rows: Sequence[Sequence[int]], device: torch.device, pad_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids_BM, right-padded and one wide at least, and size_B."""
    width = max(1, max((len(row) for row in rows), default=1))
    ids_BM = torch.tensor([[*row, *(width - len(row)) * [pad_id]] for row in rows], dtype=torch.int64)
    return ids_BM.to(device), torch.tensor([len(row) for row in rows], dtype=torch.int64, device=device)


def _replaced(rows: SplicedRows, at: Sequence[int], by: Sequence[TokenRow]) -> SplicedRows:
    """Replace some rows by rows of the text path."""
    new = padded(by, rows.ids_BT.device)
    width = max(rows.ids_BT.shape[1], new.ids_BT.shape[1])
    at_R = torch.tensor(at, device=rows.ids_BT.device)

    def wide(ids_BT: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(ids_BT, (0, width - ids_BT.shape[1]))

    return SplicedRows(
        wide(rows.ids_BT).index_copy(0, at_R, wide(new.ids_BT)),
        rows.size_B.index_copy(0, at_R, new.size_B),
        rows.start_B.index_copy(0, at_R, new.start_B),
    )
