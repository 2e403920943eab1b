"""The ways from generated ids to training rows that `benchmarks.tokens` times.

Shapes: B rows, N positions of a hypothesis, M of a target.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import row_baselines
from benchmarks.batches import CHAT, LANGUAGES, Case, Kit
from benchmarks.row_baselines import Padded
from roundtrip.recipe.language_codes import language_name
from roundtrip.tokens.prompt_template import PromptTemplate, TokenRow
from roundtrip.tokens.row_builder import RowBuilder, pad_rows
from roundtrip.tokens.splice import splicing
from roundtrip.tokens.splice.canonicality import PROVED, CanonicalityChecker
from roundtrip.tokens.splice.splicing import BoundaryTensors


@dataclass(frozen=True)
class Made:
    """Rows; with a checker on the device also which of them are proved, and how many pairs the host had to check."""

    padded: Padded
    proved_B: torch.Tensor | None = None
    num_asked: int = 0


@dataclass(frozen=True)
class Timed:
    """Something to time, and what has to be done before each turn without being timed."""

    run: Callable[[], Any]
    before: Callable[[], None] = lambda: None


def decode(template: PromptTemplate, new_BN: torch.Tensor) -> list[str]:
    """Return hypotheses as text; `.tolist()` is the copy from the device."""
    stops = set(template.segments.stop_ids)
    rows = [row[: next((i for i, token in enumerate(row) if token in stops), len(row))] for row in new_BN.tolist()]
    texts = template.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]


def render(template: PromptTemplate, texts: Sequence[str], targets: Sequence[str]) -> list[str]:
    head, mid = template.segments.head, template.segments.mid
    return [head + text + mid + target for text, target in zip(texts, targets, strict=True)]


def by_text(kit: Kit, case: Case) -> Made:
    """Make rows as `PromptTemplate.rows` does."""
    texts = decode(kit.reverse, case.new_BN)
    rows = kit.forward.rows(list(zip(texts, case.targets, strict=True)))
    return Made(pad_rows(rows, case.new_BN.device).padded())


def by_fewest_calls(kit: Kit, case: Case) -> Made:
    """Make rows with one call of the `tokenizers` library each way, which uses all cores, and no list of offsets.

    User text that spells a special token is not escaped, so this is a lower bound of the time, not a usable variant.
    """
    backend, segments = kit.forward.tokenizer.backend_tokenizer, kit.forward.segments
    texts = [text.strip() for text in backend.decode_batch(case.new_BN.tolist(), skip_special_tokens=True)]
    encoded = backend.encode_batch(render(kit.forward, texts, case.targets), add_special_tokens=False)
    fixed = len(segments.head) + len(segments.mid.rstrip(" "))
    rows = [
        TokenRow([*encoding.ids, segments.end_id], encoding.char_to_token(fixed + len(text)))
        for encoding, text in zip(encoded, texts, strict=True)
    ]
    return Made(pad_rows(rows, case.new_BN.device).padded())


def spliced(
    new_BN: torch.Tensor, target_BM: torch.Tensor, target_size_B: torch.Tensor, tensors: BoundaryTensors
) -> Padded:
    """Make rows without checking that they are canonical: tensors only."""
    size_B, _ = splicing.find_ends(new_BN, tensors.flags_V)
    source_BN, source_size_B, mid_B, _ = splicing.trim_source(new_BN, size_B, tensors)
    return splicing.splice_rows(source_BN, source_size_B, mid_B, target_BM, target_size_B, tensors).padded()


def looked_up(
    new_BN: torch.Tensor,
    target_BM: torch.Tensor,
    target_size_B: torch.Tensor,
    tensors: BoundaryTensors,
    checker: CanonicalityChecker,
) -> tuple[Padded, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make rows, and look up which are known to be canonical: tensors only.

    Returns:
        The rows; source_BN, source_size_B and fits_B of `trim_source`; known_B, bool.
    """
    size_B, _ = splicing.find_ends(new_BN, tensors.flags_V)
    source_BN, source_size_B, mid_B, fits_B = splicing.trim_source(new_BN, size_B, tensors)
    rows = splicing.splice_rows(source_BN, source_size_B, mid_B, target_BM, target_size_B, tensors).padded()
    return rows, source_BN, source_size_B, fits_B, checker.lookup(source_BN, source_size_B) & fits_B


def by_checker(row_builder: RowBuilder, checker: CanonicalityChecker, case: Case, graph: Callable[..., Any]) -> Made:
    """Make rows and verify each, with one transfer from the device where there is no new pair."""
    rows, source_BN, source_size_B, fits_B, proved_B = graph(
        case.new_BN, case.target_BM, case.target_size_B, row_builder.tensors, checker
    )
    before = checker.num_asked
    if not proved_B.all():
        proved_B = (checker.verify(source_BN, source_size_B) == PROVED) & fits_B
    return Made(rows, proved_B, checker.num_asked - before)


