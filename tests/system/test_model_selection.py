"""When stages end and which is chosen: with dev pairs, and without them by round trips of monolingual lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from roundtrip.backtranslation import dev_scoring, filtering, trained_models
from roundtrip.backtranslation.context import RunContext
from roundtrip.backtranslation.dev_scoring import greedy_settings
from roundtrip.backtranslation.export import export
from roundtrip.backtranslation.model_selection import best_stages
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.data import corpora
from roundtrip.engine.train_step import loss_sum
from roundtrip.engine.translator import Translator
from roundtrip.evaluation.metrics import corpus_scores
from roundtrip.recipe.loader import load_recipe
from roundtrip.recipe.plan import BASE, FINAL, PARALLEL, PRETRAIN, Direction
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.errors import TrainingError
from roundtrip.tokens.batching import TokenDataset, collate
from roundtrip.tokens.splice.splicing import IGNORE
from tests.conftest import WriteRecipe, toy_pairs
from tests.runs import NAMES, go, read_events, run_module


def test_the_best_stage_of_a_direction_is_its_first_trained_one_with_the_highest_score() -> None:
    def best(*, together: bool = False, **chrf: tuple[float, float]) -> list[str]:
        scores = {stage: {"en-es": {"chrf": one}, "es-en": {"chrf": two}} for stage, (one, two) in chrf.items()}
        return list(best_stages({"copy": scores["base"], **scores}, together=together).values())

    assert best(base=(80, 80)) == [BASE, BASE]
    assert best(base=(80, 80), text=(3, 4)) == [PRETRAIN, PRETRAIN]
    assert best(base=(80, 80), text=(50, 50), parallel=(5, 9), final=(7, 7)) == [FINAL, PARALLEL]
    assert best(base=(80, 80), parallel=(7, 7), final=(7, 8)) == [PARALLEL, FINAL]
    assert best(base=(80, 80), parallel=(5, 9), final=(7, 7), together=True) == [PARALLEL, PARALLEL]
    assert best(base=(80, 80), parallel=(5, 9), final=(8, 7), together=True) == [FINAL, FINAL]


def test_each_direction_keeps_its_own_best_stage(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On dev one direction is best after the pairs, the other after the round."""
    score = dev_scoring.score_translations
    best = {"en-es": PARALLEL, "es-en": "round-1"}

    def scores(context: RunContext, part: str, stage: str) -> dict[str, dict[str, float]]:
        real = score(context, part, stage)
        return {name: real[name] | {"chrf": 50.0 + (best[name] == stage)} for name in NAMES} if part == "dev" else real

    monkeypatch.setattr(dev_scoring, "score_translations", scores)
    shown = go(write_recipe(), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    metrics = json.loads(run.metrics.read_text())
    assert metrics["best"] == best
    assert [event["best"] for event in read_events(run.path, "dev")] == [
        dict.fromkeys(NAMES, BASE), dict.fromkeys(NAMES, PARALLEL), best,
    ]  # fmt: skip
    # The weights in adapters/best are those, and translate with them: as scored on test.
    pairs = [line.split("\t") for line in (run.data / "test.tsv").read_text().splitlines()]
    for side, (name, stage) in enumerate(best.items()):
        other = {PARALLEL: "round-1", "round-1": PARALLEL}[stage]
        kept = (run.adapters / "best" / name / "adapter_model.safetensors").read_bytes()
        assert kept == (run.adapters / stage / name / "adapter_model.safetensors").read_bytes()
        assert kept != (run.adapters / other / name / "adapter_model.safetensors").read_bytes()
        translations = trained_models.load_trained(run.path, name, device="cpu").translate(
            [row[side] for row in pairs], greedy_settings(run.recipe())
        )
        lines = (run.translations / f"test.{stage}.{name}.txt").read_text().splitlines()
        assert [" ".join(text.split()) for text in translations.texts] == lines
        assert metrics["comparison"][name]["system"] == stage and metrics["comparison"][name]["baseline"] == other
        assert {sample["hypothesis"] for sample in metrics["samples"][name]} <= set(lines)
        export(run.path, name, tmp_path / name)
        assert f"Stage `{stage}`" in (tmp_path / name / "README.md").read_text()
    assert metrics["gain"] == {"es-en": metrics["comparison"]["es-en"]}, "parallel is where the round began"
    # The table marks two cells of each direction: its test scores and its dev score.
    (after_pairs,) = (line for line in shown.splitlines() if "parallel pairs" in line and "│" in line)
    (after_round,) = (line for line in shown.splitlines() if "│ round-1" in line)
    assert ["*" in cell for cell in after_pairs.split("│")[2:6]] == [True, False, True, False]
    assert ["*" in cell for cell in after_round.split("│")[2:6]] == [False, True, False, True]
    assert run.has_best(best) and not run.has_best(dict.fromkeys(NAMES, PARALLEL))
    assert "this run is complete" in go(tmp_path / "small.toml", run.path, resume=True)


def test_a_run_without_test_pairs_has_no_test_scores(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """It has own data, and rounds of more lines than there are in one of the languages."""
    assert load_recipe(str(write_recipe(("test = 12", "test = 0")))).recipe.data.test == ()
    own = '[data]\ntrain = "train.tsv"\ndev = "dev.tsv"\nmono = { en = "en.txt", es = "es.txt" }\n'
    split = '[data.split]\ncorpus = { path = "toy.tsv" }\ntrain = 32\ndev = 12\ntest = 12\n'
    path, pairs = write_recipe((split, own)), toy_pairs()
    for name, part in {"dev.tsv": pairs[:9], "train.tsv": pairs[20:52]}.items():
        (tmp_path / name).write_text("".join(f"{en}\t{es}\n" for en, es in part), encoding="utf-8")
    (tmp_path / "en.txt").write_text("".join(f"{en}\n" for en, _ in pairs[100:115]), encoding="utf-8")
    (tmp_path / "es.txt").write_text("".join(f"{es}\n" for _, es in pairs[300:324]), encoding="utf-8")
    shown = go(path, tmp_path / "run")
    assert shown.count("a round takes 24 lines of en and there are 15, so that at least 9 are taken again") == 1
    assert shown.count("so that at least") == 1
    assert "there will be no test scores" in shown and "No data.test, no test scores" in shown
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"] == metrics["comparison"] == metrics["samples"] == {}
    assert list(metrics["dev"]) == ["copy", BASE, PARALLEL, "round-1"] and set(metrics["best"]) == set(NAMES)
    assert RunFolder(tmp_path / "run").has_best(metrics["best"])
    assert "No data.test, no test scores" in go(path, tmp_path / "run", resume=True)
    export(tmp_path / "run", "en-es", tmp_path / "out")
    assert "The run has no test set" in (tmp_path / "out" / "README.md").read_text()


# ---------------------------------------------------------------------------------------------------- early stopping


def test_epochs_end_where_dev_loss_stops_improving(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of one direction improves for three epochs, that of the other for two; the last stage starts anew."""
    losses = {"en-es": [3.0, 2.0, 1.0, 1.5, 1.6, 9.0, 9.0], "es-en": [3.0, 2.0, 2.0, 2.5, 2.0, 9.0, 9.0]}
    monkeypatch.setattr(dev_scoring, "dev_loss", lambda context, direction: losses[direction.name].pop(0))
    path = write_recipe(("monolingual_lines = 24", "monolingual_lines = 4"))
    overrides = ("train.parallel_epochs=6", "train.patience=2", "train.final_epochs=2")
    shown = go(path, tmp_path / "run", overrides=overrides)
    assert "parallel: dev loss has not improved for 2 epochs; stopping this stage" in shown
    assert "en-es: dev loss 1.600 nats per label after epoch 5" in shown
    assert losses == {"en-es": [], "es-en": []}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"]["en-es"] == 5 * 2 + 1 + 2 * 2
    assert list(metrics["test"]) == ["copy", BASE, PARALLEL, "round-1", FINAL]


def test_dev_loss_is_that_of_a_train_step(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """It is computed from likelihoods, that of training as cross-entropy."""
    losses: list[tuple[float, float]] = []
    dev_loss = dev_scoring.dev_loss

    def compare(context: RunContext, direction: Direction) -> float:
        translator = context.translators[direction.name]
        pairs = list(zip(*context.parallel_texts("dev", direction), strict=True))
        dataset = TokenDataset.of(translator.template.rows(pairs))
        batch = collate(dataset, range(len(dataset)), translator.base.pad_id)
        with torch.no_grad(), translator.direction_model.generating() as model:
            expected = float(loss_sum(model, batch)) / int((batch.labels_BT != IGNORE).sum())
        losses.append((dev_loss(context, direction), expected))
        return losses[-1][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dev_scoring, "dev_loss", compare)
        overrides = ("train.parallel_epochs=2", "train.patience=1", "rounds.count=0")
        go(write_recipe(), tmp_path / "run", overrides=overrides)
    assert len(losses) == 4
    for loss, expected in losses:
        assert loss == pytest.approx(expected, rel=1e-4)


def test_rounds_end_where_dev_scores_stop_improving(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {BASE: 1.0, PARALLEL: 5.0, "round-1": 9.0, "round-2": 9.0, "round-3": 8.0, "round-4": 99.0, FINAL: 9.5}

    def translations(context: RunContext, part: str, stage: str) -> dict[str, dict[str, float]]:
        for name in NAMES:  # the final table shows samples of the translations
            path = context.run.translations / f"{part}.{stage}.{name}.txt"
            path.write_text("a\n" * 12)
        return {name: {"chrf": scores[stage], "bleu": 0.0, "unfinished": 0} for name in NAMES}

    monkeypatch.setattr(dev_scoring, "score_translations", translations)
    overrides = ("rounds.count=5", "rounds.monolingual_lines=4", "train.patience=2", "train.final_epochs=1")
    shown = go(write_recipe(), tmp_path / "run", overrides=overrides)
    assert "dev chrF++ has not improved for 2 rounds; no further round starts" in shown
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["dev"]) == ["copy", BASE, PARALLEL, "round-1", "round-2", "round-3", FINAL]
    best = [event["best"] for event in read_events(tmp_path / "run", "dev")]
    stages = [BASE, PARALLEL, "round-1", "round-1", "round-1", FINAL]
    assert best == [dict.fromkeys(NAMES, stage) for stage in stages] and metrics["best"] == best[-1]
    assert RunFolder(tmp_path / "run").has_best(best[-1])


def test_rounds_do_not_start_where_copying_is_better_unless_the_recipe_allows_it(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(("require_better_than_copy = false", "require_better_than_copy = true"))
    both = {name: {"chrf": 99.0, "bleu": 99.0} for name in NAMES}
    monkeypatch.setattr(dev_scoring, "score_copies", lambda context, part: both)
    with pytest.raises(TrainingError, match=r"no better than copying the source: en-es chrF.. .*, copying 99") as error:
        go(path, tmp_path / "run", overrides=("train.lr=1e-3",))
    command = str(error.value.cure).splitlines()[-1].split()
    assert command[:4] == ["python", "-m", "roundtrip", "train"]
    assert command[-3:] == ["--resume", "--set", "rounds.require_better_than_copy=false"]
    assert not list((tmp_path / "run" / "examples").glob("*round*")), "nothing was generated"
    # The epochs over the pairs are not lost: no result depends on this key, so it may change at a resume.
    done = run_module(*command[2:])
    assert done.returncode == 0, done.stderr
    assert "resumed at round-1, 4 steps done" in done.stdout


# ------------------------------------------------------------------------------------------------- without dev pairs


@pytest.fixture
def without_dev(write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with pairs, a test set and monolingual text, and in place of dev pairs five lines of each language."""
    monkeypatch.setattr(corpora, "ROUND_TRIP_LINES", 5)
    split = '[data.split]\ncorpus = { path = "toy.tsv" }\ntrain = 32\ndev = 12\ntest = 12\n'
    own = '[data]\ntrain = "train.tsv"\ntest = "test.tsv"\nmono = { en = "en.txt", es = "es.txt" }\n'
    path = write_recipe((split, own), ("monolingual_lines = 24", "monolingual_lines = 12"))
    pairs = toy_pairs()
    for name, part in {"test.tsv": pairs[:9], "train.tsv": pairs[20:52]}.items():
        (tmp_path / name).write_text("".join(f"{en}\t{es}\n" for en, es in part), encoding="utf-8")
    (tmp_path / "en.txt").write_text("".join(f"{en}\n" for en, _ in pairs[100:200]), encoding="utf-8")
    (tmp_path / "es.txt").write_text("".join(f"{es}\n" for _, es in pairs[300:400]), encoding="utf-8")
    return path


def test_without_dev_pairs_round_trips_of_monolingual_lines_choose(
    without_dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "ROUND_TRIP_LINES", 11)
    shown = go(without_dev, tmp_path / "run", overrides=("rounds.require_better_than_copy=true",))
    assert "warning: there are no dev pairs; stages are chosen by the round-trip chrF++ of 11 lines" in shown
    assert "without dev pairs its quality is unknown" in shown
    assert "Chosen without dev pairs" in shown and "copies: " in shown
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["dev"]["copy"]["en-es"] == {"bleu": 100.0, "chrf": 100.0, "copied": 1.0}
    # By hand: what the stage translates, and the translations of that by the other direction.
    run = RunFolder(tmp_path / "run")
    held_out = [line.split("\t") for line in (run.data / "dev.tsv").read_text().splitlines()]
    assert len(held_out) == 11
    settings = greedy_settings(run.recipe())
    for name, side in (("en-es", 0), ("es-en", 1)):
        lines = [row[side] for row in held_out]
        forward, reverse = (
            trained_models.load(run, trained_models.direction_into(run, code), stage="round-1")
            for code in (name[3:], name[:2])
        )
        translated = [" ".join(text.split()) for text in forward.translate(lines, settings, 0).texts]
        assert translated == (run.translations / f"dev.round-1.{name}.txt").read_text().splitlines()
        back = [" ".join(text.split()) for text in reverse.translate(translated, settings, 0).texts]
        assert metrics["dev"]["round-1"][name]["chrf"] == pytest.approx(corpus_scores(back, lines).chrf)
    # Nothing trains on what is held out.
    for side, language in enumerate(("en", "es")):
        text = (run.data / f"mono.{language}.txt").read_text().splitlines()
        assert not {row[side] for row in held_out} & set(text) and len(text) == 89
    rows = [json.loads(line) for path in run.examples.glob("*.jsonl") for line in path.read_text().splitlines()]
    targets = {target for kind, _, target in rows if kind == "synthetic"}
    assert targets and not targets & {text for row in held_out for text in row}


def test_directions_that_copy_are_recognized(
    without_dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translate, round_trip = Translator.translate, dev_scoring._round_trip
    scores: list[dict[str, float]] = []

    def copying(self: Translator, sources: Any, *arguments: Any, **settings: Any) -> Any:
        return replace(translate(self, sources, *arguments, **settings), texts=list(sources))

    monkeypatch.setattr(Translator, "translate", copying)
    monkeypatch.setattr(dev_scoring, "_round_trip", lambda *a: scores.append(round_trip(*a)) or scores[-1])
    with pytest.raises(TrainingError, match="'copy'"):
        go(without_dev, tmp_path / "run")
    assert scores and all(score["chrf"] == pytest.approx(100.0) and score["copied"] == 1.0 for score in scores)


def test_a_translation_that_is_too_long_for_the_way_back_counts_as_empty(
    without_dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translate, sources_of_second = dev_scoring._translate, list[str]()

    def growing(
        context: RunContext, sources: list[str], stage: str, direction: Direction, activity: str, settings: Generate
    ) -> Any:
        if activity == "translating them back":
            sources_of_second.extend(sources)
        lines, unfinished = translate(context, sources, stage, direction, activity, settings)
        grown = [f"{line} {'very ' * 200}" for line in lines]
        return (grown if activity == "translating lines" else lines), unfinished

    monkeypatch.setattr(dev_scoring, "_translate", growing)
    go(without_dev, tmp_path / "run")
    # Three stages, two directions, five lines.
    assert len(sources_of_second) == 3 * 2 * 5 and not any(sources_of_second)


def test_without_dev_pairs_the_usual_length_ratio_is_that_of_train_pairs(
    without_dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out lines of the two languages are no pairs: those of one may be twice as long."""
    long = [f"{es} {es}" for _, es in toy_pairs()[300:400]]
    (without_dev.parent / "es.txt").write_text("".join(f"{line}\n" for line in long), encoding="utf-8")
    ratios: list[float] = []
    filter_candidates = filtering.filter_candidates

    def spy(*arguments: Any, length_ratio: float, **settings: Any) -> Any:
        ratios.append(length_ratio)
        return filter_candidates(*arguments, length_ratio=length_ratio, **settings)

    monkeypatch.setattr(filtering, "filter_candidates", spy)
    go(without_dev, tmp_path / "run")
    assert len(ratios) == 2 and all(0.7 < ratio < 1.4 for ratio in ratios)
