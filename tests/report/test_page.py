"""The page of a run: what it says, what it does with text of any kind, and with folders that are not whole."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roundtrip.report.event_history import read_history
from roundtrip.report.page import live_writer, render, write_report
from roundtrip.report.run_data import MAX_CHARS, NUM_CHANGED, NUM_RANDOM, read_run
from roundtrip.report.visible_text import visible
from roundtrip.runtime.atomic_io import TEMPORARY
from roundtrip.runtime.errors import RunError
from tests.report.folders import (
    NAMES,
    Page,
    assert_self_contained,
    comparison,
    dev_scores,
    events,
    make_run,
    pairs,
    step,
)

BROKEN_LINES = b'\xff\x00 [1]\n{"event": "step"}\n[]\n{"time'
HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "</title></svg><svg onload=alert(1)>",
    '" onmouseover="alert(1)',
    "\x00\x1b[31m\x07",
    "\u202egnp.exe\u2066",
    "{{ 7 * 7 }} {% raw %}",
    r"$\frac{1}{0}$ ^_^",
    "&lt;b&gt; &#0; ]]> -->",
    "`code`",
    "日本語 العربية",
]  # fmt: skip


def page_of(path: Path) -> Page:
    page = Page(render(read_run(path)))
    assert_self_contained(page)
    return page


def test_a_finished_run_says_its_verdict_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = write_report(run)
    assert path == run.report and not list(run.path.glob(f".*{TEMPORARY}"))
    page = Page(path.read_text(encoding="utf-8"))
    assert_self_contained(page)
    headline = "Back-translation helped en-es and brought no clear gain for es-en."
    assert page.text.index(headline) < page.text.index("Round-2 is its best stage on dev: 43.0 chrF++ on test, +2.0")
    assert page.text.index("significant (paired bootstrap, p = 0.001)") < page.text.index("What to try next")
    for figure in ("on test, +2.0 against parallel pairs (41.0)", "rounds.count = 3", "evaluation.control=true"):
        assert figure in page.text
    for what in ("1.00 GiB", "a processor; 1 thread; 1 process", "# a recipe", "39 of 40 planned", "some merge"):
        assert what in page.text
    titles = [attributes["id"] for tag, attributes in page.elements if tag == "title" and attributes]
    names = ("dev-chrf", "dev-bleu", "loss", "lr", "grad-norm", "rate", "time", "rejected", "lengths", "copies")
    assert titles == [f"{name}-title" for name in names]
    tags = [tag for tag, _ in page.elements]
    assert tags.count("h1") == tags.count("main") == 1 and tags.count("svg") == tags.count("desc") == len(titles)
    assert page.values("lang")[0] == "en" and {"auto"} == set(page.values("dir"))


def test_the_script_is_the_one_that_the_page_allows(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run").path)
    digest = base64.b64encode(hashlib.sha256(page.content["script"].encode()).digest()).decode()
    (policy,) = [each["content"] for tag, each in page.elements if each.get("http-equiv")]
    assert f"script-src 'sha256-{digest}'" in str(policy)


@pytest.mark.parametrize(
    ("p_values", "changes", "headline"),
    [
        (
            (0.01, 0.01),
            (3.0, 2.0),
            "helped both directions: en-es +2.0 chrF++ and",
        ),
        ((0.5, 0.5), (3.0, 2.0), "brought no clear gain in either direction"),
        ((0.01, 0.5), (-3.0, 2.0), "made en-es worse on test and brought no clear gain for es-en"),
    ],
)
def test_the_headline_follows_the_bootstrap(
    tmp_path: Path, p_values: tuple[float, float], changes: tuple[float, float], headline: str
) -> None:
    figures = zip(NAMES, p_values, changes, strict=True)
    gain = {name: comparison("parallel", "round-2", p_value, change) for name, p_value, change in figures}
    assert f"Back-translation {headline}" in page_of(make_run(tmp_path / "run", metrics={"gain": gain}).path).text


def test_with_a_control_the_rounds_are_measured_against_it(tmp_path: Path) -> None:
    scores = dev_scores(("base", "parallel", "round-1", "round-2", "control-1", "control-2"))
    control = {
        "en-es": comparison("control-2", "round-2", 0.01, -3.0) | {"part": "test"},
        "es-en": comparison("parallel", "parallel", 1.0, 0.0) | {"part": "test"},
    }
    changes = {"dev": scores, "test": scores, "control": control, "best": {"en-es": "control-2", "es-en": "parallel"}}
    text = page_of(make_run(tmp_path / "run", metrics=changes).path).text
    assert "brought en-es less than as many steps on pairs alone and made no clear difference for es-en" in text
    assert "Its weights are those of control-2, pairs only." in text
    assert "Neither the rounds nor as many steps on pairs alone are better on dev than parallel pairs" in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test": {}, "comparison": {}, "gain": {}}, "There are no test scores; on dev, en-es +2.0 chrF++"),
        ({"gain": {}}, "whether chance explains it was not tested"),
        ({"best": dict.fromkeys(NAMES, "parallel"), "gain": {}}, "No later stage is better on dev than parallel pairs"),
    ],
)
def test_what_was_not_tested_is_said(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    assert says in page_of(make_run(tmp_path / "run", metrics=changes).path).text


@pytest.mark.parametrize("num_events", [0, 30, 90])
def test_an_unfinished_run_says_so(tmp_path: Path, num_events: int) -> None:
    text = page_of(make_run(tmp_path / "run", finished=False, log=events()[:num_events]).path).text
    assert "not finished" in text and "The run has not finished; this is its state" in text
    assert ("No trained stage has been scored yet." in text) == (num_events < 40)


def test_a_resumed_run_shows_its_last_steps_once(tmp_path: Path) -> None:
    log = events()
    again = [step("en-es", number, 9.0) for number in (3, 4)] + [
        {"event": "dev", **log[-1], "seconds": {"training": 5.0}}
    ]
    resumed = [{"event": "resume", "phase": 0, "step": 2}, {"event": "start", "phase": 0, "step": 2}]
    log += [{"time": 1.9e9 + i, **event} for i, event in enumerate(resumed + again)]
    data = read_run(make_run(tmp_path / "run", log=log).path)
    steps = data.history.steps["en-es", False]
    assert [steps[number].loss for number in (2, 3, 4)] == [pytest.approx(3.1), 9.0, 9.0] and len(steps) == 39
    assert data.history.seconds == {"training": 35.0}, "of both processes"
    assert "was resumed 1 time;" in Page(render(data)).text


def test_an_attempt_without_a_checkpoint_is_no_part_of_a_run(tmp_path: Path) -> None:
    first = [*events()[:6], {"time": 1.0, **step("en-es", 77)}]
    data = read_run(make_run(tmp_path / "run", log=[*first, *events()]).path)
    assert 77 not in data.history.steps["en-es", False] and data.history.num_resumed == 0


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("metrics.json", b"{", "The final figures cannot be read"),
        ("metrics.json", None, "The final figures cannot be read"),
        ("events.jsonl", None, "The events of the run cannot be read"),
        ("events.jsonl", BROKEN_LINES, "4 lines of events.jsonl"),
        ("events.jsonl", b"", "events.jsonl has been changed, so that the curves may not be those of the run"),
        ("translations/test.round-2.en-es.txt", b"a\n", "round-2.en-es.txt has been changed"),
        ("translations/test.parallel.es-en.txt", None, "parallel.es-en.txt is missing"),
        ("data/test.tsv", b"x", "The text of test cannot be read"),
        ("data/test.tsv.starts", None, "The text of test cannot be read"),
        ("recipe.toml", b"changed", "recipe.toml has been changed"),
    ],
)
def test_what_is_damaged_is_left_out_and_said(tmp_path: Path, file: str, content: bytes | None, says: str) -> None:
    run = make_run(tmp_path / "run")
    if content is None:
        (run.path / file).unlink()
    else:
        (run.path / file).write_bytes(content)
    assert says in page_of(run.path).text


@pytest.mark.parametrize("content", ["", "{}", '{"format": 4}', "[" * 100_000])
def test_a_folder_without_a_sound_run_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match="not a run folder"):
        write_report(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(RunError):
        write_report(tmp_path / "run")


@pytest.mark.parametrize(
    "number", [float("inf"), float("nan"), 10**400, 10**30, -1, 0, True, "5", "nan", None, [], 1e308]
)
def test_no_number_ends_a_report(tmp_path: Path, number: object) -> None:
    """In each place of an event where a number is expected."""

    def replace(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: replace(each, name) for name, each in value.items()}
        if isinstance(value, list) and key in {"source", "target"}:
            return [replace(each) for each in value]
        return number if isinstance(value, int | float) and key not in {"phase", "events"} else value

    log = [*events(), *map(replace, events())]
    text = page_of(make_run(tmp_path / "run", finished=False, log=log).path).text
    assert "not finished" in text


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", finished=False)
    for folder in (run.data, run.translations):
        shutil.rmtree(folder)
    for file in (run.events, run.recipe_file):
        file.unlink()
    run.write_manifest(replace(run.manifest(), files={}, lines={}))
    text = page_of(run.path).text
    assert "this is its state before its first trained stage was scored" in text and "Nothing has been scored" in text


def test_without_dev_pairs_the_page_promises_nothing(tmp_path: Path) -> None:
    data = {"train": "p.tsv", "dev": [], "test": [], "mono": {"en": "m.en", "es": "m.es"}}
    scores = {stage: {name: {**of, "copied": 0.1} for name, of in each.items()} for stage, each in dev_scores().items()}
    changes = {"dev": scores, "test": {}, "comparison": {}, "gain": {}}
    text = page_of(make_run(tmp_path / "run", recipe={"data": data}, metrics=changes).path).text
    assert "There are neither dev nor test pairs: round trips cannot tell what a direction gained." in text
    assert "round trip copies" in text and "Copies of the source" in text and "translations before" not in text.lower()


KEYS = ["event", "time", "direction", "stage", "step", "loss", "scores", "best", "rejected", "chars", "synthetic"]
KEYS += ["rows", "planned_steps", "seconds", "devices", "examples", "counts", "notes"]
KINDS = ["step", "dev", "examples", "phase", "compatibility", "start", "resume", "end", "model", "optimizer"]
KINDS += ["token_rows", "nonfinite_step"]
NUMBERS = st.lists(st.integers(), max_size=3), st.dictionaries(st.sampled_from(NAMES), st.integers(), max_size=2)
VALUES = st.one_of(st.sampled_from([*KINDS, "en-es", "round-1"]), st.none(), st.floats(), st.text(max_size=3), *NUMBERS)


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8), max_size=8))
@settings(max_examples=150, deadline=None)
def test_no_event_ends_a_report(log: list[dict[str, Any]]) -> None:
    assert read_history(map(json.dumps, log), NAMES).num_damaged <= len(log)


@pytest.mark.parametrize("text", [" ".join(HOSTILE[i::3]) for i in range(3)])
def test_no_text_of_a_run_is_interpreted(tmp_path: Path, text: str) -> None:
    """In lines, stages, reasons, notes, recipes, devices and what a tokenizer check shows."""
    line = text.replace("\x00", "").replace("\x1b", "").replace("\x07", "")
    log = json.loads(
        json.dumps(events()).replace("merges", "MARK").replace("some merge", "MARK").replace("copy", "MARK")
    )
    log = json.loads(json.dumps(log).replace('"MARK"', json.dumps(text)).replace("a processor", "MARK"))
    log += [{**log[-1], "stage": text, "best": dict.fromkeys(NAMES, text), "scores": dev_scores()["base"]}]
    log += [{**log[-1], **each} for each in ({"event": "model", "direction": "en-es", "notes": [text]},)]
    run = make_run(tmp_path / "run", finished=False, log=log, lines=[(f"{i} {line}", f"{line} {i}") for i in range(3)])
    run.recipe_file.write_text(text, encoding="utf-8")
    run.record({"recipe.toml": hashlib.sha256(run.recipe_file.read_bytes()).hexdigest()})
    html = render(read_run(run.path))
    page = Page(html)
    assert_self_contained(page)
    assert [tag for tag, _ in page.elements].count("script") <= 1
    assert not {"b", "img"} & {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    shown = " ".join(visible(text).replace("`", "").split())
    assert shown in page.text.replace("`", "")


def test_text_keeps_what_people_write() -> None:
    assert visible("Ünï\u200dcode\t日本\u200f") == "Ünï\u200dcode\t日本\u200f"
    assert visible("\x00\u202e\ud800\ufffe") == "\\x00\\u202e\\x00\\ufffe"


def test_a_long_run_gives_a_small_page_in_little_time(tmp_path: Path) -> None:
    """100,000 steps, 10,000 lines of dev and test."""
    lines = [(f"{i} {'word ' * 30}", f"{'palabra ' * 30}{i}") for i in range(10_000)]
    run = make_run(tmp_path / "run", finished=False, lines=lines, log=events(49_998))
    start = time.process_time()
    html = render(read_run(run.path))
    assert time.process_time() - start < 6, "about 2 s on an idle core"
    assert len(html) < 500_000
    text = Page(html).text
    assert "50 of 10,000 lines" in text or "among 300 lines drawn at random" in text
    assert "300 means of neighbours are drawn" in text


def test_samples_are_the_largest_changes_and_others_at_random(tmp_path: Path) -> None:
    long = [(f"{source} {'x' * 2 * MAX_CHARS}", target) for source, target in pairs(400)]
    samples, other = read_run(make_run(tmp_path / "run", lines=long).path).samples()
    assert (samples.part, samples.before, samples.after, samples.num_lines) == ("test", "parallel", "round-2", 400)
    changes = [line.change for line in samples.lines]
    assert changes == sorted(changes, reverse=True) and len(samples.lines) == NUM_CHANGED + NUM_RANDOM
    assert sum(change > 0 for change in changes) >= NUM_CHANGED
    assert all(len(line.source) == MAX_CHARS + 1 for line in samples.lines)
    assert all(line.reference == f"Veo la casa número {line.line - 1}." for line in samples.lines)
    assert other.direction.name == "es-en"


def test_a_failure_is_said_once_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    said: list[str] = []

    class Events:
        def say(self, text: str) -> None:
            said.append(text)

        def log(self, kind: str, **fields: object) -> None:
            said.append(kind)

    def fail(_: object) -> str:
        raise ZeroDivisionError("of the test")

    events: Any = Events()
    write = live_writer(events)
    write(run)
    assert not said
    before = run.report.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("roundtrip.report.page.render", fail)
        write(run)
        write(run)
    assert len(said) == 1 and "ZeroDivisionError: of the test" in said[0], "and no event, after which events are hashed"
    assert run.report.read_bytes() == before


def test_writing_a_report_changes_no_random_state(tmp_path: Path) -> None:
    import torch

    run = make_run(tmp_path / "run")
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()  # type: ignore[index]
    write_report(run)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()  # type: ignore[index]
    assert before == after
    assert render(read_run(run.path)) == render(read_run(run.path)), "the same files give the same page"
