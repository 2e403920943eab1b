"""python -m benchmarks.tokens: the cost of making training rows of generated ids, and how many come out right.

All variants take the same batch in the same process, in turns (A B C A B C, after a turn of warm-up): ids as generation
delivers them and real target lines in, `input_ids`, `attention_mask` and `labels` on the device out.

- text: decode, render, encode jointly, find the labels by offsets, pad; also each part by itself, the shortest such
  path that we know of, and the usual one (chat template and mask, row by row);
- splice: without checker, with a checker that knows no pair yet (cold) or all (warm), the same with the tensor part
  compiled, and with the checker on the host. Their targets are encoded before, since each real line is encoded once;
  the time for that is listed by itself. Rows that a checker does not prove are left as they are;
- RowBuilder.build: as the loop calls it, texts given (the filters need them), targets encoded each time;
- prior art: see `benchmarks.row_baselines`. Its rows are compared separately, on sentences that end in punctuation,
  with the plain separator that it assumes.

The same lines come each turn, so the tokenizer's own cache of words is full: that favours text. `--round` adds the
share of all this in a round of a real model. Writes benchmarks/results/tokens-NAME.json and .png.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import batches, common, round_share, row_baselines, row_variants, zoo
from benchmarks.batches import LANGUAGES, Case, Kit
from benchmarks.row_baselines import Padded
from benchmarks.row_variants import Made, Timed
from roundtrip.tokens.prompt_template import TokenRow
from roundtrip.tokens.row_builder import SPLICED, pad_rows

# The default of transformers; how the prior art ends a row depends on the other rows of its batch.
SENTENCES_PER_BATCH = 8
END = (".", "?", "!")
COMPILED_LENGTH = 64
TOKENIZERS = ("smollm2", "qwen", "deepseek")
# The lines of the plot, a colour for each family.
LINES = {
    "text, usual": ("tab:blue", ":s"),
    "text": ("tab:blue", "-o"),
    "text, fewest calls": ("tab:blue", "--^"),
    "splice, cold checker": ("tab:red", ":o"),
    "splice, host checker": ("tab:purple", "-s"),
    "RowBuilder.build": ("black", "-D"),
    "splice, warm checker": ("tab:red", "-o"),
    "splice, warm checker, compiled": ("tab:red", "--^"),
    "splice, no checker": ("tab:orange", "-o"),
    "splice, no checker, compiled": ("tab:orange", "--^"),
    "prior art, gc.collect()": ("tab:gray", ":s"),
    "prior art": ("tab:gray", "-o"),
}
# The length that is drawn, or the nearest one that was measured: about a sentence or two.
DRAWN_LENGTH = 64


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        batches: rows.
        lengths: tokens of hypothesis and target, about.
        turns: of each variant; one that has taken `seconds` in all is not measured again.
        compiled: also compile, for rows of COMPILED_LENGTH: it takes half a minute for each shape.
        num_sentences: pairs on which the shares of right rows are counted.
    """

    batches: tuple[int, ...] = (1, 8, 32, 128, 512)
    lengths: tuple[int, ...] = (16, 64, 256, 512)
    turns: int = 7
    seconds: float = 0.4
    compiled: bool = True
    num_sentences: int = 512


QUICK = Settings(batches=(1, 32), lengths=(64,), turns=5, seconds=1.0, num_sentences=128)


@dataclass
class Measured:
    """Seconds of the first turn and of the others, and the result of the last one."""

    first: float = 0.0
    turns: list[float] = field(default_factory=list)
    made: Any = None

    def to_dict(self) -> dict[str, float]:
        seconds = {"best_ms": min(self.turns), "median_ms": statistics.median(self.turns), "first_ms": self.first}
        return {name: round(1e3 * value, 4) for name, value in seconds.items()} | {"turns": len(self.turns)}


def alternate(variants: Mapping[str, Timed], settings: Settings) -> dict[str, Measured]:
    """Time variants in turns."""
    measured = {name: Measured() for name in variants}
    for turn in range(settings.turns + 1):
        for name, variant in variants.items():
            figures = measured[name]
            if sum(figures.turns) > settings.seconds:
                continue
            variant.before()
            seconds, figures.made = common.timed(variant.run)
            if turn:
                figures.turns.append(seconds)
            else:
                figures.first = seconds
    return measured


def measure_batch(kit: Kit, case: Case, settings: Settings) -> dict[str, Any]:
    """Return the figures of one batch."""
    measured = alternate(row_variants.every(kit, case), settings)
    parts = alternate(row_variants.parts(kit, case), settings)
    left_out = ""
    if settings.compiled and kit.row_builder.checker is not None:
        torch.compiler.reset()  # each shape is compiled for itself
        try:
            measured |= alternate(row_variants.splice_variants(kit, case, True), settings)
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
            left_out = f"not compiled: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    number = len(case.texts)
    return {
        "batch": number,
        "hypothesis_tokens": round(sum(map(len, case.hypotheses)) / number, 1),
        "target_tokens": round(float(case.target_size_B.float().mean()), 1),
        "row_tokens": round(sum(len(row.ids) for row in case.expected) / number, 1),
        "variants": {name: each.to_dict() | right_rows(each.made, case.expected) for name, each in measured.items()},
        "parts": {name: each.to_dict() for name, each in parts.items()},
        "left_out": left_out,
    }


