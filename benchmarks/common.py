"""What the benchmarks share: arguments, timing in turns, peak memory, the result file, tables and plots.

A benchmark measures a document, and its functions `show` and `draw` need nothing but that document, so a kept result
can be shown again:

    python -m benchmarks.common benchmarks/results/train-epyc-avx512.json

prints the tables of a result and, where its benchmark draws one, writes the plot beside it.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from roundtrip import load_recipe, load_translators
from roundtrip.backtranslation.run_folder import versions
from roundtrip.data.corpora import Corpora, prepare
from roundtrip.engine.translator import Translator
from roundtrip.models.base_model import device_name
from roundtrip.recipe.loader import LoadedRecipe
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime import memory

RESULTS = Path(__file__).parent / "results"
# Rows, input and output width of a matrix product: on a CPU a training batch of 1,024 tokens through the larger layer
# of SmolLM2-135M; on a GPU one that is large enough to keep it busy.
GEMM_SHAPES = {"cpu": (1024, 576, 1536), "cuda": (8192, 4096, 4096)}

T = TypeVar("T")


# Arguments.


def parser(
    doc: str | None, *, name: str = "cpu", turns: int | None = None, device: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with the arguments that benchmarks share.

    Args:
        doc: the module's docstring, shown by `--help`.
        name: the default of `--name`.
        turns: the default of `--turns`; None leaves the argument out.
        device: whether there is a `--device`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default=name, help="end of the result's file name, such as the machine")
    if device:
        parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    if turns is not None:
        parser.add_argument("--turns", type=int, default=turns, help=f"measurements of each variant ({turns})")
    return parser


def device_of(name: str) -> torch.device:
    """Return the device of `--device`."""
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


# What most benchmarks of speed run.


def quickstart(device: str, *changes: str) -> tuple[LoadedRecipe, dict[str, Translator]]:
    """Load the recipe of the quickstart with some changes, and its translators by direction."""
    loaded = load_recipe("quickstart", [f"model.device={device}", *changes])
    return loaded, load_translators(loaded)


def corpora_of(recipe: Recipe, folder: Path) -> Corpora:
    """Read the corpora of a recipe into a folder that is deleted when the process ends.

    Args:
        folder: of the recipe.
    """
    stores = tempfile.TemporaryDirectory()
    atexit.register(stores.cleanup)
    return prepare(recipe, folder, Path(stores.name), lambda text: None)


# Timing and memory.


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that a call took, including what it left running on the GPU, and its result."""
    synchronize()
    start = time.perf_counter()
    result = call()
    synchronize()
    return time.perf_counter() - start, result


