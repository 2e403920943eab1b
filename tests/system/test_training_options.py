"""Whole runs with options that the usual one has not: alone, and all at once."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from roundtrip import load_trained
from roundtrip.backtranslation import dev_scoring, trained_models, trainer
from roundtrip.backtranslation.context import RunContext
from roundtrip.backtranslation.dev_scoring import greedy_settings, search_settings
from roundtrip.backtranslation.examples import DENOISING, REPLAY, SYNTHETIC
from roundtrip.backtranslation.export import export
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.backtranslation.trainer import PhaseJob, Trainer
from roundtrip.data.language_id import LanguageIdentifier
from roundtrip.data.row_store import RowStore
from roundtrip.engine import translator
from roundtrip.engine.request import BeamSearch
from roundtrip.engine.translator import expansion_of
from roundtrip.recipe.loader import load_recipe
from roundtrip.recipe.plan import FINAL, PARALLEL, PRETRAIN
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.errors import Interrupted, RunError, TrainingError
from tests.conftest import RECIPE, WriteRecipe, toy_pairs
from tests.runs import assert_same, end_state, go, read_events

# ----------------------------------------------------------------------------------------------------- all at once

EVERYTHING = (
    "rounds.count=3", "rounds.monolingual_lines=8", "rounds.replay_examples=12", "rounds.denoising_ratio=0.2",
    "train.parallel_epochs=4", "train.patience=3", "train.final_epochs=3", "train.kl_weight=0.1",
    "generate.num_candidates=2", "generate.temperature=0.8", "filter.min_round_trip_chrf=1.0",
)  # fmt: skip


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Path, Path, str]:
    """A finished run with all of these options."""
    folder = tmp_path_factory.mktemp("everything")
    (folder / "toy.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in toy_pairs()), encoding="utf-8")
    (folder / "small.toml").write_text(RECIPE.format(model=model_folder), encoding="utf-8")
    return folder / "small.toml", folder / "run", go(folder / "small.toml", folder / "run", overrides=EVERYTHING)


def test_all_kinds_of_examples_are_mixed_as_the_recipe_asks(everything: tuple[Path, Path, str]) -> None:
    _, run, _ = everything
    rounds = [event for event in read_events(run, "examples") if event["stage"].startswith("round")]
    assert len(rounds) == 6
    for number, event in enumerate(rounds):
        earlier = [other["synthetic"] for other in rounds[number % 2 : number : 2]]
        assert 0 < event["replay"] <= min(12, sum(earlier)) if earlier else event["replay"] == 0
        synthetic = event["synthetic"] + event["replay"]
        assert event["parallel"] == round(synthetic * 0.4 / 0.6)
        assert event["denoising"] == round((synthetic + event["parallel"]) * 0.2 / 0.8)
    for path in sorted(run.glob("examples/*round-3*")):  # a target with a new source is not replayed with an old one
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        new, old = ({target for kind, _, target in rows if kind == wanted} for wanted in (SYNTHETIC, REPLAY))
        assert new and old and not new & old
    stages = list(json.loads((run / "metrics.json").read_text())["test"])
    assert stages[:3] == ["copy", "base", PARALLEL] and stages[-1] == FINAL


def test_the_denoising_targets_are_lines_that_no_other_example_has_read(everything: tuple[Path, Path, str]) -> None:
    """Denoising reads its own cursor, so that every phase continues where the last one ended."""
    _, run, _ = everything
    for name, language in (("en-es", "es"), ("es-en", "en")):
        paths = sorted(run.glob(f"examples/*round-*-{name}.jsonl"))
        rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        noisy = [target for kind, _, target in rows if kind == DENOISING]
        assert noisy and len(set(noisy)) == len(noisy)
        assert set(noisy) <= set((run / "data" / f"mono.{language}.txt").read_text().splitlines())


def test_resumed_six_times_a_run_with_everything_is_the_same(
    everything: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole, _ = everything
    train_step = Trainer.train_step
    num_steps = sum(json.loads((whole / "metrics.json").read_text())["steps"].values())
    stops = sorted(random.Random(1).sample(range(1, num_steps), 6))

    def stopping(self: Trainer, *arguments: Any) -> None:
        if stops and self.state.total_steps() == stops[0]:
            stops.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        train_step(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", stopping)
    resume = False
    while stops:
        with pytest.raises(Interrupted):
            go(recipe, tmp_path / "run", resume=resume, overrides=EVERYTHING)
        resume = True
    go(recipe, tmp_path / "run", resume=True, overrides=EVERYTHING)
    assert_same(end_state(tmp_path / "run"), end_state(whole))


# ---------------------------------------------------------------------------------------------- generation and filters


def test_length_limits_grow_with_the_tokens_that_a_language_takes(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Targets of three times the tokens are not cut, neither in the run nor by those who translate with it."""
    path = write_recipe()
    rows = "".join(f"{en}\t{es} {es} {es}\n" for en, es in toy_pairs())
    (tmp_path / "toy.tsv").write_text(rows, encoding="utf-8")
    go(path, tmp_path / "run", overrides=("train.max_length=120", "rounds.count=0"))
    expansions = RunFolder(tmp_path / "run").manifest().expansions
    assert expansions["en-es"] > 2.5 and expansions["es-en"] == 1.0
    run = RunFolder(tmp_path / "run")
    trained = trained_models.load(run, trained_models.direction_into(run, "es"), device="cpu")
    dev = [line.split("\t") for line in (run.data / "dev.tsv").read_text().splitlines()]
    assert trained.expansion == expansions["en-es"] == expansion_of(trained.template, [(en, es) for en, es in dev])
    settings, (prompt,) = Generate(max_length_ratio=1.5), trained.template.prompts([dev[0][0]])
    assert trained.num_needed(prompt, settings) - len(prompt) >= 1.5 * 2.5 * trained.num_source_tokens(prompt)
    untrained = translator.load(load_recipe(str(path)).recipe, path.parent)["en-es"]
    assert untrained.num_needed(prompt, settings) < trained.num_needed(prompt, settings)
    assert expansion_of(trained.template, []) == 1.0