def right_rows(made: Any, expected: Sequence[TokenRow]) -> dict[str, float]:
    """Return the share of rows that are equal to those of the text path; nothing for what is not `Made`.

    With a checker it is the share of those that are `proved`, which is a share too; `asked` is the number of pairs that
    the host checked for them.
    """
    if not isinstance(made, Made):
        return {}
    _, whole = row_baselines.right(made.padded, expected)
    if made.proved_B is None:
        return {"exact": sum(whole) / len(whole)}
    right = [right for right, proved in zip(whole, made.proved_B.tolist(), strict=True) if proved]
    return {"exact": sum(right) / max(1, len(right)), "proved": len(right) / len(whole), "asked": made.num_asked}


def exact_shares(kit: Kit, pairs: Sequence[tuple[str, str]], device: torch.device) -> dict[str, dict[str, float]]:
    """Return shares of right rows with the plain separator: of the prior art, and of ours.

    `targets` are rows whose labels are the target and one end token, `rows` those that are right token by token;
    `spliced` are ours that did not take the text path.
    """
    reverse = kit.plain_reverse
    shares: dict[str, Counter[str]] = {}

    def count(name: str, made: Padded, expected: Sequence[TokenRow]) -> None:
        for kind, right in zip(("targets", "rows"), row_baselines.right(made, expected), strict=True):
            shares.setdefault(name, Counter())[kind] += sum(right)

    for start in range(0, len(pairs), SENTENCES_PER_BATCH):
        batch = pairs[start : start + SENTENCES_PER_BATCH]
        expected = kit.plain_forward.rows(batch)
        for which, pad_id in row_baselines.pad_ids(reverse.tokenizer).items():
            skip = row_baselines.Skip(reverse.tokenizer, pad_id)
            generated = row_baselines.generated(reverse, batch, pad_id, device)
            count(f"prior art, {which}", skip.rows(generated), expected)
        texts, targets = (list(side) for side in zip(*batch, strict=True))
        hypotheses = reverse.rows([(target, text) for text, target in batch])
        new = pad_rows([TokenRow(row.ids[row.start : -1], 0) for row in hypotheses], device, reverse.segments.end_id)
        rows, by_reason = kit.plain_builder.build(new.ids_BT, new.size_B, targets, texts)
        count("ours", rows.padded(), expected)
        shares["ours"]["spliced"] += by_reason[SPLICED]
    return {name: {kind: number / len(pairs) for kind, number in counts.items()} for name, counts in shares.items()}


