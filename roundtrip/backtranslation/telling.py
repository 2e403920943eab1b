"""What a run says about a phase: the block it learns from, the roads of its rows, what was left out."""

from __future__ import annotations

from collections.abc import Mapping

from roundtrip.backtranslation.examples import EARLIER, NOISED, REAL, SYNTHETIC, PhaseExamples
from roundtrip.recipe.plan import Phase
from roundtrip.runtime.errors import TrainingError
from roundtrip.runtime.event_log import EventLog
from roundtrip.tokens.row_builder import SPLICED


def tell_block(events: EventLog, phase: Phase, block: PhaseExamples) -> None:
    """Say how a block came out.

    Raises:
        TrainingError: it is empty.
    """
    num_rejected = sum(block.rejected.values())
    counts = {kind: sum(row[0] == kind for row in block.rows) for kind in (SYNTHETIC, EARLIER, REAL, NOISED)}
    num_synthetic = counts[SYNTHETIC]
    events.log(
        "block",
        stage=phase.stage,
        direction=phase.direction.name,
        **counts,
        plain=len(block.rows) - sum(counts.values()),
        rejected=block.rejected,
        started_over=list(block.wraps),
    )
    for name in block.wraps:
        events.say(f"  {name} is read through and starts over, reshuffled")
    if phase.round and not num_synthetic:
        samples = "".join(f"\n    {source!r} for {target!r}" for source, target in block.thrown)
        raise TrainingError(
            f"all {num_rejected} synthetic sources were rejected: {block.rejected}{samples}",
            place=f"{phase.stage}, {phase.direction.name}",
            cure=f"start anew with {what_to_try(block.rejected)}",
        )
    if 2 * num_rejected > block.num_written:
        events.say(
            f"  more than half of the synthetic sources were rejected {block.rejected}: try "
            f"{what_to_try(block.rejected)}"
        )


def what_to_try(rejected: Mapping[str, int]) -> str:
    """Return what helps against the commonest reason of rejections."""
    most = max(rejected, key=lambda reason: rejected[reason], default="")
    warmer = "more train.parallel_epochs, since the writing direction is still weak"
    return {
        "unfinished": f"{warmer}, or a larger generate.max_length_ratio",
        "length ratio": f"{warmer}, or a larger filter.max_length_ratio",
        "copy": f"{warmer}, or a larger filter.max_copy_chrf where the languages are alike",
        "repeats itself": f"{warmer}, or generate.repetition_penalty = 1.1",
        "wrong language": f"{warmer}; the prompt may not name the languages clearly",
        "lost on the way back": f"{warmer}, or a smaller filter.min_round_trip_chrf",
        "target too long": "a larger train.max_length, or a smaller data.filter.max_chars",
        "several lines": "a template whose end token the model knows, such as kind = 'chat'",
    }.get(most, warmer)


def tell_roads(events: EventLog, phase: Phase, counts: Mapping[str, int], asked_for: bool) -> None:
    """Say which road the synthetic rows of a phase went.

    Args:
        asked_for: the recipe sends all of them by strings, so that nobody need be told.
    """
    events.log("roads", stage=phase.stage, direction=phase.direction.name, rows=dict(counts))
    by_strings = {reason: number for reason, number in counts.items() if reason != SPLICED}
    if by_strings and not asked_for:
        events.say(f"  {sum(by_strings.values())} of {sum(counts.values())} synthetic rows by text path {by_strings}")


def tell_left_out(events: EventLog, phase: Phase, num_rows: int, num_fitting: int, limit: int) -> None:
    """Say how many rows are over the limit.

    Raises:
        TrainingError: all of them.
    """
    if num_fitting < num_rows:
        events.say(f"  {num_rows - num_fitting} rows over {limit} tokens left out")
        events.log("rows left out", stage=phase.stage, number=num_rows - num_fitting)
    if not num_fitting:
        raise TrainingError(
            f"all {num_rows} rows are over {limit} tokens",
            place=phase.stage,
            cure="start anew with a larger train.max_length",
        )
