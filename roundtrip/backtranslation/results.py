"""`metrics.json`: the figures of a finished run, and the form that they have."""

from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from roundtrip.runtime import integrity

ScoresOfStage = dict[str, dict[str, float]]


class StageComparison(BaseModel):
    """The best stage of a direction against the last of the others, on test."""

    baseline: str
    system: str
    samples: int
    metrics: list[dict[str, float | str]]


class ControlComparison(StageComparison):
    """The best stage of the rounds, `system`, against that of the control, `baseline`."""

    part: Literal["dev", "test"]


class Results(BaseModel):
    """`metrics.json`; what is by direction has both, except where there is no test set."""

    languages: tuple[str, str]
    dev: dict[str, ScoresOfStage]  # by stage and direction
    test: dict[str, ScoresOfStage]
    best: dict[str, str]
    comparison: dict[str, StageComparison]
    gain: dict[str, StageComparison] = {}  # the best stage against the one that the rounds began from, where it differs
    control: dict[str, ControlComparison] = {}  # with `evaluation.control`
    signatures: dict[str, dict[str, str]]
    samples: dict[str, list[dict[str, str]]]
    steps: dict[str, int]
    nonfinite_steps: dict[str, int]
    seconds: dict[str, float]
    peak_bytes: dict[str, int]
    lines: dict[str, dict[str, int]]
    token_rows: dict[str, dict[str, int]]
    seed: int
    versions: dict[str, str]


_RESULTS = TypeAdapter(Results)


def check(results: dict[str, Any]) -> None:
    """Refuse results of another form, or without the figures of a direction; a ValueError names what is wrong."""
    integrity.validated(_RESULTS, results, "metrics.json")
    first, second = results["languages"]
    names = {f"{first}-{second}", f"{second}-{first}"}
    tables = {key: results[key] for key in ("best", "signatures")}
    tables |= {f"{part}.{stage}": each for part in ("dev", "test") for stage, each in results[part].items()}
    for place, table in tables.items():
        if not names <= table.keys():
            raise ValueError(f"metrics.json is damaged: {place} lacks {' and '.join(sorted(names - table.keys()))}")
