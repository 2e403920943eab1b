"""From generated ids to training rows: spliced where that is proved exact, through text elsewhere; each row is counted.

The text path is the specification: decode the hypothesis, put it into the template, encode it in one piece. A spliced
row is proved equal by its token pairs on the device, or by encoding its prompt on the host.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from roundtrip.runtime.errors import RowBuilderError
from roundtrip.tokens.prompt_segments import num_ids
from roundtrip.tokens.prompt_template import PromptTemplate, TokenRow, num_common
from roundtrip.tokens.splice import splicing
from roundtrip.tokens.splice.canonicality import BOUNDARY, EMPTY, PAIR, PROVED, REASONS, CanonicalityChecker
from roundtrip.tokens.splice.splicing import BoundaryTensors, SplicedRows

SPLICED = "splice"
TEXT_ONLY = "text path for all rows"
TARGET = "target merges at its boundary"

# Returns the texts of the hypotheses with these indices.
Texts = Callable[[Sequence[int]], list[str]]


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
        texts_of = self._texts_of(ids_BN, size_B, texts)
        if self.tensors is None:
            rows = pad_rows(self._text_rows(range(len(targets)), texts_of, targets), ids_BN.device)
            return rows, Counter({TEXT_ONLY: len(targets)})
        rows, reasons = self.splice(ids_BN, size_B, targets, texts, row_starts)
        by_text = [i for i, reason in enumerate(reasons) if reason != SPLICED]
        if self.strict and by_text:
            first = by_text[0]
            raise RowBuilderError(
                f"a row cannot be spliced ({reasons[first]}): {texts_of([first])[0]!r} -> {targets[first]!r}",
                place="tokens.mode",
                cure='set tokens.mode = "auto", so that such rows take the text path',
            )
        self._audit(rows, [i for i, reason in enumerate(reasons) if reason == SPLICED], texts_of, targets, seed)
        if by_text:
            rows = _replaced(rows, by_text, self._text_rows(by_text, texts_of, targets))
        return rows, Counter(reasons)

    def find_ends(self, new_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return size_B, int64, and finished_B, bool, of what was generated; see `splicing.find_ends`."""
        if self.tensors is not None:
            return splicing.find_ends(new_BN, self.tensors.flags_V)
        template = self.reverse_template
        flags_V = torch.zeros(num_ids(template.tokenizer), dtype=torch.uint8, device=new_BN.device)
        return splicing.find_ends(new_BN, splicing.with_end_flags(flags_V, template.segments))

    def splice(
        self,
        ids_BN: torch.Tensor,
        size_B: torch.Tensor,
        targets: Sequence[str],
        texts: Sequence[str] | None = None,
        row_starts: Sequence[Sequence[int]] | None = None,
    ) -> tuple[SplicedRows, list[str]]:
        """Return every row as spliced, and SPLICED or the reason why it is not proved; arguments as for `build`."""
        assert self.tensors is not None
        target_ids = self.forward_template.targets(targets)
        source_BN, source_size_B, mid_B, fits_B = splicing.trim_source(ids_BN, size_B, self.tensors)
        target_BM, target_size_B = ragged([ids or [] for ids in target_ids], ids_BN.device)
        rows = splicing.splice_rows(source_BN, source_size_B, mid_B, target_BM, target_size_B, self.tensors)
        checked_B = torch.full_like(source_size_B, PAIR)
        if self.checker is not None:
            checked_B = self.checker.verify(source_BN, source_size_B)
        checked_B = torch.where(fits_B, checked_B, torch.where(source_size_B > 0, BOUNDARY, EMPTY))
        checked = self._verify(rows, checked_B.tolist(), self._texts_of(ids_BN, size_B, texts), row_starts)
        return rows, [
            REASONS[number] if number != PROVED else TARGET if ids is None else SPLICED
            for number, ids in zip(checked, target_ids, strict=True)
        ]

    def _texts_of(self, ids_BN: torch.Tensor, size_B: torch.Tensor, texts: Sequence[str] | None) -> Texts:
        def decode(indices: Sequence[int]) -> list[str]:
            if texts is not None:
                return [texts[i] for i in indices]
            index_R = torch.tensor(indices, dtype=torch.int64, device=ids_BN.device)
            rows = zip(ids_BN[index_R].tolist(), size_B[index_R].tolist(), strict=True)
            return [self.reverse_template.hypothesis_text(ids[:size]) for ids, size in rows]

        return decode

    def _text_rows(self, indices: Sequence[int], texts_of: Texts, targets: Sequence[str]) -> list[TokenRow]:
        """Return the rows of some hypotheses by the text path."""
        return self.forward_template.rows(list(zip(texts_of(indices), [targets[i] for i in indices], strict=True)))

    def _verify(
        self, rows: SplicedRows, checked: list[int], texts_of: Texts, row_starts: Sequence[Sequence[int]] | None
    ) -> list[int]:
        """Return reasons with PROVED where it was PAIR and the text path has the same ids up to the target."""
        open_rows = [i for i, reason in enumerate(checked) if reason == PAIR]
        if open_rows:
            known = None if row_starts is None else [row_starts[i] for i in open_rows]
            starts = known or self.forward_template.row_starts(texts_of(open_rows))
            for i, start, row in zip(open_rows, starts, rows.to_rows(open_rows), strict=True):
                if row.ids[: row.start] == list(start):
                    checked[i] = PROVED
        return checked

    def _audit(
        self, rows: SplicedRows, spliced: Sequence[int], texts_of: Texts, targets: Sequence[str], seed: int
    ) -> None:
        """Make a share of the spliced rows again through text, and compare."""
        chosen = random.Random(seed).sample(spliced, math.ceil(self.audit * len(spliced)))
        if not chosen:
            return
        expected_rows = self._text_rows(chosen, texts_of, targets)
        for i, actual, expected in zip(chosen, rows.to_rows(chosen), expected_rows, strict=True):
            if actual != expected:
                raise RowBuilderError(
                    f"splice and text path differ for {texts_of([i])[0]!r} -> {targets[i]!r}: "
                    + first_difference(self.forward_template.tokenizer, actual.ids, expected.ids),
                    place="tokens.mode",
                    cure='set tokens.mode = "text", and please report this tokenizer with the row',
                )


