"""Pages that compare runs, and the command that writes pages."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roundtrip.backtranslation.run_folder import run_lock
from roundtrip.cli import report
from roundtrip.evaluation.metrics import paired_bootstrap
from roundtrip.report.comparison import write_comparison
from tests.report.folders import NAMES, Page, assert_self_contained, hypotheses, make_run, pairs

Shell = Callable[..., tuple[int, str, str]]


def compared(*folders: Path) -> Page:
    page = Page(write_comparison(folders, folders[0].parent / "page.html").read_text(encoding="utf-8"))
    assert_self_contained(page)
    return page


def test_two_runs_are_compared_by_bootstrap_on_the_same_lines(tmp_path: Path) -> None:
    lines = pairs(60)
    first, second = make_run(tmp_path / "first", lines=lines), tmp_path / "second"
    best = {"best": dict.fromkeys(NAMES, "round-1")}
    make_run(second, lines=lines, metrics=best, recipe={"seed": 5, "train": {"lr": 0.5}})
    text = compared(first.path, second).text
    before, after = (hypotheses(lines, "en-es", quality) for quality in (7, 6))
    _, chrf = paired_bootstrap(before, after, [target for _, target in lines])
    change = f"{chrf.system - chrf.baseline:.1f}".replace("-", "−")
    how = "significant" if chrf.p_value < 0.05 else "not significant"
    assert f"en-es: second {change} chrF++ against first, {how} (p = {chrf.p_value:.3f})." in text
    assert text.startswith("second compared with first")
    settings = text.partition("What differs in recipes and versions")[2].partition("The runs")[0]
    assert settings.split()[:3] == ["key", "first", "second"] and "seed 1 5 train.lr" in settings
    assert "train.batch_size" not in settings


def test_runs_with_other_test_lines_are_not_compared(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", lines=pairs(25)[5:])
    text = compared(first.path, second.path).text
    assert (
        "first and second have different test sets (20 and 20 lines, 15 in both), so that they are not compared" in text
    )
    assert "No two of these runs have translated the same test lines" in text


def test_runs_that_cannot_be_compared_are_shown_all_the_same(tmp_path: Path) -> None:
    first, unfinished = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run", finished=False)
    damaged = make_run(tmp_path / "<c>")
    damaged.translation_file("test", "round-2", "es-en").write_text("x")
    text = compared(first.path, unfinished.path, damaged.path).text
    assert text.startswith(f"3 runs, compared with {first.path}")
    assert f"{unfinished.path} has no test translations, so that it is not compared." in text
    assert "The test translations of <c> cannot be read" in text
    assert f"en-es: <c> ±0 chrF++ against {first.path}, not significant (p = 1.000)." in text


def test_the_command_writes_a_page(tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not opened.append(url))
    run = make_run(tmp_path / "run")
    code, out, _ = shell(report, "run", "--open")
    assert code == 0 and "Report: run/report.html" in out
    assert opened == [run.report.as_uri()] and run.report.is_file()
    code, out, _ = shell(report, "run", "run", "--out", "two.html")
    assert code == 0 and "run compared with run" in (tmp_path / "two.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["run", "run"], "--out: needed for several runs"),
        (["nothing"], "not a run folder: it does not exist"),
        (["run", "nothing", "--out", "a.html"], "not a run folder: it does not exist"),
        (["run", "--out", "run/metrics.json"], "is in the folder of a run"),
        (["run", "--out", "run/data/report.txt"], "is in the folder of a run"),
        (["run", "--out", "run"], "is a folder"),
        (["run", "--out", "run/recipe.toml/a.html"], "cannot be written"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    tmp_path: Path, shell: Shell, arguments: list[str], problem: str
) -> None:
    run = make_run(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    code, _, errors = shell(report, *arguments)
    assert code == 2 and problem in errors
    assert {path: path.read_bytes() for path in before} == before and not (tmp_path / "nothing").exists()


def test_a_run_in_use_is_written_elsewhere_only(tmp_path: Path, shell: Shell) -> None:
    run = make_run(tmp_path / "run", finished=False)
    with run_lock(run.path):
        code, _, errors = shell(report, "run")
        assert code == 2 and "is in use by another process" in errors and "--out" in errors
        assert shell(report, "run", "--out", "other.html")[0] == 0


def test_no_browser_is_said(tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    make_run(tmp_path / "run")
    code, out, errors = shell(report, "run", "--open")
    assert code == 2 and "Report: run/report.html" in out and "no browser" in errors


def test_charts_keep_the_shape_of_long_curves() -> None:
    from roundtrip.report.charts import MAX_POINTS, downsample

    x: list[float] = [float(i) for i in range(100_000)]
    y = [1.0 / (1 + i) for i in x]
    short_x, short_y = downsample(x, y)
    assert len(short_x) == len(short_y) <= MAX_POINTS and short_x == sorted(short_x)
    assert sum(short_y) / len(short_y) == pytest.approx(sum(y) / len(y), rel=1e-2)
    nan: Any = float("nan")
    assert downsample([1, 2, 3], [nan, 5.0, float("inf")]) == ([2.0], [5.0])
    assert downsample([], []) == ([], [])
