"""python -m benchmarks.tokens: what it costs to make training rows of generated ids, and how many come out right.

All roads take the same batch in the same process, in turns (A B C A B C, after a turn of warm-up): ids as generation
delivers them and real target lines in, `input_ids`, `attention_mask` and `labels` on the device out.

- strings: decode, render, encode jointly, find the labels by offsets, pad; also each part apart, the shortest such
  road that we could write, and the usual one (chat template and mask, row by row);
- splice: without guard, with a guard that knows nothing yet (cold) or all (warm), the same with the tensor part
  compiled, and with the guard on the host. Their targets are at hand, since each real line is encoded once; what that
  once costs stands beside them. Rows that a guard does not prove are left as they are;
- Road.rows: the road as the loop calls it, texts given (the judge needs them), targets encoded each time;
- prior art: see `benchmarks.prior_art`. Its rows are judged apart, on sentences that end in punctuation, with the
  plain separator that it assumes.

The same lines come each turn, so the tokenizer's own cache of words is warm: that favours strings. `--round` adds the
share of all this in a round of a real model. Writes benchmarks/results/tokens-NAME.json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import plots, prior_art, round_share, row_paths, zoo
from benchmarks.batches import LANGUAGES, Case, Kit, case, joined, kit
from benchmarks.machine import processor
from benchmarks.prior_art import Padded
from benchmarks.row_paths import Made, Timed
from roundtrip.backtranslation.run_folder import versions
from roundtrip.tokens.prompt_template import TokenRow
from roundtrip.tokens.row_builder import SPLICED, padded

# As the training arguments of transformers have it; how the prior art ends a row depends on its neighbours.
SENTENCES_PER_BATCH = 8
END = (".", "?", "!")
COMPILED_LENGTH = 64
TOKENIZERS = ("smollm2", "qwen", "deepseek")


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        batches: rows.
        lengths: tokens of hypothesis and target, about.
        turns: of each road; one that took `seconds` in all sits the others out.
        compiled: also compile, for rows of COMPILED_LENGTH: it takes half a minute for each shape.
        num_sentences: pairs that the exact shares are counted on.
    """

    batches: tuple[int, ...] = (1, 8, 32, 128, 512)
    lengths: tuple[int, ...] = (16, 64, 256, 512)
    turns: int = 7
    seconds: float = 0.4
    compiled: bool = True
    num_sentences: int = 512


QUICK = Settings(batches=(1, 32), lengths=(64,), turns=5, seconds=1.0, num_sentences=128)


@dataclass
class Taken:
    """Seconds of the first turn and of the others, and what the last one made."""

    first: float = 0.0
    turns: list[float] = field(default_factory=list)
    made: Any = None

    def to_dict(self) -> dict[str, float]:
        seconds = {"best_ms": min(self.turns), "median_ms": statistics.median(self.turns), "first_ms": self.first}
        return {name: round(1e3 * value, 4) for name, value in seconds.items()} | {"turns": len(self.turns)}


def alternate(row_builders: Mapping[str, Timed], settings: Settings, device: torch.device) -> dict[str, Taken]:
    """Time roads in turns; the device is waited for before and behind each."""
    taken = {name: Taken() for name in row_builders}
    for turn in range(settings.turns + 1):
        for name, row_builder in row_paths.items():
            known = taken[name]
            if sum(known.turns) > settings.seconds:
                continue
            row_builder.before()
            wait(device)
            start = time.perf_counter()
            known.made = row_builder.run()
            wait(device)
            seconds = time.perf_counter() - start
            if turn:
                known.turns.append(seconds)
            else:
                known.first = seconds
    return taken


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(kit: Kit, case: Case, settings: Settings) -> dict[str, Any]:
    """Return the figures of one batch."""
    device, number = case.new_BN.device, len(case.texts)
    figures = {}
    taken = alternate(row_paths.every(kit, case), settings, device)
    parts = alternate(row_paths.parts(kit, case), settings, device)
    left_out = ""
    if settings.compiled and kit.row_builder.guard is not None:
        torch.compiler.reset()  # each shape is compiled for itself
        try:
            taken |= alternate(row_paths.splicing(kit, case, True), settings, device)
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
            left_out = f"not compiled: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    for name, one in taken.items():
        figures[name] = one.to_dict() | (judged(one.made, case.expected) if isinstance(one.made, Made) else {})
    return {
        "batch": number,
        "hypothesis_tokens": round(sum(map(len, case.hypotheses)) / number, 1),
        "target_tokens": round(float(case.target_size_B.float().mean()), 1),
        "row_tokens": round(sum(len(row.ids) for row in case.expected) / number, 1),
        "roads": figures,
        "parts": {name: one.to_dict() for name, one in parts.items()},
        "left_out": left_out,
    }


def judged(made: Made, expected: Sequence[TokenRow]) -> dict[str, float]:
    """Return the share of rows that strings make the same.

    With a guard of those that are `proved`, a share too; `asked` is the number of pairs that it settled for them.
    """
    _, whole = prior_art.right(made.padded, expected)
    if made.proved_B is None:
        return {"exact": sum(whole) / len(whole)}
    taken = [right for right, proved in zip(whole, made.proved_B.tolist(), strict=True) if proved]
    exact = sum(taken) / max(1, len(taken))
    return {"exact": exact, "proved": len(taken) / len(whole), "asked": made.num_asked}