def first_difference(tokenizer: Any, got: Sequence[int], expected: Sequence[int]) -> str:
    """Return a description of where two rows part, with the tokens there."""
    at = num_common(got, expected)
    start = max(0, at - 2)

    def show(ids: Sequence[int]) -> str:
        return " ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(list(ids[start : at + 4])))

    return f"at token {at} the splice has {show(got)}, the text path {show(expected)}"


def pad_rows(rows: Sequence[TokenRow], device: torch.device, pad_id: int = 0) -> SplicedRows:
    """Put rows of the text path on a device."""
    ids_BT, size_B = ragged([row.ids for row in rows], device, pad_id)
    return SplicedRows(ids_BT, size_B, torch.tensor([row.start for row in rows], dtype=torch.int64, device=device))


def ragged(rows: Sequence[Sequence[int]], device: torch.device, pad_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids_BM, right-padded and one wide at least, and size_B."""
    width = max(1, max((len(row) for row in rows), default=1))
    ids_BM = torch.tensor([[*row, *(width - len(row)) * [pad_id]] for row in rows], dtype=torch.int64)
    return ids_BM.to(device), torch.tensor([len(row) for row in rows], dtype=torch.int64, device=device)


def _replaced(rows: SplicedRows, indices: Sequence[int], by: Sequence[TokenRow]) -> SplicedRows:
    """Replace some rows by rows of the text path."""
    new = pad_rows(by, rows.ids_BT.device)
    width = max(rows.ids_BT.shape[1], new.ids_BT.shape[1])
    wide, new_wide = (torch.nn.functional.pad(each.ids_BT, (0, width - each.ids_BT.shape[1])) for each in (rows, new))
    index_R = torch.tensor(indices, device=rows.ids_BT.device)
    columns = ((wide, new_wide), (rows.size_B, new.size_B), (rows.start_B, new.start_B))
    return SplicedRows(*(column.index_copy(0, index_R, new_column) for column, new_column in columns))
