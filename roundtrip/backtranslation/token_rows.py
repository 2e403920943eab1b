"""Token rows: the row builders of a recipe, and from the examples of a phase to the rows that it trains on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import groupby

import torch
from torch.nn.utils.rnn import pad_sequence

from roundtrip.backtranslation.examples import DENOISING, MONOLINGUAL, Example, oriented_pairs
from roundtrip.data.row_store import TextRow
from roundtrip.engine.translator import Translator
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime.downloads import cache_dir
from roundtrip.runtime.errors import RecipeError, TrainingError
from roundtrip.runtime.event_log import EventLog, ProgressHandle
from roundtrip.tokens import compatibility
from roundtrip.tokens.batching import TokenDataset
from roundtrip.tokens.compatibility import CompatibilityReport
from roundtrip.tokens.row_builder import SPLICED, RowBuilder
from roundtrip.tokens.splice.canonicality import CanonicalityChecker

# Pairs on which a row builder is tried.
NUM_SAMPLES = 500
# Of the spliced rows, how many are made again through text and compared.
AUDIT_SHARE = 0.01
# The tables of the checker take several numbers for each token, so many rows are built in parts.
ROWS_AT_ONCE = 2048


def make_row_builders(
    recipe: Recipe, translators: Mapping[str, Translator], samples: Sequence[TextRow], events: EventLog
) -> tuple[dict[str, RowBuilder], dict[str, CompatibilityReport]]:
    """Make the row builder of each direction, try it on sample pairs such as those of dev, and report it."""
    row_builders: dict[str, RowBuilder] = {}
    reports: dict[str, CompatibilityReport] = {}
    mode, checkers = recipe.tokens.mode, dict[torch.device, CanonicalityChecker]()
    for name, forward in translators.items():
        direction, device = forward.direction, forward.base.device
        reverse_template = translators[direction.reverse.name].template
        if mode == "text":
            builder = RowBuilder(forward.template, reverse_template, None)
            report = CompatibilityReport("text", None, ('requested by tokens.mode = "text"',))
        else:
            with events.task("checking", f"tokenizers of {name}", 0) as task:
                options = compatibility.BuildOptions(
                    checker="host" if mode == "splice" else "auto",
                    device=device,
                    shared_checker=checkers.get(device),
                    cache_folder=cache_dir() / "tokens",
                    on_progress=partial(_show_progress, task),
                )
                pairs = oriented_pairs(samples, direction, recipe)[:NUM_SAMPLES]
                builder, report = compatibility.build_row_builder(reverse_template, forward.template, pairs, options)
                task.advance(0, note=report.mode)
            if builder.checker is not None:
                checkers[device] = builder.checker
            if mode == "splice" and report.mode == "text":
                cure = f'{report.cure or "use another template"}; or set tokens.mode = "auto"'
                problem = f"{name} cannot be spliced: {'; '.join(report.reasons)}"
                raise RecipeError(problem, place="tokens.mode", cure=cure)
            builder = replace(builder, strict=mode == "splice", audit=AUDIT_SHARE)
        row_builders[name], reports[name] = builder, report
    for name, report in reports.items():
        how = f", verified on the {report.checker}" if report.checker else ""
        num_lines = sum(report.counts.values())
        share = f"; {report.counts.get(SPLICED, 0)} of {num_lines} sample lines" if num_lines else ""
        lines = [f"  token rows of {name}: {report.mode}{how}{share}", *(f"    {each}" for each in report.reasons)]
        for line in lines + ([f"    cure: {report.cure}"] if report.cure else []):
            events.say(line)
        events.log("compatibility", direction=name, **report.to_dict())
    return row_builders, reports


def _show_progress(task: ProgressHandle, activity: str, done: int, total: int) -> None:
    task.advance(0, note=f"{activity}, {done:,} of {total:,}")


def build_token_rows(
    examples: Sequence[Example], translator: Translator, builder: RowBuilder | None, seed: int
) -> tuple[TokenDataset, Counter[str]]:
    """Return the token rows of examples, in their order, and the number of synthetic ones by path and reason.

    New synthetic ones, which come first, are made by the row builder, all others by the text path. Either way gives the
    same row, so a resumed run trains on what it would have trained on. `seed` chooses the rows of the audit.
    """
    device = translator.base.device
    candidates = [example.candidate for example in examples if builder is not None and example.candidate is not None]
    datasets: list[TokenDataset] = []
    counts: Counter[str] = Counter()
    for start in range(0, len(candidates), ROWS_AT_ONCE):
        part = candidates[start : start + ROWS_AT_ONCE]
        ids = [candidate.ids_N.to(device) for candidate in part if candidate.ids_N is not None]
        row_starts = [candidate.row_start for candidate in part if candidate.row_start is not None]
        assert builder is not None and len(ids) == len(part), "a generated candidate has ids"
        rows, reasons = builder.build(
            pad_sequence(ids, batch_first=True),
            torch.tensor([len(ids_N) for ids_N in ids], dtype=torch.int64, device=device),
            [candidate.target for candidate in part],
            [candidate.source for candidate in part],
            row_starts=row_starts if len(row_starts) == len(part) else None,
            seed=seed + start,
        )
        datasets.append(TokenDataset.of_spliced(rows))
        counts += reasons
    for kind, group in groupby(examples[len(candidates) :], key=lambda example: example.kind):
        template = translator.denoising_template if kind == DENOISING else translator.template
        pairs = [(example.source, example.target) for example in group]
        text_rows = template.plain_rows([text for _, text in pairs]) if kind == MONOLINGUAL else template.rows(pairs)
        datasets.append(TokenDataset.of(text_rows, device))
    return reduce(TokenDataset.plus, datasets or [TokenDataset.of([], device)]), counts


def fitting_rows(rows: TokenDataset, translator: Translator, max_length: int, place: str) -> tuple[list[int], int]:
    """Return the rows that have a label and are not too long for recipe and model, and the longest length allowed."""
    limit = min(max_length, translator.base.max_positions or max_length)
    fitting = [i for i, size in enumerate(rows.sizes) if rows.starts[i] < size <= limit]
    if not fitting:
        larger = "raise train.max_length" if limit == max_length else "use a model with more positions"
        cure = f"{larger}, and start a new run"
        raise TrainingError(f"all rows ({len(rows)}) are over {limit} tokens", place=place, cure=cure)
    return fitting, limit
