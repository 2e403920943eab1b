"""Run folders for reports, written without training; and the elements of a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from roundtrip.backtranslation.run_folder import RunFolder, RunManifest, versions
from roundtrip.data import row_store
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime.integrity import file_hashes

NAMES = ("en-es", "es-en")
STAGES = ("base", "parallel", "round-1", "round-2")
VOID = {"meta", "input", "br", "link", "img"}
TABLES = {
    "data": {"train": "p.tsv", "dev": "d.tsv", "test": "t.tsv", "mono": {"en": "m.en", "es": "m.es"}},
    "model": {name: {"path": "m"} for name in NAMES},
    "adapter": {name: {} for name in NAMES},
    "template": {},
}


def pairs(num_lines: int) -> list[tuple[str, str]]:
    return [(f"I see house number {i}.", f"Veo la casa número {i}.") for i in range(num_lines)]


def hypotheses(lines: Sequence[tuple[str, str]], name: str, quality: int) -> list[str]:
    """Return translations of which `quality` of ten are the reference."""
    return [line[1 if name == "en-es" else 0] if i % 10 < quality else "Nothing." for i, line in enumerate(lines)]


def comparison(baseline: str, system: str, p_value: float, change: float = 3.0) -> dict[str, Any]:
    figures = [
        {"metric": metric, "baseline": 40.0, "baseline_ci": 1.0, "system": 40.0 + change, "system_ci": 1.0}
        for metric in ("BLEU", "chrF++")
    ]
    return {
        "baseline": baseline,
        "system": system,
        "samples": 10,
        "metrics": [{**each, "p_value": p_value} for each in figures],
    }


def dev_scores(stages: Sequence[str] = STAGES) -> dict[str, Any]:
    """Return scores that rise from stage to stage."""
    return {stage: {name: {"bleu": 10.0 + i, "chrf": 40.0 + i} for name in NAMES} for i, stage in enumerate(stages)}


def step(name: str, number: int, loss: object = 2.0, **fields: Any) -> dict[str, Any]:
    figures = {"lr": 1e-3, "loss": loss, "grad_norm": 1.0, "labels": 50, "tokens": 100}
    return {"event": "step", "direction": name, "step": number, **figures, **fields}


def events(num_steps: int = 40) -> list[dict[str, Any]]:
    """Return the events of a run of two rounds, each of its steps a second after the one before."""
    scores, made = dev_scores(), list[dict[str, Any]]()
    report = {
        "mode": "per_row",
        "checker": "host",
        "reasons": ["some merge"],
        "cure": None,
        "counts": {"splice": 9, "x": 1},
    }
    example = {"text": "I see", "reason": "merges", "generated": ["I", " see"], "expected": ["I see"]}
    for name in NAMES:
        made.append({"event": "model", "direction": name, "dtype": "float32", "attention": "sdpa", "notes": []})
        attacks = {"rows": 10, "accepted": 5, "canonical": 5, "false accepts": 0}
        made.append({"event": "compatibility", "direction": name, **report, "attacks": attacks, "examples": [example]})
    made.append(
        {"event": "start", "phase": 0, "step": 0, "devices": {"cpu": "a processor"}, "threads": 1, "processes": 1}
    )
    made.append({"event": "optimizer", "planned_steps": dict.fromkeys(NAMES, num_steps)})
    for i, stage in enumerate(STAGES):
        for name in NAMES if i else ():
            if stage.startswith("round"):
                sides = {"source": [10, 20, 30], "target": [12, 22, 32]}
                rejected = {"copy": 1, "length_ratio": 4}
                made.append(
                    {"event": "examples", "stage": stage, "direction": name, "synthetic": 95, "candidates": 100}
                )
                made[-1] |= {"rejected": rejected, "chars": sides}
                made.append(
                    {"event": "token_rows", "stage": stage, "direction": name, "rows": {"splice": 90, "merges": 5}}
                )
            size = num_steps // 3
            made += [step(name, (i - 1) * size + j + 1, 4.0 - i + 0.1 * (j % 3), stage=stage) for j in range(size)]
            made.append({"event": "phase", "stage": stage, "direction": name, "rows": 10, "mean_loss": 2.0})
        best = dict.fromkeys(NAMES, stage)
        made.append(
            {"event": "dev", "stage": stage, "scores": scores[stage], "best": best, "seconds": {"training": 10.0 * i}}
        )
    return [{"time": 1.8e9 + number, **event} for number, event in enumerate(made)]


def make_run(
    path: Path,
    *,
    finished: bool = True,
    lines: Sequence[tuple[str, str]] | None = None,
    log: Sequence[dict[str, Any]] | None = None,
    metrics: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
) -> RunFolder:
    """Write the folder of a run of two rounds: `metrics` and `recipe` change keys of what is written."""
    run, lines = RunFolder(path), pairs(20) if lines is None else lines
    table = {"languages": ["en", "es"], "rounds": {"count": 2}, **TABLES, **(recipe or {})}
    resolved = Recipe.model_validate_json(json.dumps(table)).model_dump(mode="json")
    for folder in (run.data, run.translations):
        folder.mkdir(parents=True)
    counts = {part: {"kept": len(lines)} for part in ("dev", "test", "train", "mono.en", "mono.es")}
    for part in ("dev", "test"):
        row_store.write(run.data / f"{part}.tsv", lines)
        for quality, stage in enumerate(STAGES, start=4):
            for name in NAMES:
                text = "".join(f"{each}\n" for each in hypotheses(lines, name, quality))
                run.translation_file(part, stage, name).write_text(text, encoding="utf-8", errors="backslashreplace")
    run.recipe_file.write_text("# a recipe\n", encoding="utf-8")
    run.events.write_text(
        "".join(json.dumps(event) + "\n" for event in (events() if log is None else log)), encoding="utf-8"
    )
    parts = [run.data, run.translations, run.recipe_file]
    if finished:
        run.metrics.write_text(json.dumps(results() | (metrics or {})), encoding="utf-8")
        parts += [run.metrics, run.events]
    files = {name: digest for part in parts for name, digest in file_hashes(part, run.path).items()}
    run.write_manifest(RunManifest(resolved, str(path), [], versions(), counts, files))
    return run


def results() -> dict[str, Any]:
    """Return a `metrics.json`: one direction gained, the other gained nothing that chance does not explain."""
    scores = {"copy": {name: {"bleu": 1.0, "chrf": 9.0} for name in NAMES}, **dev_scores()}
    found = {"en-es": comparison("parallel", "round-2", 0.001), "es-en": comparison("parallel", "round-2", 0.4)}
    return {
        "languages": ["en", "es"],
        "dev": scores,
        "test": scores,
        "best": dict.fromkeys(NAMES, "round-2"),
        "comparison": {name: comparison("round-1", "round-2", 0.3) for name in NAMES},
        "gain": found,
        "control": {},
        "signatures": {name: {"bleu": "b", "chrf": "c"} for name in NAMES},
        "samples": {},
        "steps": dict.fromkeys(NAMES, 39),
        "nonfinite_steps": {},
        "seconds": {"training": 30.0},
        "peak_bytes": {"cpu": 1 << 30},
        "lines": {},
        "token_rows": {},
        "seed": 0,
        "versions": {},
    }


class Page(HTMLParser):
    """The elements of a page in order, its text outside of `style` and `script`, and the text inside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.content: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert not self.open, "every element is closed"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"style", "script"}:
            self.content[self.open[-1]] = data
        else:
            self.words.append(data)

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(attribute)) is not None]


def assert_self_contained(page: Page) -> None:
    """Nothing is fetched, each id is there once, and what names an id finds it."""
    assert not {"link", "img", "iframe", "object", "embed", "base", "image"} & {tag for tag, _ in page.elements}
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = [*page.values("src"), *page.values("href"), *page.values("xlink:href")]
    assert links and all(link.startswith("#") and link[1:] in ids for link in links), links
    assert {name for value in page.values("aria-labelledby") for name in value.split()} <= set(ids)
    assert "url(" not in page.content["style"] and "@import" not in page.content["style"]
    policy = next(each["content"] for tag, each in page.elements if each.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'")