def test_the_language_filter_is_not_used_where_it_is_wrong_on_dev_lines(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    """The toy sentences are too short to be sure of their language."""
    path = write_recipe(("monolingual_lines = 24", "monolingual_lines = 4"))
    shown = go(path, tmp_path / "run", overrides=("filter.language=true", "train.parallel_epochs=0"))
    assert "filter.language: not used" in shown


def test_the_language_filter_rejects_sources_in_a_run(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()

    def is_every_other(self: LanguageIdentifier, text: str, language: str) -> bool:
        asked[language] += 1
        return asked[language] % 2 == 0

    monkeypatch.setattr(LanguageIdentifier, "share_right", lambda *_: (1.0, 100))
    monkeypatch.setattr(LanguageIdentifier, "is_other", is_every_other)
    go(write_recipe(), tmp_path / "run", overrides=("filter.language=true",))
    assert set(asked) == {"en", "es"}
    for event in read_events(tmp_path / "run", "examples"):
        assert event["rejected"]["wrong_language"] == asked[event["direction"][:2]] // 2
        assert event["synthetic"] == 24 - sum(event["rejected"].values())


def test_sources_that_the_forward_direction_cannot_restore_are_rejected(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    path = write_recipe(("monolingual_lines = 24", "monolingual_lines = 8"))
    with pytest.raises(TrainingError, match="all 8 synthetic sources were rejected: .*low_round_trip") as error:
        go(path, tmp_path / "run", overrides=("filter.min_round_trip_chrf=100.0",))
    assert "' for '" in error.value.problem, "samples are shown"
    assert "filter.min_round_trip_chrf" in str(error.value.cure)
    go(path, tmp_path / "low", overrides=("filter.min_round_trip_chrf=0.1",))


# --------------------------------------------------------------------------------------------- replay and denoising


def test_damaged_examples_that_would_be_replayed_are_named(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round reads the example files of rounds before it again, so its checkpoints depend on these."""
    train_step = Trainer.train_step

    def stopping(self: Trainer, job: PhaseJob, *arguments: Any) -> None:
        if job.phase.round == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        train_step(self, job, *arguments)

    path = write_recipe(("monolingual_lines = 24", "monolingual_lines = 8"))
    overrides = ("rounds.count=2", "rounds.replay_examples=9", "checkpoint.keep=1")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopping)
        with pytest.raises(Interrupted):
            go(path, tmp_path / "run", overrides=overrides)
    examples = next((tmp_path / "run" / "examples").glob("*round-1-es-en.jsonl"))
    text = examples.read_text()
    examples.write_text(text.replace("a", "b", 1))
    with pytest.raises(RunError, match="no checkpoint is complete"):
        go(path, tmp_path / "run", resume=True, overrides=overrides)
    examples.write_text(text)
    go(path, tmp_path / "run", resume=True, overrides=overrides)


def test_denoising_rows_lead_from_a_language_into_itself(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    build_token_rows = trainer.build_token_rows

    def spy(examples: Any, forward: Any, *arguments: Any) -> Any:
        dataset, counts = build_token_rows(examples, forward, *arguments)
        for example, start, size in zip(examples, dataset.offset_R.tolist(), dataset.sizes, strict=True):
            if example.kind == DENOISING:
                texts.append(forward.template.tokenizer.decode(dataset.ids_X[start : start + size].tolist()))
        return dataset, counts

    monkeypatch.setattr(trainer, "build_token_rows", spy)
    path, overrides = write_recipe(), ("rounds.denoising_ratio=0.3",)
    go(path, tmp_path / "run", overrides=overrides)
    assert {(text.count("Spanish: "), text.count("English: ")) for text in texts} == {(2, 0), (0, 2)}
    # Their prompts are fixed by the run as well: a chat template may print the date.
    fixed = RunFolder(tmp_path / "run").manifest().segments
    assert set(fixed) == {"en-es", "es-en", "en-es denoising", "es-en denoising"}
    loaded = load_recipe(str(path), overrides)
    monkeypatch.setattr(translator, "build_segments", lambda *_: pytest.fail("built again"))
    both = translator.load(loaded.recipe, loaded.folder, fixed)
    assert both["en-es"].denoising_template.segments == fixed["en-es denoising"]


# ------------------------------------------------------------------------------------------ pretraining, KL penalty


def test_models_from_scratch_start_with_the_same_weights_and_are_pretrained_once(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    text = write_recipe().read_text()
    model = next(line for line in text.splitlines() if line.startswith("path = "))
    size = "vocab_size = 420\nnum_layers = 2\nhidden_size = 48"
    path = write_recipe(
        (model, ""),
        ("[model]", f"[model.from_scratch]\n{size}\n[model]"),
        ("rank = 4\ndropout = 0.1", 'method = "full"'),
        ("count = 1", "count = 0"),
    )
    overrides = ("train.pretrain_lines=40", "train.parallel_epochs=1")
    go(path, tmp_path / "run", overrides=overrides)
    steps = json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"]
    assert steps["en-es"] == steps["es-en"] == 5 + 2
    taken = Counter(event["direction"] for event in read_events(tmp_path / "run", "step"))
    assert taken == {"en-es": 7, "es-en": 2}
    first, second = (
        load_file(tmp_path / "run" / "adapters" / PRETRAIN / name / "model.safetensors") for name in ("en-es", "es-en")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    shown = go(path, tmp_path / "apart", overrides=(*overrides, "model.shared=false"))
    assert "text: training es-en" in shown and len(read_events(tmp_path / "apart", "step")) == 14


def test_monolingual_text_alone_is_a_run(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    overrides = ("train.pretrain_lines=16", "train.parallel_epochs=0", "rounds.count=0")
    go(write_recipe(), tmp_path / "run", overrides=overrides)
    assert (tmp_path / "run" / "adapters" / PRETRAIN / "en-es").is_dir()
    made = read_events(tmp_path / "run", "examples")
    assert [(event["direction"], event["monolingual"]) for event in made] == [("en-es", 32), ("es-en", 32)]


def test_with_a_kl_penalty_an_adapter_stays_closer_to_its_base(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    squares = {}
    for weight in (0.0, 20.0):
        run = tmp_path / str(weight)
        go(write_recipe(), run, overrides=(f"train.kl_weight={weight}", "train.parallel_epochs=2", "rounds.count=0"))
        tensors = load_file(run / "adapters" / PARALLEL / "en-es" / "adapter_model.safetensors")
        squares[weight] = sum(float(value.square().sum()) for name, value in tensors.items() if "lora_B" in name)
    assert squares[20.0] < 0.7 * squares[0.0]


# ------------------------------------------------------------------------------------- adapters of an earlier run


def test_a_run_begins_with_the_adapters_of_another(
    tmp_path: Path, write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They count as a stage: rounds may begin at once, and where these bring nothing, what it began with is kept."""
    path = write_recipe()
    go(path, tmp_path / "first", overrides=("rounds.count=0", "train.parallel_epochs=12"))
    inits = [f"adapter.{name}.init={tmp_path / 'first/adapters/parallel' / name}" for name in ("en-es", "es-en")]
    rounds = ("train.parallel_epochs=0", "rounds.count=1", "rounds.require_better_than_copy=true", "train.lr=1e-9")
    go(path, tmp_path / "second", overrides=(*inits, *rounds))
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("first", "second")]
    for part in ("dev", "test"):
        assert metrics[1][part]["initial"] == metrics[0][part]["parallel"] != metrics[1][part]["base"]
        assert metrics[1][part]["base"] == metrics[0][part]["base"]
    assert list(metrics[1]["dev"]) == ["copy", "base", "initial", "round-1"]
    # Hardly changed by the rate: of equals the first is kept.
    assert metrics[1]["best"] == {"en-es": "initial", "es-en": "initial"}
    for name in ("en-es", "es-en"):
        kept = load_file(tmp_path / "second/adapters/best" / name / "adapter_model.safetensors")
        first = load_file(tmp_path / "first/adapters/parallel" / name / "adapter_model.safetensors")
        assert all(torch.equal(kept[key], first[key]) for key in first)
    export(tmp_path / "second", "en-es", tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert "the adapter of `adapter.init`, not trained further in this run" in card
    assert "by back-translation" not in card
    # Stopped while these are scored, a run can be resumed.
    score = dev_scoring.score_translations

    def stopping(context: RunContext, part: str, stage: str) -> Any:
        if stage == "initial":
            os.kill(os.getpid(), signal.SIGTERM)
        return score(context, part, stage)

    monkeypatch.setattr(dev_scoring, "score_translations", stopping)
    with pytest.raises(Interrupted):
        go(path, tmp_path / "third", overrides=(*inits, *rounds))
    monkeypatch.undo()
    go(path, tmp_path / "third", resume=True, overrides=(*inits, *rounds))
    assert_same(end_state(tmp_path / "third"), end_state(tmp_path / "second"))


def test_test_is_translated_with_beams_and_dev_greedily(tmp_path: Path, write_recipe: WriteRecipe) -> None:
    path, out = write_recipe(), tmp_path / "run"
    go(path, out, overrides=("rounds.count=0", "train.parallel_epochs=4", "evaluation.num_beams=3"))
    run = RunFolder(out)
    translator = load_trained(out, "en-es", stage=PARALLEL)
    for part, num_beams in (("dev", 1), ("test", 3)):
        sources = [row[0] for row in RowStore(run.data / f"{part}.tsv")]
        settings = BeamSearch(**greedy_settings(run.recipe()).model_dump(), num_beams=num_beams)
        expected = [" ".join(text.split()) for text in translator.translate(sources, settings).texts]
        found = (run.translations / f"{part}.parallel.en-es.txt").read_text(encoding="utf-8").splitlines()
        assert found == expected
    assert search_settings(run.recipe()).beams == 3
