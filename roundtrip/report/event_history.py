"""`events.jsonl` as values: the steps, evaluations, rounds and times of a run, each as it was logged last."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any, NamedTuple

from roundtrip.backtranslation.results import ScoresOfStage
from roundtrip.recipe.plan import is_control

MAX_COUNT = 10**12
# What an event may raise that is not as this version writes it.
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


class Step(NamedTuple):
    """The figures of one optimizer step; `rate` in tokens per second, NaN after anything but a step."""

    lr: float
    loss: float
    grad_norm: float
    rate: float


@dataclass(frozen=True)
class RoundExamples:
    """The synthetic examples of a direction in a round; `chars` has first decile, median and last decile."""

    stage: str
    direction: str
    kept: int
    candidates: int
    rejected: Counter[str]
    chars: dict[str, list[int]]

    @property
    def num_rejected(self) -> int:
        return self.rejected.total()


@dataclass
class EventHistory:
    """What the events of a run say; what is a mapping is by direction unless it says otherwise."""

    # By direction and whether it is of the control, by number of the step.
    steps: dict[tuple[str, bool], dict[int, Step]] = field(default_factory=dict)
    stage_starts: dict[str, dict[str, int]] = field(default_factory=dict)  # by stage, its first step
    dev: dict[str, ScoresOfStage] = field(default_factory=dict)  # by stage
    best: dict[str, str] = field(default_factory=dict)
    rounds: dict[tuple[str, str], RoundExamples] = field(default_factory=dict)  # by stage and direction
    token_rows: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)  # the same
    compatibility: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    planned_steps: dict[str, int] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)  # by activity, up to the last evaluation of each process
    nonfinite_steps: set[tuple[str, int]] = field(default_factory=set)  # direction and number
    num_resumed: int = 0
    num_damaged: int = 0  # lines that cannot be read
    last_time: float = nan  # of the last event, in seconds since 1970


def read_history(lines: Iterable[str], directions: Sequence[str]) -> EventHistory:
    """Read the events of a run; lines that are damaged, such as the last one of a killed process, are counted."""
    reader = _Reader(directions)
    for line in lines:
        try:
            reader.read(json.loads(line))
        except _DAMAGED:
            reader.history.num_damaged += 1
    reader.end_process()
    return reader.history


class _Reader:
    """Adds events to a history, in order."""

    def __init__(self, directions: Sequence[str]) -> None:
        self.directions, self.history = directions, EventHistory()
        self.is_resumed = False
        self.seconds: dict[str, float] = {}  # of this process
        self.last_step: dict[str, int] = {}
        self.phase_end: dict[str, int] = {}
        self.previous: tuple[str, float] = ("", nan)  # direction and time of the last event where it was a step

    def read(self, event: dict[str, Any]) -> None:
        previous, self.previous = self.previous, ("", nan)
        kind, time = event["event"], float(event["time"])
        self.history.last_time = time
        direction = event.get("direction", "")
        if direction and direction not in self.directions:
            raise ValueError(direction)
        match kind:
            case "step":
                self._read_step(event, direction, time, previous)
            case "dev":
                self.history.dev[str(event["stage"])] = self._scores(event["scores"])
                self.history.best = {name: str(event["best"][name]) for name in self.directions}
                self._read_seconds(event)
            case "examples" if str(event["stage"]).startswith("round-"):
                self._read_round(event, direction)
            case "token_rows":
                self.history.token_rows[str(event["stage"]), direction] = _counts(event["rows"])
            case "phase":
                start = self.phase_end.get(direction, 0) + 1
                self.history.stage_starts.setdefault(direction, {}).setdefault(str(event["stage"]), start)
                self.phase_end[direction] = self.last_step.get(direction, 0)
            case "compatibility":
                self.history.compatibility[direction] = _compatibility(event)
            case "model":
                self.history.models[direction] = {key: str(event.get(key, "")) for key in ("attention", "dtype")}
                self.history.models[direction]["notes"] = [str(note) for note in event.get("notes", [])]
            case "start":
                self._start(event)
            case "resume":
                self.is_resumed = True
            case "optimizer":
                self.history.planned_steps = {name: _count(event["planned_steps"][name]) for name in self.directions}
            case "nonfinite_step":
                self.history.nonfinite_steps.add((direction, _count(event["step"])))
            case "end":
                self._read_seconds(event)

    def end_process(self) -> None:
        """Add the time of the process whose events were read."""
        self.history.seconds.update(self.seconds)
        self.seconds = {}

    def _start(self, event: dict[str, Any]) -> None:
        history = self.history
        if self.is_resumed:
            history.num_resumed += 1
            self.end_process()
        else:  # an attempt that ended before its first checkpoint is not part of the run
            kept = ("compatibility", "models", "num_damaged", "last_time")
            self.history = EventHistory(**{name: getattr(history, name) for name in kept})
            self.seconds, self.last_step, self.phase_end = {}, {}, {}
        self.is_resumed = False
        devices = {str(device): str(name) for device, name in event.get("devices", {}).items()}
        self.history.hardware = {"devices": devices}
        self.history.hardware |= {key: _count(event[key]) for key in ("threads", "processes") if key in event}

    def _read_step(self, event: dict[str, Any], direction: str, time: float, previous: tuple[str, float]) -> None:
        number, seconds = _count(event["step"]), time - previous[1]
        rate = _count(event["tokens"]) / seconds if previous[0] == direction and seconds > 0 else nan
        figures = Step(float(event["lr"]), float(event["loss"]), float(event["grad_norm"]), rate)
        control = is_control(str(event.get("stage", "")))
        self.history.steps.setdefault((direction, control), {})[number] = figures
        self.last_step[direction] = number
        self.previous = (direction, time)

    def _read_round(self, event: dict[str, Any], direction: str) -> None:
        stage, kept, rejected = str(event["stage"]), _count(event["synthetic"]), _counts(event["rejected"])
        chars = {side: [_count(number) for number in sizes] for side, sizes in event.get("chars", {}).items()}
        if any(side not in {"source", "target"} or len(sizes) != 3 for side, sizes in chars.items()):
            raise ValueError(chars)
        candidates = _count(event.get("candidates", kept + rejected.total()))
        self.history.rounds[stage, direction] = RoundExamples(stage, direction, kept, candidates, rejected, chars)

    def _read_seconds(self, event: dict[str, Any]) -> None:
        seconds = event.get("seconds", self.seconds)
        self.seconds = {str(activity): _count(1000 * value) / 1000 for activity, value in seconds.items()}

    def _scores(self, scores: dict[str, Any]) -> ScoresOfStage:
        return {name: {str(key): float(value) for key, value in scores[name].items()} for name in self.directions}


def _count(value: Any) -> int:
    """Return a number of things; a ValueError refuses what none is."""
    number = int(value)
    if not 0 <= number < MAX_COUNT:
        raise ValueError(value)
    return number


def _counts(counts: dict[str, Any]) -> Counter[str]:
    return Counter({str(reason): _count(number) for reason, number in counts.items()})


def _compatibility(event: dict[str, Any]) -> dict[str, Any]:
    """Return the report of a tokenizer check as `CompatibilityReport.to_dict` has it, with values of its types."""
    examples = [
        {"text": str(each["text"]), "reason": str(each["reason"])}
        | {key: [str(token) for token in each[key]] for key in ("generated", "expected")}
        for each in event["examples"]
    ]
    checker, cure = (None if event[key] is None else str(event[key]) for key in ("checker", "cure"))
    return {
        "mode": str(event["mode"]),
        "checker": checker,
        "cure": cure,
        "reasons": [str(reason) for reason in event["reasons"]],
        "counts": _counts(event["counts"]),
        "attacks": _counts(event["attacks"]),
        "examples": examples,
    }
