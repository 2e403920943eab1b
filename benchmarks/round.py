"""python -m benchmarks.round: a whole round of both directions, ours beside two usual loops, in one process.

The quickstart's model and text. In a round each direction generates a source for every new line of its source's
language (greedy), and the other one trains on these pairs and the parallel pairs that the recipe mixes in; nothing is
filtered, so that all loops train on as many rows. Rounds are taken in turns, and every one begins with the same
adapters: new ones, with which hypotheses run to their length limits, or with --run those that a quickstart has trained
on its pairs. Loops:

- ours: as a run does it, with its row builder;
- plain: PEFT's defaults (adapters in float32) inside `generate` of transformers, 16 lines at a time in file order; rows
  decoded, formatted and encoded one by one; 16 random rows a step, padded, the library's own loss;
- TRL: the same generation, then `SFTTrainer` over prompts and completions (gradient checkpointing off, which is on by
  default and slower; a constant learning rate; otherwise its defaults).

With --prior-art PYTHON also CycleFormers, by an interpreter that has it installed, see `benchmarks.round_cycleformers`;
it has no parallel pairs, so ours is measured without them too, and rows a second are what compares.
Writes benchmarks/results/round-NAME.json and .png.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import common, round_cycleformers
from benchmarks.round_loops import Ours, Plain, Task, Trl, in_turns
from roundtrip import Translator
from roundtrip.engine.generate import length_limit
from roundtrip.models import adapters
from roundtrip.recipe.plan import directions, num_parallel


def show(document: Mapping[str, Any], console: Console) -> None:
    parts = list(document["variants"]["ours"]["seconds"])
    first = sum(document["variants"]["ours"]["seconds"].values())
    rows = []
    for name, turn in document["variants"].items():
        whole = sum(turn["seconds"].values())
        seconds = [f"{turn['seconds'][part]:.2f}" if part in turn["seconds"] else "" for part in parts]
        counts = [str(turn["rows"]), f"{turn['rows'] / whole:.1f}", str(turn["steps"])]
        loss = f"{turn['mean_loss']:.2f}" if "mean_loss" in turn else ""
        rows.append([name, *seconds, f"{whole:.1f}", f"{whole / first:.2f}", *counts, loss])
    title = f"a round: {document['lines']} lines of each language and {document['parallel_pairs']} parallel pairs"
    columns = ("loop", *parts, "round, s", "times ours", "rows", "rows/s", "steps", "mean loss")
    common.print_table(console, title, columns, rows)


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw the seconds of each loop as a bar of its parts."""
    loops = document["variants"]
    title = f"one round, {document['hardware']['processor']}"
    with common.plot(path, (7, 0.8 + 0.6 * len(loops)), title=title) as axes:
        panel = axes[0, 0]
        left = dict.fromkeys(loops, 0.0)
        for part in loops["ours"]["seconds"]:
            widths = {name: turn["seconds"].get(part, 0.0) for name, turn in loops.items()}
            if any(widths.values()):
                panel.barh(list(widths), list(widths.values()), left=list(left.values()), label=part)
            left = {name: left[name] + widths[name] for name in left}
        panel.invert_yaxis()
        panel.set(xlabel="seconds")
        panel.legend(fontsize="small")


def prepare_task(device: str, num_lines: int, run: Path | None) -> tuple[Task, dict[str, Translator]]:
    """Return what the loops have to do, and the translators of the quickstart.

    Args:
        run: a finished run whose adapters all loops begin with; None for new ones.
    """
    loaded, both = common.quickstart(device)
    recipe, corpora = loaded.recipe, common.corpora_of(loaded.recipe, loaded.folder)
    lines = {code: [corpora.mono[code][i][0] for i in range(num_lines)] for code in recipe.languages}
    number = num_parallel(recipe, num_lines, len(corpora.train))
    pairs = [(source, target) for source, target in (corpora.train[i] for i in range(number))]
    first = directions(recipe)[0]
    parallel = {first.name: pairs, first.reverse.name: [(target, source) for source, target in pairs]}
    start = {
        name: adapters.read(run / "adapters" / "parallel" / name)
        if run is not None
        else {key: value.clone() for key, value in adapters.tensors(each.direction_model.model, name).items()}
        for name, each in both.items()
    }
    return Task(recipe, lines, parallel, start), both


def cycleformers(python: str, task: Task, both: Mapping[str, Translator]) -> dict[str, Any]:
    """Return the figures of CycleFormers for the same lines, without parallel pairs and from new adapters."""
    recipe, forward = task.recipe, next(iter(both.values()))
    limits = [
        length_limit(each.num_source_tokens(prompt), recipe.generate)
        for each in both.values()
        for prompt in each.template.prompts(task.lines[each.direction.source])
    ]
    settings = next(iter(recipe.adapter.values()))
    results = round_cycleformers.run(
        python,
        forward.base.location,
        task.lines,
        batch_size=recipe.train.batch_size,
        max_new_tokens=round(sum(limits) / len(limits)),
        rank=settings.rank,
        alpha=settings.alpha,
        lr=recipe.train.lr,
        dtype=str(forward.base.dtype).removeprefix("torch."),
    )
    figures = {}
    for name, result in results.items():
        generating = result["generate_seconds"]
        figures[f"CycleFormers, {name}"] = {
            "seconds": {"generate": generating, "train": result["seconds"] - generating},
            "new_tokens": result["generated_tokens"],
            "rows": result["lines"],
            "steps": sum(result["optimizer_steps"]),
        }
    return figures


def main() -> None:
    parser = common.parser(__doc__, turns=2, device=True)
    parser.add_argument("--lines", type=int, default=128, help="of each language in a round")
    parser.add_argument("--run", type=Path, help="a finished run of the quickstart: the adapters to begin with")
    parser.add_argument("--prior-art", metavar="PYTHON", help="an interpreter that has CycleFormers")
    asked = parser.parse_args()

    from datasets import disable_progress_bars

    disable_progress_bars()
    task, both = prepare_task(asked.device, asked.lines, asked.run)
    turns = in_turns(task, {"ours": Ours(task, both), "plain": Plain(task, both), "TRL": Trl(task, both)}, asked.turns)
    if asked.prior_art:
        bare = replace(task, parallel={name: [] for name in task.parallel})
        turns |= in_turns(bare, {"ours, no parallel pairs": Ours(bare, both)}, asked.turns)
    document = common.model_provenance("round", next(iter(both.values())))
    document |= {"lines": asked.lines, "parallel_pairs": len(next(iter(task.parallel.values())))}
    document["variants"] = {name: turn.to_dict() for name, turn in turns.items()}
    if asked.prior_art:
        document["variants"] |= cycleformers(asked.prior_art, task, both)
    common.finish(document, common.result_path("round", asked.name), show, draw)


if __name__ == "__main__":
    main()
