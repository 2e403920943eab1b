"""Words for people: what stages are called, what a comparison compares, and what helps against rejections."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from roundtrip.recipe.plan import BASE, FINAL, INITIAL, PARALLEL, PRETRAIN, is_control

_LABELS = {
    "copy": "copying the source",
    BASE: "base model, zero-shot",
    INITIAL: "adapters of adapter.init",
    PRETRAIN: "monolingual text",
    PARALLEL: "parallel pairs",
    FINAL: "parallel pairs again",
}
_WEAK = "more train.parallel_epochs, since the generating direction is still weak"
_ADVICE = {
    "unfinished": f"{_WEAK}, or a larger generate.max_length_ratio",
    "length_ratio": f"{_WEAK}, or a larger filter.max_length_ratio",
    "repetition": f"{_WEAK}, or generate.temperature = 0.7",
    "wrong_language": f"{_WEAK}; the prompt may not name the languages clearly",
    "placeholders": f"{_WEAK}, or more pairs with placeholders and tags in data.train",
    "low_round_trip": f"{_WEAK}, or a smaller filter.min_round_trip_chrf",
    "target_too_long": "a larger train.max_length, or a smaller data.filter.max_chars",
    "multiple_lines": "a template whose end token the model knows, such as kind = 'chat'",
}


def stage_label(stage: str) -> str:
    return f"{stage}, pairs only" if is_control(stage) else _LABELS.get(stage, stage)


def control_title(comparison: Mapping[str, Any]) -> str:
    """Return what a comparison with the control compares, and on what."""
    on = "test" if comparison["part"] == "test" else "dev, which chose both"
    return f"rounds ({comparison['system']}) against as many steps on pairs alone ({comparison['baseline']}), on {on}"


def advice(rejected: Counter[str]) -> str:
    """Return what helps against the commonest reason of rejections."""
    if not rejected:
        return _WEAK
    ((reason, _),) = rejected.most_common(1)
    return _ADVICE.get(reason, f"another filter: '{reason}' is none of the built-in reasons")
