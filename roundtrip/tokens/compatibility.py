"""Can the training rows of a pair of models be spliced? The report, and the row builder that follows from it."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.runtime import integrity
from roundtrip.runtime.cached_folders import locked
from roundtrip.runtime.errors import RoundtripError, RowBuilderError, TemplateError, first_line
from roundtrip.tokens.audit import audit_rules, canonical_hypotheses, compare_rows
from roundtrip.tokens.prompt_segments import build_segments, special_ids, token_texts
from roundtrip.tokens.prompt_template import PromptTemplate
from roundtrip.tokens.row_builder import SPLICED, TARGET, RowBuilder, first_difference
from roundtrip.tokens.splice import splicing, vocabulary
from roundtrip.tokens.splice.boundary_tables import BoundaryProbe, BoundaryTables
from roundtrip.tokens.splice.canonicality import BOUNDARY, REASONS, CanonicalityChecker
from roundtrip.tokens.splice.pair_rules import OnProgress, PairRules, silent
from roundtrip.tokens.tokenizer_diff import tokenizer_differences

NUM_EXAMPLES = 3
CACHE_FORMAT = 4
_USE_ONE_BASE = "use one base for both directions, or two with the same tokenizer"
_USE_FAST = "load the fast tokenizer of this model (a tokenizer.json)"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """How a row builder is found.

    Attributes:
        checker: what verifies a row: `device` looks up pairs of tokens, `host` encodes every prompt again; `auto` is
            the first where the rules cover the tokenizer and the audit finds no fault, else the second.
        device: where rows are made.
        shared_checker: of the same tokenizer and device, to share its memory of pairs; made anew where None.
        cache_folder: keeps what takes seconds to find; None keeps nothing.
        num_attacks: rows of the audit of the device checker.
        on_progress: called with what is being done, how far it is, and how far it goes.

    Example:
        >>> BuildOptions(checker="host").device
        device(type='cpu')
    """

    checker: Literal["auto", "device", "host"] = "auto"
    device: torch.device = torch.device("cpu")
    shared_checker: CanonicalityChecker | None = None
    cache_folder: Path | None = None
    num_attacks: int = 1000
    on_progress: OnProgress = silent


@dataclass(frozen=True)
class CompatibilityExample:
    """A line that takes the text path: why, its tokens as generated, and those that the prompt needs."""

    text: str
    reason: str
    generated: list[str]
    expected: list[str]


@dataclass(frozen=True)
class CompatibilityReport:
    """Whether the rows of a pair of models can be spliced.

    Attributes:
        mode: `splice`: every sample line was spliced and equals the text path; `per_row`: some lines take the text
            path; `text`: all do.
        checker: what verifies each row; None where nothing is spliced.
        reasons: everything that decided about mode and checker, or is worth knowing.
        cure: what would lead to more spliced rows, None where there is nothing to mend.
        counts: of the sample lines: spliced, or the reason of the text path.
        attacks: of the audit: `rows`, `accepted`, `canonical`, `false accepts`; empty where there was none.
        examples: some lines that take the text path.

    Example:
        >>> CompatibilityReport("text", None, ("the vocabularies differ",)).share
        0.0
    """

    mode: Literal["splice", "per_row", "text"]
    checker: Literal["device", "host"] | None
    reasons: tuple[str, ...]
    cure: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    attacks: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[CompatibilityExample, ...] = ()

    @property
    def share(self) -> float:
        """Share of the sample lines that are spliced, 0 to 1."""
        return self.counts.get(SPLICED, 0) / max(1, sum(self.counts.values()))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"share": round(self.share, 4)}


def check_tokenizers(
    tokenizer_a: Any,
    tokenizer_b: Any,
    template: TemplateRecipe,
    languages: tuple[str, str],
    lines: Sequence[tuple[str, str]],
    options: BuildOptions = BuildOptions(),  # noqa: B008  (frozen)
) -> CompatibilityReport:
    """Say whether ids that one model generates can become training rows of another without going through text.

    Args:
        tokenizer_a: a transformers tokenizer, of the model that generates the sources.
        tokenizer_b: of the model that trains on them; may be the same object or an equal one.
        template: how a source and a target become one text.
        languages: codes of source and target of the direction that trains.
        lines: sample (source, target) pairs in these languages; they need not be translations of each other.
        options: see `BuildOptions`.

    Returns:
        The report; nothing is raised for tokenizers that do not fit.

    Example:
        >>> template = TemplateRecipe(kind="plain")
        >>> lines = [("The house is red", "La casa es roja"), ("A door", "Una puerta")]
        >>> report = check_tokenizers(tokenizer, tokenizer, template, ("en", "es"), lines)
        >>> report.mode, report.checker, report.share
        ('splice', 'device', 1.0)
    """
    source, target = languages
    try:
        reverse = PromptTemplate(tokenizer_a, build_segments(tokenizer_a, template, target, source, ()))
        forward = PromptTemplate(tokenizer_b, build_segments(tokenizer_b, template, source, target, ()))
    except TemplateError as error:
        return CompatibilityReport("text", None, (error.problem,), error.cure)
    return build_row_builder(reverse, forward, lines, options)[1]


def build_row_builder(
    reverse_template: PromptTemplate,
    forward_template: PromptTemplate,
    lines: Sequence[tuple[str, str]],
    options: BuildOptions = BuildOptions(),  # noqa: B008  (frozen)
) -> tuple[RowBuilder, CompatibilityReport]:
    """Find how the rows of one direction are made.

    Args:
        reverse_template: of the direction that generates the sources.
        forward_template: of the direction that trains on them.
        lines: sample (source, target) pairs of the direction that trains.
        options: see `BuildOptions`.

    Raises:
        RowBuilderError: `checker = "device"` is asked for and cannot be trusted with this tokenizer.

    Example:
        >>> forward = template("en", "es")  # a `PromptTemplate` for each direction
        >>> row_builder, report = build_row_builder(template("es", "en"), forward, [("a cat", "un gato")])
        >>> report.mode
        'splice'
    """
    text_only = RowBuilder(forward_template, reverse_template, None)
    parts = tokenizer_differences(reverse_template.tokenizer, forward_template.tokenizer)
    notes = tuple(f"{part.part}: {part.what}" for part in parts)
    if any(part.matters for part in parts):
        cure = _USE_FAST if parts[0].part == "kind" else _USE_ONE_BASE
        return text_only, CompatibilityReport("text", None, notes, cure)
    if not forward_template.segments.break_ids and "strftime" in str(forward_template.tokenizer.chat_template):
        notes += ("the chat template inserts today's date: the text around source and target is fixed for the run",)
    attacks: Mapping[str, int] = {}
    row_builder, fault = None, 'requested by tokens.mode = "splice"'
    try:
        if options.checker != "host":
            row_builder, attacks, fault = _device_row_builder(reverse_template, forward_template, lines, options)
        if options.checker == "device" and row_builder is None:
            raise RowBuilderError(fault, place="BuildOptions.checker", cure='use "auto" or "host"')
        if row_builder is None:
            row_builder = host_row_builder(reverse_template, forward_template, options.device)
            notes += (f"checker on the host: {fault}",)
    except TemplateError as error:
        return text_only, CompatibilityReport("text", None, (*notes, error.problem), error.cure)
    report = _try_lines(row_builder, lines, notes, attacks)
    return (text_only if report.checker is None else row_builder), report


def host_row_builder(
    reverse_template: PromptTemplate, forward_template: PromptTemplate, device: torch.device
) -> RowBuilder:
    """Return the row builder whose every row is verified by encoding its prompt again."""
    texts = token_texts(forward_template.tokenizer)
    flags = [vocabulary.SPACE * text.isspace() | vocabulary.LEADING_SPACE * text[:1].isspace() for text in texts]
    flags_V = torch.tensor(flags, dtype=torch.uint8, device=device)
    tables = BoundaryProbe(forward_template, bool(reverse_template.segments.break_ids)).unchanged(len(flags))
    tensors = splicing.boundary_tensors(tables, flags_V, reverse_template, forward_template)
    return RowBuilder(forward_template, reverse_template, tensors)


def _device_row_builder(
    reverse: PromptTemplate, forward: PromptTemplate, lines: Sequence[tuple[str, str]], options: BuildOptions
) -> tuple[RowBuilder | None, Mapping[str, int], str]:
    """Return the row builder whose checker is on the device, the counts of its audit, and what rules it out."""
    fault = vocabulary.unsupported_reason(forward.tokenizer)
    fault = fault or ("" if lines else "there are no sample lines to audit the rules with")
    if fault:
        return None, {}, fault
    checker = options.shared_checker or _new_checker(reverse, forward, options)
    probe = BoundaryProbe(forward, bool(reverse.segments.break_ids))
    if fault := probe.unproved(checker.pairs):
        return None, {}, fault
    num_attacks, on_progress = options.num_attacks, options.on_progress

    def make(tables: BoundaryTables) -> RowBuilder:
        tensors = splicing.boundary_tensors(tables, checker.flags_V, reverse, forward)
        return RowBuilder(forward, reverse, tensors, checker)

    def measure() -> dict[str, Any]:
        tables = probe.find(checker.pairs.vocabulary, on_progress)
        attacks, fault = audit_rules(make(tables), lines, num_attacks, 1, on_progress)
        return {"tables": vars(tables), "attacks": attacks, "fault": fault}

    segments = (str(reverse.segments), str(forward.segments))
    name = vocabulary.fingerprint(forward.tokenizer, *segments, str(num_attacks), str(CACHE_FORMAT))
    measured = _cached(options.cache_folder, name, measure)
    row_builder = make(BoundaryTables(**measured["tables"])) if measured["fault"] is None else None
    return row_builder, measured["attacks"], measured["fault"] or ""


def _new_checker(reverse: PromptTemplate, forward: PromptTemplate, options: BuildOptions) -> CanonicalityChecker:
    rules = PairRules(forward.tokenizer, options.on_progress)
    flags_V = rules.vocabulary.flags_V
    flags_V[[token for token in special_ids(reverse.tokenizer) if token < len(flags_V)]] |= vocabulary.BAD
    return CanonicalityChecker(rules, options.device)


def _cached(folder: Path | None, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `make` returned earlier from a cache folder, or make it and keep it, if the folder can be written.

    What is damaged, or that of another tokenizer or template, is made again with a warning.
    """
    if folder is None:
        return make()
    path = folder / f"{name[:32]}.json"
    try:
        document = integrity.read_hashed_json(path)
        measured: dict[str, Any] = json.loads(document["measured"])
        if document["name"] != name:
            raise ValueError("it is that of another tokenizer")
        return {key: measured[key] for key in ("tables", "attacks", "fault")}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: damaged, and made again: %s", path, first_line(error))
    measured = make()
    with suppress(OSError, RoundtripError), locked(folder):
        # As one text: a line for each of its numbers would be as many as five tokenizers have tokens.
        integrity.write_hashed_json(path, {"name": name, "measured": json.dumps(measured)})
    return measured


