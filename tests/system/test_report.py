"""The report that a run writes itself."""

from __future__ import annotations

import json
import time
from pathlib import Path

from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.report.page import render
from roundtrip.report.run_data import read_run
from tests.report.folders import Page, assert_self_contained
from tests.runs import NAMES, read_events


def test_a_finished_run_has_its_report(finished: tuple[Path, Path, str]) -> None:
    _, folder, shown = finished
    run = RunFolder(folder)
    assert shown.count(f"Report: {run.report}\n") == 1
    page = Page(run.report.read_text(encoding="utf-8"))
    assert_self_contained(page)
    data = read_run(folder)
    assert not data.problems and "cannot be written" not in shown
    assert page.text.count(f"finished, {data.as_of}") == 1 and "not finished" not in page.text
    metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
    for name in NAMES:
        best = metrics["test"][metrics["best"][name]][name]["chrf"]
        assert f"{best:.1f} chrF++ on test" in page.text
    (made,) = [each for each in data.history.rounds.values() if each.direction == "en-es"]
    assert made.candidates == 24 and made.kept + made.num_rejected == 24 and set(made.chars) == {"source", "target"}
    assert data.history.hardware["devices"].keys() == {"cpu"} and data.history.seconds["training"] > 0
    assert data.history.stage_starts["en-es"] == {"parallel": 1, "round-1": 3}
    assert {step["stage"] for step in read_events(folder, "step")} == {"parallel", "round-1"}
    start = time.process_time()
    assert render(data) == run.report.read_text(encoding="utf-8")
    assert time.process_time() - start < 2, "about 0.3 s on an idle core"