class CachedTargets(PromptTemplate):
    """A template that encodes each target once."""

    def __init__(self, template: PromptTemplate) -> None:
        super().__init__(template.tokenizer, template.segments)
        self._cache: dict[str, list[int] | None] = {}

    def targets(self, targets: Sequence[str]) -> list[list[int] | None]:
        new = [target for target in dict.fromkeys(targets) if target not in self._cache]
        self._cache |= dict(zip(new, super().targets(new), strict=True))
        return [self._cache[target] for target in targets]


def by_builder(row_builder: RowBuilder, case: Case, texts: Sequence[str] | None) -> Made:
    """Make rows as the loop does; texts that are not given are decoded first."""
    size_B, _ = row_builder.find_ends(case.new_BN)
    texts = texts or decode(row_builder.reverse_template, case.new_BN)
    rows, _ = row_builder.build(case.new_BN, size_B, case.targets, texts)
    return Made(rows.padded())


def parts(kit: Kit, case: Case) -> dict[str, Timed]:
    """Return the steps of the text path, and what is needed once for each target."""
    device, pairs = case.new_BN.device, list(zip(case.texts, case.targets, strict=True))
    known = [TokenRow(ids or [], 0) for ids in kit.forward.targets(case.targets)]
    return {
        "text: decode": Timed(lambda: decode(kit.reverse, case.new_BN)),
        "text: render": Timed(lambda: render(kit.forward, case.texts, case.targets)),
        "text: encode and label": Timed(lambda: kit.forward.rows(pairs)),
        "text: pad, to device": Timed(lambda: pad_rows(case.expected, device).padded()),
        "targets: encode": Timed(lambda: kit.forward.targets(case.targets)),
        "targets: pad, to device": Timed(lambda: pad_rows(known, device)),
    }


def others(kit: Kit, case: Case) -> dict[str, Timed]:
    """Return the variants without the splice."""
    tokenizer = kit.forward.tokenizer
    plain, end = kit.plain_reverse.tokenizer, kit.plain_reverse.segments.end_id
    skip, collecting = (row_baselines.Skip(plain, end, collect=collect) for collect in (False, True))
    source, target = (language_name(code, {}) for code in LANGUAGES)
    instruction = CHAT.prompt_text.replace("{source_language}", source).replace("{target_language}", target)
    return {
        "text": Timed(lambda: by_text(kit, case)),
        "text, fewest calls": Timed(lambda: by_fewest_calls(kit, case)),
        "text, usual": Timed(lambda: Made(row_baselines.usual(tokenizer, instruction, case.new_BN, case.targets))),
        "prior art": Timed(lambda: skip.rows(case.generated)),
        "prior art, gc.collect()": Timed(lambda: collecting.rows(case.generated)),
    }


def splice_variants(kit: Kit, case: Case, compiled: bool) -> dict[str, Timed]:
    """Return the variants of the splice, with their tensor part as it is or compiled."""
    row_builder = kit.row_builder
    assert row_builder.checker is not None
    full = row_builder.checker
    empty: list[CanonicalityChecker] = []

    def clear() -> None:
        pairs = copy.copy(full.pairs)
        assert isinstance(pairs._intact, dict)
        pairs._intact = {}
        empty[:] = [CanonicalityChecker(pairs, case.new_BN.device)]

    def graph(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, fullgraph=True, dynamic=False) if compiled else function

    unchecked, checked = graph(spliced), graph(looked_up)
    name = ", compiled" if compiled else ""
    return {
        f"splice, no checker{name}": Timed(
            lambda: Made(unchecked(case.new_BN, case.target_BM, case.target_size_B, row_builder.tensors))
        ),
        f"splice, cold checker{name}": Timed(lambda: by_checker(row_builder, empty[0], case, checked), clear),
        f"splice, warm checker{name}": Timed(lambda: by_checker(row_builder, full, case, checked)),
    }


def every(kit: Kit, case: Case) -> dict[str, Timed]:
    """Return every variant that is not compiled."""
    host = replace(kit.host, forward_template=CachedTargets(kit.forward))
    ours = splice_variants(kit, case, False) if kit.row_builder.checker is not None else {}
    return (
        others(kit, case)
        | ours
        | {
            "splice, host checker": Timed(lambda: by_builder(host, case, None)),
            "RowBuilder.build": Timed(lambda: by_builder(kit.row_builder, case, case.texts)),
        }
    )