def exact_shares(kit: Kit, pairs: Sequence[tuple[str, str]], device: torch.device) -> dict[str, dict[str, float]]:
    """Return shares of right rows behind the plain separator: of the prior art, and of ours.

    `targets` are rows whose labels are the target and one end token, `rows` those that are right token by token;
    `spliced` rows are ours that need no strings.
    """
    writer = kit.plain_writer
    counts: Counter[tuple[str, str]] = Counter()

    def count(whose: str, made: Padded, expected: Sequence[TokenRow]) -> None:
        for what, right in zip(("targets", "rows"), prior_art.right(made, expected), strict=True):
            counts[whose, what] += sum(right)

    for start in range(0, len(pairs), SENTENCES_PER_BATCH):
        some = pairs[start : start + SENTENCES_PER_BATCH]
        expected = kit.plain_learner.rows(some)
        for which, pad_id in prior_art.pad_ids(writer.tokenizer).items():
            skip = prior_art.Skip(writer.tokenizer, pad_id)
            count(f"prior art, {which}", skip.rows(prior_art.generated(writer, some, pad_id, device)), expected)
        texts, targets = (list(side) for side in zip(*some, strict=True))
        written = writer.rows([(target, text) for text, target in some])
        new = padded([TokenRow(row.ids[row.start : -1], 0) for row in written], device, writer.segments.end_id)
        rows, by_reason = kit.plain_road.rows(new.ids_BT, new.size_B, targets, texts)
        count("ours", rows.padded(), expected)
        counts["ours", "spliced"] += by_reason[SPLICED]
    shares: dict[str, dict[str, float]] = {}
    for (whose, what), number in counts.items():
        shares.setdefault(whose, {})[what] = number / len(pairs)
    return shares


def alike(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return ordinary sentences with final punctuation, paired by length as translations are, in random order."""
    sides = ([text for text in side if text[-1:] in END and " " in text] for side in zip(*pairs, strict=True))
    paired = list(zip(*(sorted(side, key=len) for side in sides), strict=False))
    return random.Random(1).sample(paired, len(paired))


def document(
    tokenizers: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    settings: Settings,
    device: torch.device,
    console: Console,
) -> dict[str, Any]:
    """Measure everything.

    Args:
        pairs: real (English, Spanish) lines; they need not be translations of each other.
    """
    machine = hardware(device)
    sentences = alike(pairs)[: settings.num_sentences]
    found = {}
    for name, tokenizer in tokenizers.items():
        console.print(f"{name}: reading the vocabulary")
        tools = kit(tokenizer, pairs, device)
        shares = {
            "final punctuation": exact_shares(tools, sentences, device),
            "none": exact_shares(
                tools, [(a.rstrip("".join(END)), b.rstrip("".join(END))) for a, b in sentences], device
            ),
        }
        cases = []
        for length in settings.lengths:
            for number in settings.batches:
                start = time.perf_counter()
                texts = (joined(tokenizer, some, number, length, seed=1) for some in zip(*pairs, strict=True))
                here = replace(settings, compiled=settings.compiled and length == COMPILED_LENGTH)
                cases.append(measured(tools, case(tools, list(zip(*texts, strict=True)), device), here))
                cases[-1] |= {"length": length}
                took = f"{time.perf_counter() - start:.0f} s"
                console.print(f"  {length} tokens, {number} rows: {took} {cases[-1]['left_out']}")
        found[name] = {
            "vocabulary": len(tokenizer),
            "setup_seconds": tools.seconds,
            "plain_separator": {"sentences": len(sentences), **shares},
            "cases": cases,
        }
    return {
        "command": "python -m benchmarks.tokens " + " ".join(sys.argv[1:]),
        "hardware": machine,
        "versions": versions(),
        "settings": asdict(settings),
        "tokenizers": found,
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """Return what the figures depend on besides software, the load that others put on the machine among it.

    With a neighbour on two cores every parallel loop of torch may wait for a slice of time: 500 ms were seen for 30.
    """
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="cpu", help="what to call this machine in the file names")
    parser.add_argument("--quick", action="store_true", help="two batch sizes of one length, few turns")
    parser.add_argument("--tokenizers", nargs="+", default=TOKENIZERS, help="names that benchmarks.zoo knows")
    parser.add_argument("--lengths", nargs="+", type=int, help="tokens of hypothesis and target, about")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--round", action="store_true", help="also the share in a round of a real model")
    parser.add_argument("--no-compile", action="store_true")
    asked = parser.parse_args()
    console, device = Console(), torch.device(asked.device)
    lengths = tuple(asked.lengths) if asked.lengths else (QUICK if asked.lookup else Settings()).lengths
    settings = replace(QUICK if asked.lookup else Settings(), lengths=lengths, compiled=not asked.no_compile)
    source, target = (zoo.lines(language, 4000) for language in LANGUAGES)
    pairs = list(zip(source, target, strict=False))
    found = document({name: zoo.load(name) for name in asked.tokenizers}, pairs, settings, device, console)
    if asked.round:
        found["round"] = round_share.measure(asked.device, 16 if asked.lookup else 64)
    plots.show(found, console)
    folder = Path("benchmarks/results")
    path = folder / f"tokens-{asked.name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    plots.draw(found, path.with_suffix(".png"))
    console.print(f"{path} and its .png are written")


if __name__ == "__main__":
    main()
