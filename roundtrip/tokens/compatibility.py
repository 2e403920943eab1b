"""Which road the rows of a pair may take, why, and what to do for a better one.

`splice`: every sample line went by the splice, and came out as strings make it. `rows`: some lines go by strings, row
by row. `strings`: the whole pair does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.runtime.errors import RecipeError, TemplateError
from roundtrip.tokens.audit import OnProgress, audit_rules, compare_rows, silent, writer_ids
from roundtrip.tokens.prompt_segments import build_segments, num_ids, special_ids
from roundtrip.tokens.prompt_template import PromptTemplate
from roundtrip.tokens.row_builder import SPLICED, TARGET, RowBuilder, first_difference
from roundtrip.tokens.splice import boundary_tables, vocabulary
from roundtrip.tokens.splice import splicing as splices
from roundtrip.tokens.splice.boundary_tables import BoundaryProbe, BoundaryTables
from roundtrip.tokens.splice.canonicality import BOUNDARY, REASONS, CanonicalityChecker
from roundtrip.tokens.splice.pair_rules import PairRules
from roundtrip.tokens.tokenizer_diff import tokenizer_differences

NUM_ATTACKS = 1000
NUM_EXAMPLES = 3
AUDIT_FORMAT = 1
ReportMode = Literal["splice", "per_row", "text"]
GuardName = Literal["auto", "device", "host"]


@dataclass(frozen=True)
class Example:
    """A line that goes by strings: why, the tokens that the writer has for it, and those that the reader wants."""

    text: str
    reason: str
    written: list[str]
    wanted: list[str]


@dataclass(frozen=True)
class CompatibilityReport:
    """What `check` found.

    Attributes:
        road: see the module.
        guard: what proves each row; None where there is no splice.
        reasons: everything that speaks for the road and the guard, or is worth knowing.
        cure: what would give a better road, None where there is nothing to mend.
        counts: of the sample lines, by road and reason.
        attacks: of the audit: `rows`, `accepted`, `canonical`, `false accepts`; empty where there was none.
        examples: some lines that went by strings.
    """

    mode: ReportMode
    guard: Literal["device", "host"] | None
    reasons: tuple[str, ...]
    cure: str | None
    counts: dict[str, int]
    attacks: dict[str, int]
    examples: tuple[Example, ...] = ()

    @property
    def share(self) -> float:
        """Share of the sample lines that take the splice, 0 to 1."""
        return self.counts.get(SPLICED, 0) / max(1, sum(self.counts.values()))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"share": round(self.share, 4)}


def check_tokenizers(
    tokenizer_a: Any,
    tokenizer_b: Any,
    template: TemplateRecipe,
    languages: tuple[str, str],
    lines: Sequence[tuple[str, str]],
    *,
    guard: GuardName = "auto",
    stop_ids: Sequence[int] = (),
    cache: Path | None = None,
    num_attacks: int = NUM_ATTACKS,
    on_progress: OnProgress = silent,
) -> CompatibilityReport:
    """Say which road the rows of one direction may take.

    Args:
        tokenizer_a: of the model that writes the sources.
        tokenizer_b: of the model that learns from them; may be the same object or an equal one.
        template: how a source and a target become one text.
        languages: codes of source and target of the direction that learns.
        lines: sample (source, target) pairs in these languages; they need not be translations of each other.
        guard: see `build`.
        stop_ids: what generation ends at, besides the template's own end token.
        cache: folder for what took long to find; None keeps nothing.
        num_attacks: rows of the audit of the device guard.
        tell: called with what is being done, and how far it is.
    """
    source, target = languages
    try:
        writer = PromptTemplate(tokenizer_a, build_segments(tokenizer_a, template, target, source, stop_ids))
        learner = PromptTemplate(tokenizer_b, build_segments(tokenizer_b, template, source, target, stop_ids))
    except TemplateError as error:
        return CompatibilityReport("text", None, (error.problem,), error.cure, {}, {})
    return build_row_builder(
        writer, learner, lines, guard=guard, cache=cache, num_attacks=num_attacks, on_progress=on_progress
    )[1]


def build_row_builder(
    writer: PromptTemplate,
    learner: PromptTemplate,
    lines: Sequence[tuple[str, str]],
    *,
    guard: GuardName = "auto",
    device: torch.device | None = None,
    known: CanonicalityChecker | None = None,
    cache: Path | None = None,
    num_attacks: int = NUM_ATTACKS,
    on_progress: OnProgress = silent,
) -> tuple[RowBuilder, CompatibilityReport]:
    """Find the road of one direction.

    Args:
        writer, learner: templates of the direction that writes the sources and of the one that learns from them.
        lines: sample (source, target) pairs of the learner.
        guard: `device` looks pairs up, `host` decodes and encodes every hypothesis; `auto` is the first where the
            rules cover the tokenizer and the audit finds no fault, else the second.
        device: where rows are made; the CPU where None.
        known: a guard of the same tokenizer, to share its memory.

    Raises:
        RecipeError: `guard = "device"` is asked for and the rules do not cover this tokenizer.
    """
    device = device or torch.device("cpu")
    strings = RowBuilder(learner, writer, None)
    parts = tokenizer_differences(writer.tokenizer, learner.tokenizer)
    notes = tuple(f"{part.part}: {part.what}" for part in parts)
    if any(part.matters for part in parts):
        cure = "use one base for both directions, or two with one tokenizer: then rows need no strings"
        if parts[0].part == "kind":
            cure = "load the fast tokenizer of this model (a tokenizer.json)"
        return strings, CompatibilityReport("text", None, notes, cure, {}, {})
    if not learner.segments.break_ids and "strftime" in (learner.tokenizer.chat_template or ""):
        notes += ("the chat template writes today's date: the text around source and target is fixed for the run",)
    why_host = "asked for" if guard == "host" else vocabulary.unsupported_reason(learner.tokenizer)
    if why_host is None and not lines:
        why_host = "there are no sample lines to audit the rules with"
    if why_host and guard == "device":
        raise RecipeError(why_host, place="tokens.guard", cure='use "auto" or "host"')
    try:
        if why_host is None:
            row_builder, attacks, fault = _device_road(
                writer, learner, lines, device, known, cache, num_attacks, on_progress
            )
            if fault is not None and guard == "device":
                raise RecipeError(fault, place="tokens.guard", cure='use "auto" or "host"')
            why_host = fault
        else:
            row_builder, attacks = None, {}
        if row_builder is None or why_host is not None:
            row_builder = host_row_builder(writer, learner, device)
            notes += (f"guard on the host: {why_host}",)
    except TemplateError as error:
        return strings, CompatibilityReport("text", None, (*notes, error.problem), error.cure, {}, {})
    return _tried(row_builder, strings, lines, notes, attacks)


def host_row_builder(writer: PromptTemplate, learner: PromptTemplate, device: torch.device) -> RowBuilder:
    """Return the road whose every row is proved by decoding and encoding it."""
    tokenizer = learner.tokenizer
    boundary_probe = BoundaryProbe(learner, None, bool(writer.segments.break_ids))
    size = num_ids(tokenizer)
    texts = tokenizer.batch_decode([[i] for i in range(size)], clean_up_tokenization_spaces=False)
    flags = [vocabulary.SPACE * (text.isspace()) | vocabulary.BLANK_LEFT * text[:1].isspace() for text in texts]
    flags_V = torch.tensor(flags, dtype=torch.uint8, device=device)
    return RowBuilder(learner, writer, _frame(writer, learner, boundary_probe.unchanged(size), flags_V))


def _frame(
    writer: PromptTemplate, learner: PromptTemplate, found: BoundaryTables, flags_V: torch.Tensor
) -> splices.BoundaryTensors:
    ends, pad = learner.segments.end_id, learner.tokenizer.pad_token_id
    pad = ends if pad is None else pad
    return splices.boundary_tensors(found, flags_V, writer.segments.stop_ids, writer.segments.break_ids, ends, pad)


def _device_road(
    writer: PromptTemplate,
    learner: PromptTemplate,
    lines: Sequence[tuple[str, str]],
    device: torch.device,
    known: CanonicalityChecker | None,
    cache: Path | None,
    num_attacks: int,
    on_progress: OnProgress,
) -> tuple[RowBuilder | None, dict[str, int], str | None]:
    """Return the road of the device guard, the figures of its audit, and what speaks against it in words."""
    if known is None:
        pairs = PairRules(learner.tokenizer, lambda done, total: on_progress("reading the vocabulary", done, total))
        for token in special_ids(writer.tokenizer):
            pairs.vocabulary.forbid(token)
        known = CanonicalityChecker(pairs, device)
    boundary_probe = BoundaryProbe(learner, known.pairs.vocabulary, bool(writer.segments.break_ids))
    if (risk := boundary_probe.risk(known.pairs.merge_override_triples_C3)) is not None:
        return None, {}, risk

    def trying(done: int, total: int) -> None:
        on_progress("trying every token at the seams", done, total)

    found = (
        boundary_probe.find(trying) if cache is None else boundary_tables.cached_tables(boundary_probe, cache, trying)
    )
    name = vocabulary.fingerprint(learner.tokenizer, str(writer.segments), str(learner.segments), str(AUDIT_FORMAT))
    number = int(name[:12], 16)
    salts = (2 * number + 1, 2 * number + 2)
    row_builder = RowBuilder(
        learner, writer, _frame(writer, learner, found, known.flags_V), boundary_probe, known, salts=salts
    )
    path = cache / f"{name[:32]}-audit.json" if cache is not None else None
    if path is not None and (kept := _kept_audit(path, num_attacks)) is not None:
        return row_builder, *kept
    attacks, fault = audit_rules(row_builder, lines, num_attacks, 1, on_progress)
    if path is not None:
        boundary_tables.write_cache_file(
            path, lambda beside: beside.write_text(json.dumps({"attacks": attacks, "fault": fault}))
        )
    return row_builder, attacks, fault


def _kept_audit(path: Path, num_attacks: int) -> tuple[dict[str, int], str | None] | None:
    """Return what an earlier audit of at least as many rows found, None where there was none."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return (kept["attacks"], kept["fault"]) if kept["attacks"]["rows"] >= num_attacks else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tried(
    row_builder: RowBuilder,
    strings: RowBuilder,
    lines: Sequence[tuple[str, str]],
    notes: tuple[str, ...],
    attacks: dict[str, int],
) -> tuple[RowBuilder, CompatibilityReport]:
    """Try a road on sample lines, all of them also by strings."""
    guard: Literal["device", "host"] = "host" if row_builder.guard is None else "device"
    counts: dict[str, int] = {}
    examples: list[Example] = []
    for start in range(0, len(lines), 256):
        some = lines[start : start + 256]
        hypotheses = writer_ids(row_builder.writer, some)
        targets = [target for _, target in some]
        reasons, expected, got = compare_rows(row_builder, hypotheses, targets)
        for number, (text, _) in enumerate(some):
            reason = reasons[number]
            counts[reason] = counts.get(reason, 0) + 1
            if reason == SPLICED and got[number] != expected[number]:
                what = first_difference(row_builder.template.tokenizer, got[number][0], expected[number][0])
                notes += (f"the splice made another row than strings of {text!r}: {what}",)
                return strings, CompatibilityReport(
                    "text", None, notes, "please report this tokenizer", counts, attacks
                )
            if reason != SPLICED and len(examples) < NUM_EXAMPLES:
                examples.append(_example(row_builder, text, reason, hypotheses[number], expected[number]))
    num = sum(counts.values())
    found: ReportMode = "splice" if counts.get(SPLICED, 0) == num else "per_row" if counts.get(SPLICED) else "text"
    notes += tuple(f"{reason}: {count} of {num} lines" for reason, count in counts.items() if reason != SPLICED)
    verdict = CompatibilityReport(found, guard, notes, _cure(row_builder, counts), counts, attacks, tuple(examples))
    if found == "text":
        return strings, replace(verdict, guard=None)
    return row_builder, verdict


def _example(
    row_builder: RowBuilder, text: str, reason: str, ids: Sequence[int], expected: tuple[list[int], int]
) -> Example:
    tokenizer = row_builder.template.tokenizer
    assert row_builder.into is not None
    head = len(row_builder.into.head_H)
    wanted = expected[0][head : expected[1]]
    return Example(text, reason, tokenizer.convert_ids_to_tokens(list(ids)), tokenizer.convert_ids_to_tokens(wanted))


def _cure(row_builder: RowBuilder, counts: dict[str, int]) -> str | None:
    at_seams = counts.get(REASONS[BOUNDARY], 0) + counts.get(TARGET, 0)
    num = sum(counts.values())
    if counts.get(SPLICED, 0) == num:
        return None
    if 2 * at_seams >= num - counts.get(SPLICED, 0):
        share = f"{100 * at_seams / num:.0f} % of your lines meet the template in a token that merges there"
        if row_builder.writer.segments.break_ids and row_builder.template.tokenizer.chat_template:
            return f'use the chat template: with "{row_builder.template.segments.mid!r}" behind the source {share}'
        return f"put a word or a line break between text and template: as it is, {share}"
    return "nothing to mend: these lines are few, or spelt as this tokenizer cannot keep them"