def similar_length(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return ordinary sentences with final punctuation, paired by length as translations are, in random order."""
    sides = ([text for text in side if text[-1:] in END and " " in text] for side in zip(*pairs, strict=True))
    paired = list(zip(*(sorted(side, key=len) for side in sides), strict=False))
    return random.Random(1).sample(paired, len(paired))


def measure_tokenizer(
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    settings: Settings,
    device: torch.device,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Return the figures of one tokenizer.

    Args:
        report: takes a line of progress.
    """
    kit = batches.kit(tokenizer, pairs, device)
    sentences = similar_length(pairs)[: settings.num_sentences]
    bare = [(a.rstrip("".join(END)), b.rstrip("".join(END))) for a, b in sentences]
    shares = {
        "final punctuation": exact_shares(kit, sentences, device),
        "none": exact_shares(kit, bare, device),
    }
    cases = []
    for length in settings.lengths:
        for number in settings.batches:
            start = time.perf_counter()
            sides = (batches.joined(tokenizer, side, number, length, seed=1) for side in zip(*pairs, strict=True))
            case = batches.case(kit, list(zip(*sides, strict=True)), device)
            here = replace(settings, compiled=settings.compiled and length == COMPILED_LENGTH)
            cases.append(measure_batch(kit, case, here) | {"length": length})
            seconds = time.perf_counter() - start
            report(f"  {length} tokens, {number} rows: {seconds:.0f} s {cases[-1]['left_out']}")
    return {
        "vocabulary": len(tokenizer),
        "setup_seconds": kit.seconds,
        "plain_separator": {"sentences": len(sentences), **shares},
        "cases": cases,
    }


def document(
    tokenizers: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    settings: Settings,
    device: torch.device,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Measure everything.

    Args:
        pairs: real (English, Spanish) lines; they need not be translations of each other.
        report: takes a line of progress.
    """
    figures = common.provenance("tokens", device) | {"settings": asdict(settings), "tokenizers": {}}
    # The load that others put on the machine changes the figures: a parallel loop of torch may wait for a time slice.
    figures["hardware"] |= {"cores": os.cpu_count(), "load": [round(load, 2) for load in os.getloadavg()]}
    for name, tokenizer in tokenizers.items():
        report(f"{name}: reading the vocabulary")
        figures["tokenizers"][name] = measure_tokenizer(tokenizer, pairs, settings, device, report)
    return figures


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print milliseconds a batch, the best turn, for each tokenizer and length."""
    for name, figures in document["tokenizers"].items():
        for length in sorted({case["length"] for case in figures["cases"]}):
            _show_times(name, [case for case in figures["cases"] if case["length"] == length], console)
        _show_shares(name, figures["plain_separator"], console)
    if "round" in document:
        _show_round(document["round"], console)


def _show_times(name: str, cases: Sequence[Mapping[str, Any]], console: Console) -> None:
    rows: list[list[str]] = []
    for kind in ("variants", "parts"):
        for variant in dict.fromkeys(variant for case in cases for variant in case[kind]):
            figures = [case[kind].get(variant, {}) for case in cases]
            times = [f"{each['best_ms']:.3g}" if each else "" for each in figures]
            shares = [f"{figures[-1][key]:.1%}" if key in figures[-1] else "" for key in ("proved", "exact")]
            rows.append([variant, *times, *shares])
        rows.append([])
    sizes = f"{cases[-1]['hypothesis_tokens']:.0f} + {cases[-1]['target_tokens']:.0f} tokens"
    columns = ["variant", *(str(case["batch"]) for case in cases), "proved", "exact"]
    common.print_table(console, f"{name}: {sizes}, ms a batch (best)", columns, rows)


def _show_shares(name: str, figures: Mapping[str, Any], console: Console) -> None:
    kinds = ("targets", "rows", "spliced")
    rows = [
        (title, variant, *(f"{shares[kind]:.1%}" if kind in shares else "" for kind in kinds))
        for punctuation, title in (("final punctuation", "yes"), ("none", "no"))
        for variant, shares in figures[punctuation].items()
    ]
    columns = ("final punctuation", "rows of", "targets", "whole rows", "spliced")
    title = f"{name}: right rows of {figures['sentences']} sentences with a plain separator"
    common.print_table(console, title, columns, rows, left=2)


def _show_round(figures: Mapping[str, Any], console: Console) -> None:
    rows = [
        (f"{factor}x as fast", *(f"{100 * share:.2g} %" for share in shares.values()))
        for factor, shares in figures["shares"].items()
    ]
    title = f"{figures['lines']} lines of a round, {figures['device']}: share of making rows"
    common.print_table(console, title, ("generator", *figures["handling_seconds"]), rows)
    seconds = {key: figures[key] for key in ("generation_seconds", "training_seconds")} | figures["handling_seconds"]
    console.print("  " + ", ".join(f"{name} {value:.3g}" for name, value in seconds.items()))


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw time a batch over batch size, one panel a tokenizer."""
    names, hardware = list(document["tokenizers"]), document["hardware"]
    title = f"{hardware['processor']}, {hardware['threads']} threads, device {hardware['device']}"
    size = (4.5 * len(names) + 2.5, 5.0)
    with common.plot(path, size, title=title, ncols=len(names), sharey=True) as axes:
        for panel, name in zip(axes[0], names, strict=True):
            cases = document["tokenizers"][name]["cases"]
            length = min((case["length"] for case in cases), key=lambda length: abs(length - DRAWN_LENGTH))
            chosen = [case for case in cases if case["length"] == length]
            for variant, (colour, style) in LINES.items():
                times = [(c["batch"], c["variants"][variant]["best_ms"]) for c in chosen if variant in c["variants"]]
                if times:
                    panel.plot(*zip(*times, strict=True), style, color=colour, label=variant, markersize=4)
            panel.set(xscale="log", yscale="log", title=f"{name}, {length} + {length} tokens", xlabel="rows")
            panel.set_xticks([case["batch"] for case in chosen], [str(case["batch"]) for case in chosen])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        axes[0][0].set_ylabel("milliseconds a batch, best turn")
        axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


def main() -> None:
    parser = common.parser(__doc__, device=True)
    parser.add_argument("--quick", action="store_true", help="two batch sizes of one length, few turns")
    parser.add_argument("--tokenizers", nargs="+", default=TOKENIZERS, help="names that benchmarks.zoo knows")
    parser.add_argument("--lengths", nargs="+", type=int, help="tokens of hypothesis and target, about")
    parser.add_argument("--round", action="store_true", help="also the share in a round of a real model")
    parser.add_argument("--no-compile", action="store_true")
    asked = parser.parse_args()

    settings = replace(QUICK if asked.quick else Settings(), compiled=not asked.no_compile)
    settings = replace(settings, lengths=tuple(asked.lengths or settings.lengths))
    source, target = (zoo.lines(language, 4000) for language in LANGUAGES)
    pairs = list(zip(source, target, strict=False))
    tokenizers = {name: zoo.load(name) for name in asked.tokenizers}
    figures = document(tokenizers, pairs, settings, common.device_of(asked.device), print)
    if asked.round:
        figures["round"] = round_share.measure(asked.device, 16 if asked.quick else 64)
    common.finish(figures, common.result_path("tokens", asked.name), show, draw)


if __name__ == "__main__":
    main()
