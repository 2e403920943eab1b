"""roundtrip report RUN: writes the page of a run, or one that compares several runs."""

import argparse
import webbrowser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from rich.console import Console

from roundtrip.cli.app import ArgumentParser, run_cli
from roundtrip.runtime.atomic_io import is_writable
from roundtrip.runtime.errors import RunError, UsageError
from roundtrip.runtime.event_log import print_line


def main() -> None:
    description = (
        "Write a page about a run, RUN/report.html: what each direction gained, scores, curves, samples. Runs write it "
        "themselves at each evaluation. Of several runs, write one page that compares them with the first one."
    )
    parser = ArgumentParser(prog="roundtrip report", description=description)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, finished or not")
    add("--out", type=Path, metavar="FILE", help="the file to write (default, of one run: RUN/report.html)")
    add("--open", action="store_true", help="show the page in a browser")
    run_cli(_report, parser)


def _report(arguments: argparse.Namespace) -> None:
    runs, out = arguments.runs, arguments.out
    if len(runs) > 1 and out is None:
        raise UsageError("needed for several runs", place="--out", cure="add --out comparison.html")
    if out is not None:
        _check_output(out)
    from roundtrip.backtranslation.run_folder import RunFolder
    from roundtrip.report.comparison import write_comparison
    from roundtrip.report.page import write_report

    if len(runs) > 1:
        path = write_comparison(runs, out)
    else:
        run = RunFolder(runs[0])
        run.manifest()
        with _lock(run.path) if out is None else nullcontext():
            path = write_report(run, out)
    print_line(Console(), f"Report: {path}")
    if arguments.open and not webbrowser.open(path.resolve().as_uri()):
        raise UsageError("no browser can be started here", place="--open", cure=f"open {path} yourself")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold a run folder, so that a run in progress does not write the same file meanwhile."""
    from roundtrip.backtranslation.run_folder import run_lock

    with ExitStack() as stack:
        try:
            stack.enter_context(run_lock(folder))
        except RunError as error:
            cure = "name another file with --out; a run in progress writes its report after each evaluation"
            raise RunError(error.problem, place=error.place, cure=cure) from error
        yield


def _check_output(out: Path) -> None:
    """Refuse a path that cannot be written, or belongs to another file of a run."""
    in_run = any((folder / "run.json").exists() for folder in out.absolute().parents)
    if out.is_dir():
        problem, cure = "is a folder", "name a file"
    elif not is_writable(out):
        problem, cure = "cannot be written", "name a file in another folder"
    elif in_run and out.name != "report.html":
        problem, cure = "is in the folder of a run", "name a file elsewhere, or omit --out"
    else:
        return
    raise UsageError(problem, place=f"--out {out}", cure=cure)