def _try_lines(
    row_builder: RowBuilder, lines: Sequence[tuple[str, str]], notes: tuple[str, ...], attacks: Mapping[str, int]
) -> CompatibilityReport:
    """Make the rows of sample lines both ways and report on them."""
    counts: Counter[str] = Counter()
    examples: list[CompatibilityExample] = []
    tokenizer = row_builder.forward_template.tokenizer
    assert row_builder.tensors is not None
    head = len(row_builder.tensors.head_H)
    hypotheses = canonical_hypotheses(row_builder.reverse_template, lines)
    made = compare_rows(row_builder, hypotheses, [target for _, target in lines])
    for (text, _), ids, (reason, expected, actual) in zip(lines, hypotheses, made, strict=True):
        counts[reason] += 1
        if reason == SPLICED and actual != expected:
            what = first_difference(tokenizer, actual.ids, expected.ids)
            notes += (f"splice and text path differ for {text!r}: {what}",)
            return CompatibilityReport("text", None, notes, "please report this tokenizer", dict(counts), attacks)
        if reason != SPLICED and len(examples) < NUM_EXAMPLES:
            tokens = map(tokenizer.convert_ids_to_tokens, (list(ids), expected.ids[head : expected.start]))
            examples.append(CompatibilityExample(text, reason, *tokens))
    num, spliced = counts.total(), counts[SPLICED]
    notes += tuple(f"{reason}: {count} of {num} lines" for reason, count in counts.items() if reason != SPLICED)
    mode: Literal["splice", "per_row", "text"] = "splice" if spliced == num else "per_row" if spliced else "text"
    checker: Literal["device", "host"] | None = "host" if row_builder.checker is None else "device"
    checker = None if mode == "text" else checker
    return CompatibilityReport(mode, checker, notes, _cure(row_builder, counts), dict(counts), attacks, tuple(examples))


def _cure(row_builder: RowBuilder, counts: Counter[str]) -> str | None:
    num, spliced, merging = counts.total(), counts[SPLICED], counts[REASONS[BOUNDARY]] + counts[TARGET]
    if spliced == num or 2 * merging < num - spliced:
        return None
    share = f"{100 * merging / num:.0f} % of your lines meet the template in a token that merges there"
    if row_builder.reverse_template.segments.break_ids and row_builder.forward_template.tokenizer.chat_template:
        mid = row_builder.forward_template.segments.mid
        return f'use the chat template: with "{mid!r}" behind the source {share}'
    return f"put a word or a line break between text and template: as it is, {share}"