def best(variants: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Return the shortest time of each variant in seconds, measured in turns (A B A B) after a turn of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(turns + 1):
        for name, variant in variants.items():
            seconds, _ = timed(variant)
            if turn:
                times[name].append(seconds)
    return {name: min(seconds) for name, seconds in times.items()}


def peaks(variants: Mapping[str, Callable[[], Any]]) -> dict[str, int]:
    """Return the peak of the memory in bytes that each variant adds, on the GPU or in this process."""
    peak_bytes = {}
    for name, variant in variants.items():
        memory.free_after_failure()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            variant()
            peak_bytes[name] = torch.cuda.max_memory_allocated() - before
        else:
            reset_process_peak()
            before = used_bytes()
            variant()
            peak_bytes[name] = process_peak() - before
    return peak_bytes


def used_bytes() -> int:
    """Return the bytes of memory that this process uses now (Linux)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE


def reset_process_peak() -> None:
    """Let `process_peak` count from now on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def process_peak() -> int:
    """Return the peak resident memory of this process in bytes since `reset_process_peak`, or the start (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def in_own_process(command: Sequence[str]) -> Any:
    """Run Python with some arguments in a process of its own and return the JSON of its last line of output."""
    environment = os.environ | {"TQDM_DISABLE": "1"}
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(result.stdout.splitlines()[-1])


# What a result depends on.


def processor() -> str:
    """Return the model name of the GPU, or of the CPU with its vector extensions."""
    if torch.cuda.is_available():
        return device_name(torch.device("cuda"))
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    extensions = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{device_name(torch.device('cpu'))}; {' '.join(extensions)}"


def command(benchmark: str, arguments: Iterable[str] | None = None) -> str:
    """Return the command of this process, with absolute paths shortened: those below here, or else to their names."""
    return " ".join([f"python -m benchmarks.{benchmark}", *map(_portable, arguments or sys.argv[1:])])


def _portable(argument: str) -> str:
    key, equals, value = argument.rpartition("=")
    path = Path(value)
    if path.is_absolute():
        value = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
    return key + equals + value


def provenance(benchmark: str, device: object = None) -> dict[str, Any]:
    """Return how every result begins: command, date, hardware, versions.

    Args:
        benchmark: name of the module.
        device: what was measured on; None where it is not one device.
    """
    hardware: dict[str, Any] = {"processor": processor(), "threads": torch.get_num_threads()}
    return {
        "command": command(benchmark),
        "date": date.today().isoformat(),
        "hardware": hardware if device is None else hardware | {"device": str(device)},
        "versions": versions(),
    }


def gemm_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the peak FLOP/s of a matrix product of GEMM_SHAPES, the best of five turns."""
    rows, inner, columns = GEMM_SHAPES[device.type]
    left, right = (torch.randn(shape, dtype=dtype, device=device) for shape in ((rows, inner), (columns, inner)))

    def products() -> None:
        for _ in range(20):
            torch.nn.functional.linear(left, right)

    return 20 * 2 * rows * inner * columns / best({"": products}, 5)[""]


def model_provenance(benchmark: str, translator: Translator) -> dict[str, Any]:
    """Return `provenance` with the model's precision, the GEMM peak in it, and the number of weights without adapters.

    An embedding that is the output layer too counts as that.
    """
    base = translator.base
    weights = sum(value.numel() for name, value in base.model.named_parameters() if ".lora_" not in name)
    return provenance(benchmark, base.device) | {
        "dtype": str(base.dtype),
        "gemm_flops": gemm_flops(base.device, base.dtype),
        "weights": weights,
        "head_weights": base.model.get_output_embeddings().weight.numel(),
    }


def needed_products(document: Mapping[str, Any], tokens: float, with_logits: float) -> float:
    """Return weights times tokens that have to go through them; the output layer only where logits are needed."""
    head = document["head_weights"]
    products: float = tokens * (document["weights"] - head) + with_logits * head
    return products


# Results, tables, plots.


def result_path(benchmark: str, name: str) -> Path:
    """Return the file of a result."""
    return RESULTS / f"{benchmark}-{name}.json"


def save(document: Mapping[str, Any], path: Path) -> None:
    """Write a result, which may be one of a benchmark still in progress."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def finish(
    document: Mapping[str, Any],
    path: Path,
    show: Callable[[Any, Console], None],
    draw: Callable[[Any, Path], None] | None = None,
) -> None:
    """Write a result, print its tables, and draw its plot."""
    save(document, path)
    _present(document, path, show, draw)


def _present(document: Any, path: Path, show: Callable[..., None], draw: Callable[..., None] | None) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200)
    show(document, console)
    if draw is not None:
        draw(document, path.with_suffix(".png"))


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1
) -> None:
    """Print a table.

    Args:
        rows: cells in the order of the columns; an empty row draws a line.
        left: number of columns at the beginning that are text; the others are figures, aligned to the right.
    """
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right")
    for row in rows:
        if row:
            table.add_row(*row)
        else:
            table.add_section()
    console.print(table)


@contextmanager
def plot(path: Path, size: tuple[float, float], *, title: str = "", **grid: Any) -> Iterator[Any]:
    """Give the axes of a new plot, as a two-dimensional array, and write them to a file afterwards.

    Args:
        size: width and height in inches.
        grid: of `pyplot.subplots`, such as `nrows`, `ncols`, `sharey`.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=size, squeeze=False, layout="constrained", **grid)
    figure.suptitle(title, fontsize=9)
    yield axes
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def show_kept(path: Path) -> None:
    """Show a kept result by the code of its benchmark, which is named by the file."""
    benchmark = importlib.import_module(f"benchmarks.{path.name.partition('-')[0]}")
    document = json.loads(path.read_text(encoding="utf-8"))
    _present(document, path, benchmark.show, getattr(benchmark, "draw", None))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("result", type=Path)
    show_kept(arguments.parse_args().result)


if __name__ == "__main__":
    main()
