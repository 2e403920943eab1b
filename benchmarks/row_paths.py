"""The roads from generated ids to training rows, as `benchmarks.tokens` times them.

Shapes: B rows, N positions of a hypothesis, M of a target, V vocabulary, K places of a table.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import prior_art
from benchmarks.batches import CHAT, LANGUAGES, Case, Kit
from benchmarks.prior_art import Padded
from roundtrip.tokens.prompt_segments import language_name
from roundtrip.tokens.prompt_template import PromptTemplate, TokenRow
from roundtrip.tokens.row_builder import RowBuilder, padded
from roundtrip.tokens.splice import splicing as splices
from roundtrip.tokens.splice.canonicality import PROVED, CanonicalityChecker
from roundtrip.tokens.splice.splicing import BoundaryTensors, TrimmedSource


@dataclass(frozen=True)
class Made:
    """Rows; with a guard on the device also which of them are proved, and how many pairs the host had to settle."""

    padded: Padded
    proved_B: torch.Tensor | None = None
    num_asked: int = 0


@dataclass(frozen=True)
class Timed:
    """Something to time, and what has to be done before each turn, off the clock."""

    run: Callable[[], Any]
    before: Callable[[], None] = lambda: None


def decode(template: PromptTemplate, new_BN: torch.Tensor) -> list[str]:
    """Return what hypotheses say; `.tolist()` is the copy from the device."""
    stops = set(template.segments.stop_ids)
    rows = [row[: next((i for i, token in enumerate(row) if token in stops), len(row))] for row in new_BN.tolist()]
    texts = template.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]


def render(template: PromptTemplate, texts: Sequence[str], targets: Sequence[str]) -> list[str]:
    head, mid = template.segments.head, template.segments.mid
    return [head + text + mid + target for text, target in zip(texts, targets, strict=True)]


def by_strings(kit: Kit, case: Case) -> Made:
    """Make rows as `PromptTemplate.rows` does."""
    texts = decode(kit.writer, case.new_BN)
    rows = kit.direction_model.rows(list(zip(texts, case.targets, strict=True)))
    return Made(padded(rows, case.new_BN.device).padded())


def by_fewest_calls(kit: Kit, case: Case) -> Made:
    """Make rows with one call of the `tokenizers` library each way, which takes all cores, and no list of offsets.

    User text that spells a special token is not minded, so this is a bound, not a road to take.
    """
    backend, segments = kit.direction_model.tokenizer.backend_tokenizer, kit.direction_model.segments
    texts = [text.strip() for text in backend.decode_batch(case.new_BN.tolist(), skip_special_tokens=True)]
    encoded = backend.encode_batch(render(kit.direction_model, texts, case.targets), add_special_tokens=False)
    fixed = len(segments.head) + len(segments.mid.rstrip(" "))
    rows = [
        TokenRow([*one.ids, segments.end_id], one.char_to_token(fixed + len(text)))
        for one, text in zip(encoded, texts, strict=True)
    ]
    return Made(padded(rows, case.new_BN.device).padded())


def spliced(
    new_BN: torch.Tensor, target_BM: torch.Tensor, target_size_B: torch.Tensor, into: BoundaryTensors
) -> Padded:
    """Make rows without asking whether they may be made: tensors only."""
    size_B, _ = splices.find_ends(new_BN, into.flags_V)
    return splices.splice_rows(splices.trim_source(new_BN, size_B, into), target_BM, target_size_B, into).padded()


def looked_up(
    new_BN: torch.Tensor,
    target_BM: torch.Tensor,
    target_size_B: torch.Tensor,
    into: BoundaryTensors,
    guard: CanonicalityChecker,
) -> tuple[Padded, TrimmedSource, torch.Tensor]:
    """Make rows, and look up which are known to be canonical: tensors only."""
    size_B, _ = splices.find_ends(new_BN, into.flags_V)
    source = splices.trim_source(new_BN, size_B, into)
    good_B = guard.lookup(source.ids_BN, source.size_B)
    return splices.splice_rows(source, target_BM, target_size_B, into).padded(), source, good_B


def by_guard(row_builder: RowBuilder, guard: CanonicalityChecker, case: Case, graph: Callable[..., Any]) -> Made:
    """Make rows and have each proved, which looks at the device once where there is nothing new."""
    assert row_builder.tensors is not None
    made, source, good_B = graph(case.new_BN, case.target_BM, case.target_size_B, row_builder.tensors, guard)
    before = guard.num_asked
    if not (good_B & source.fits_B).all():
        good_B = guard.verify(source.ids_BN, source.size_B) == PROVED
    return Made(made, good_B & source.fits_B, guard.num_asked - before)


class Remembering(PromptTemplate):
    """A template that encodes each target once."""

    def __init__(self, template: PromptTemplate) -> None:
        super().__init__(template.tokenizer, template.segments)
        self._remembered: dict[str, list[int] | None] = {}

    def targets(self, targets: Sequence[str]) -> list[list[int] | None]:
        new = [target for target in dict.fromkeys(targets) if target not in self._remembered]
        self._remembered |= dict(zip(new, super().targets(new), strict=True))
        return [self._remembered[target] for target in targets]


def by_road(row_builder: RowBuilder, case: Case, texts: Sequence[str] | None) -> Made:
    """Make rows as the loop does; texts that are not given are decoded first."""
    assert row_builder.tensors is not None
    size_B, _ = splices.find_ends(case.new_BN, row_builder.tensors.flags_V)
    rows, _ = row_builder.build(
        case.new_BN, size_B, case.targets, texts or decode(row_builder.reverse_template, case.new_BN)
    )
    return Made(rows.padded())


def parts(kit: Kit, case: Case) -> dict[str, Timed]:
    """Return the steps of the string road, and what a target costs once."""
    device, pairs = case.new_BN.device, list(zip(case.texts, case.targets, strict=True))
    known = [TokenRow(ids or [], 0) for ids in kit.direction_model.targets(case.targets)]
    return {
        "strings: decode": Timed(lambda: decode(kit.writer, case.new_BN)),
        "strings: render": Timed(lambda: render(kit.direction_model, case.texts, case.targets)),
        "strings: encode and label": Timed(lambda: kit.direction_model.rows(pairs)),
        "strings: pad, to device": Timed(lambda: padded(case.expected, device).padded()),
        "targets: encode": Timed(lambda: kit.direction_model.targets(case.targets)),
        "targets: pad, to device": Timed(lambda: padded(known, device)),
    }


def others(kit: Kit, case: Case) -> dict[str, Timed]:
    """Return the roads that are not the splice."""
    tokenizer = kit.direction_model.tokenizer
    plain, end = kit.plain_writer.tokenizer, kit.plain_writer.segments.end_id
    skip, collecting = (prior_art.Skip(plain, end, collect=collect) for collect in (False, True))
    source, target = map(language_name, LANGUAGES)
    instruction = CHAT.prompt_text.replace("{source_language}", source).replace("{target_language}", target)
    return {
        "strings": Timed(lambda: by_strings(kit, case)),
        "strings, fewest calls": Timed(lambda: by_fewest_calls(kit, case)),
        "strings, usual": Timed(lambda: Made(prior_art.usual(tokenizer, instruction, case.new_BN, case.targets))),
        "prior art": Timed(lambda: skip.rows(case.generated)),
        "prior art, gc.collect()": Timed(lambda: collecting.rows(case.generated)),
    }


def splicing(kit: Kit, case: Case, compiled: bool) -> dict[str, Timed]:
    """Return the roads of the splice, with their tensor part as it is or compiled."""
    row_builder = kit.row_builder
    assert row_builder.tensors is not None and row_builder.guard is not None
    warm = row_builder.guard
    fresh: list[CanonicalityChecker] = []

    def zero_grad() -> None:
        pairs = copy.copy(warm.pairs)
        assert isinstance(pairs._intact, dict)
        pairs._intact = {}
        fresh[:] = [CanonicalityChecker(pairs, case.new_BN.device)]

    def graph(of: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(of, fullgraph=True, dynamic=False) if compiled else of

    bare, looking = graph(spliced), graph(looked_up)
    name = ", compiled" if compiled else ""
    return {
        f"splice, no guard{name}": Timed(
            lambda: Made(bare(case.new_BN, case.target_BM, case.target_size_B, row_builder.tensors))
        ),
        f"splice, cold guard{name}": Timed(lambda: by_guard(row_builder, fresh[0], case, looking), zero_grad),
        f"splice, warm guard{name}": Timed(lambda: by_guard(row_builder, warm, case, looking)),
    }


def every(kit: Kit, case: Case) -> dict[str, Timed]:
    """Return every road that is not compiled."""
    host = replace(kit.host, forward_template=Remembering(kit.direction_model))
    ours = splicing(kit, case, False) if kit.row_builder.guard is not None else {}
    return (
        others(kit, case)
        | ours
        | {
            "splice, host guard": Timed(lambda: by_road(host, case, None)),
            "Road.rows": Timed(lambda: by_road(kit.row_builder, case, case.texts)),
        }
    )
