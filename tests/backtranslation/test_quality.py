"""How sources are written, judged and mixed, when stages end, and what each extra of the objective does to a step."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from roundtrip.backtranslation.reservoir import earlier_rows, path_of
from roundtrip.backtranslation.stopping import has_stopped_improving, require_better_than_copy
from safetensors.torch import load_file

from roundtrip.backtranslation import examples as blocks
from roundtrip.backtranslation import telling
from roundtrip.backtranslation.examples import EARLIER, NOISED, REAL, SYNTHETIC
from roundtrip.backtranslation.filtering import FilteredCandidates, filter_candidates, rejection_reason, repeats
from roundtrip.backtranslation.trainer import Trainer
from roundtrip.data import corpora, language_id
from roundtrip.data.denoising import MOVED, add_noise
from roundtrip.data.language_id import LanguageIdentifier
from roundtrip.engine.train_step import KLPenalty, loss_sum, train_step
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe import loader
from roundtrip.recipe.plan import FINAL, PARALLEL, PRETRAIN, Direction, Phase
from roundtrip.recipe.schema import CandidateFilter, Generate, Recipe, Train
from roundtrip.runtime.atomic_io import write_rows
from roundtrip.runtime.errors import Interrupted, RecipeError, RunError, TrainingError
from roundtrip.runtime.event_log import EventLog
from roundtrip.tokens.batching import TokenDataset, collate
from roundtrip.tokens.prompt_template import TokenRow
from tests.conftest import WriteRecipe, toy_pairs
from tests.engine.test_train_step import rows
from tests.runs import assert_same, end_state, go

EN_ES = Direction("en", "es")


def recipe_with(path: Path, *overrides: str) -> Recipe:
    return loader.load_recipe(str(path), overrides).recipe


# ------------------------------------------------------------------------------------------------ writing sources


def test_the_length_limit_grows_with_what_a_language_takes(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Targets of three times the tokens are not cut, in the run or by who translates after it."""
    from roundtrip.backtranslation import trained_models
    from roundtrip.backtranslation.run_folder import RunFolder
    from roundtrip.engine import translator
    from roundtrip.engine.translator import expansion_of

    path = write_recipe()
    rows_of = "".join(f"{en}\t{es} {es} {es}\n" for en, es in toy_pairs())
    (tmp_path / "toy.tsv").write_text(rows_of, encoding="utf-8")
    go(path, tmp_path / "run", overrides=("train.max_length=120", "rounds.monolingual_lines=4"))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["expansion"]
    assert facts["en-es"] > 2.5 and facts["es-en"] == 1.0
    run = RunFolder(tmp_path / "run")
    one = trained_models.load(run, trained_models.direction_into(run, "es"), device="cpu")
    dev = [line.split("\t") for line in (run.data / "dev.tsv").read_text().splitlines()]
    assert one.expansion == facts["en-es"] == expansion_of(one.template, [(en, es) for en, es in dev])
    settings, (prompt,) = Generate(max_length_ratio=1.5), one.template.prompts([dev[0][0]])
    assert one.num_needed(prompt, settings) - len(prompt) >= 1.5 * 2.5 * one.num_source_tokens(prompt)
    plain = translator.load(loader.load_recipe(str(path)).recipe, path.parent)["en-es"]
    assert plain.num_needed(prompt, settings) < one.num_needed(prompt, settings)
    assert expansion_of(one.template, []) == 1.0


# --------------------------------------------------------------------------------------------------------- judging


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("", 1), ("a", 1), ("a a", 2), ("the cat sat on the mat", 1), ("no no no no", 4), ("go on, go on, go on", 2),
        ("a man and a woman and a man and a woman", 1), ("我我我我", 4), ("ab" * 5, 5), ("a b c d e f g h " * 3, 3),
    ],
)  # fmt: skip
def test_repeats_count_a_phrase_that_follows_itself(text: str, times: int) -> None:
    assert repeats(text) == times


@given(phrase=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True), times=st.integers(1, 6))
def test_a_phrase_that_is_said_so_many_times_is_found(phrase: list[str], times: int) -> None:
    assert repeats(" ".join(["x", *phrase * times, "y"])) == times


def test_sources_that_repeat_themselves_are_rejected_unless_their_target_does() -> None:
    recipe = CandidateFilter(max_length_ratio=100.0)
    assert rejection_reason("no no no no no", "eso no", True, recipe) == "repeats itself"
    assert rejection_reason("no no no no", "eso no", True, recipe) is None
    assert rejection_reason("no no no no no", "nunca nunca nunca nunca nunca", True, recipe) is None


def test_a_line_in_the_other_language_is_known_and_a_short_one_is_not_judged() -> None:
    identifier = LanguageIdentifier(("en", "fr"))
    french = "Deux hommes sont assis sur un banc dans le parc, près d'un arbre."
    english = "Two men are sitting on a bench in the park, next to a tree."
    assert identifier.is_other(french, "en") and not identifier.is_other(french, "fr")
    assert identifier.is_other(english, "fr") and not identifier.is_other(english, "en")
    assert not identifier.is_other("Bonjour", "en")
    assert identifier.share_right([english, french, "short"], "en") == (0.5, 2)
    assert filter_candidates(
        [french], [True], [english], CandidateFilter(), 1.0, lambda text: identifier.is_other(text, "en")
    ).rejected == {"wrong language": 1}


@pytest.mark.parametrize(("languages", "match"), [(("en", "en-GB"), "one language"), (("en", "tlh"), "know 'tlh'")])
def test_languages_that_cannot_be_told_apart_are_refused(languages: tuple[str, str], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        LanguageIdentifier(languages)


def test_a_missing_identifier_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_id.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'roundtrip-mt\[langid\]'"):
        LanguageIdentifier(("en", "es"))


def test_languages_are_not_judged_where_real_lines_are_told_wrong(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """The toy sentences are too short: there is nothing to be sure by."""
    shown = go(write_recipe(), tmp_path / "run", overrides=("filter.language=true",))
    assert "filter.language: not used" in shown


def test_languages_are_judged_in_a_run(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_id.LanguageIdentifier, "share_right", lambda *_: (1.0, 100))
    seen: Counter[str] = Counter()

    def is_other(self: LanguageIdentifier, text: str, language: str) -> bool:
        seen[language] += 1
        return seen[language] % 2 == 0

    monkeypatch.setattr(language_id.LanguageIdentifier, "is_other", is_other)
    go(write_recipe(), tmp_path / "run", overrides=("filter.language=true",))
    assert set(seen) == {"en", "es"}
    rejected = [event["rejected"] for event in events(tmp_path / "run", "examples")]
    assert all(one["wrong language"] > 0 for one in rejected)


def test_sources_that_do_not_lead_back_are_rejected(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe(("monolingual_lines = 24", "monolingual_lines = 8"))
    with pytest.raises(TrainingError, match="lost on the way back.*: 8|were rejected") as error:
        go(path, tmp_path / "run", overrides=("filter.min_round_trip_chrf=100.0",))
    assert "' for '" in error.value.problem, "samples are shown"
    assert "filter.min_round_trip_chrf" in str(error.value.cure)
    go(path, tmp_path / "low", overrides=("filter.min_round_trip_chrf=0.1",))


def test_a_source_that_is_too_long_to_come_back_is_lost(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """The model has 128 positions; such a row could not be learnt from either."""
    from roundtrip.backtranslation.echo import round_trip_chrf

    from roundtrip.engine import translator

    loaded = loader.load_recipe(str(write_recipe()))
    one = translator.load(loaded.recipe, loaded.folder)["en-es"]
    found = round_trip_chrf(one, [("word " * 200, "la casa"), ("I see the house", "Veo la casa")], Generate())
    assert found[0] == 0.0 and found[1] > 0.0


def test_lengths_are_judged_by_pairs_and_not_by_held_out_lines(
    without_dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [f"{es} {es}" for _, es in toy_pairs()[300:400]]
    (without_dev.parent / "es.txt").write_text("".join(f"{line}\n" for line in long), encoding="utf-8")
    seen: list[float] = []
    plain = blocks.filter_candidates
    monkeypatch.setattr(blocks, "filter_candidates", lambda *a: seen.append(a[4]) or plain(*a))
    go(without_dev, tmp_path / "run")
    assert len(seen) == 2 and all(0.7 < ratio < 1.4 for ratio in seen)


def test_judged_without_counts_what_it_drops() -> None:
    judged = FilteredCandidates([("a", "x"), ("b", "y"), ("c", "z")], [0, 2, 5], {"empty": 1})
    assert judged.without([False, True, True], "why") == FilteredCandidates([("a", "x")], [0], {"empty": 1, "why": 2})
    assert judged.without([False] * 3, "why") == judged


@pytest.mark.parametrize("reason", ["unfinished", "length ratio", "copy", "repeats itself", "wrong language",
                                    "lost on the way back", "target too long", "several lines", "empty"])  # fmt: skip
def test_more_than_half_rejected_says_what_to_try(reason: str) -> None:
    said: list[str] = []
    events: Any = SimpleNamespace(log=lambda *a, **k: None, say=said.append)
    phase = Phase(0, "round-1", 1, EN_ES, False)
    block = blocks.PhaseExamples([[SYNTHETIC, "a", "b"]], {}, {reason: 3, "other": 1}, num_written=7)
    telling.tell_block(events, phase, replace(block, num_written=8))
    assert not said, "half of them is not more than half, however few were chosen of the rest"
    telling.tell_block(events, phase, block)
    assert "more than half" in said[0] and telling.what_to_try({reason: 1}) in said[0]
    with pytest.raises(TrainingError, match="all 4 synthetic sources.*\n    'bad' for 'good'"):
        telling.tell_block(events, phase, replace(block, rows=[[REAL, "a", "b"]], thrown=[("bad", "good")]))


# ---------------------------------------------------------------------------------------------------------- mixing


@given(
    text=st.text(st.sampled_from("ab cd"), min_size=1).filter(lambda text: len(text.split()) > 1),
    seed=st.integers(0, 999),
)
def test_noise_keeps_words_and_moves_them_only_so_far(text: str, seed: int) -> None:
    text = " ".join(text.split())
    words = [f"{number}-{word}" for number, word in enumerate(text.split())]
    found = add_noise(" ".join(words), seed).split(" ")
    assert found and not Counter(found) - Counter(words)
    left = sorted(words.index(word) for word in found)
    before = [left.index(words.index(word)) for word in found]
    assert all(earlier - later <= MOVED for place, earlier in enumerate(before) for later in before[place:])
    assert found == add_noise(" ".join(words), seed).split(" ")


def test_noise_disturbs_most_sentences_and_text_without_spaces() -> None:
    sentences = [en for en, _ in toy_pairs()]
    assert sum(add_noise(text, seed) != text for seed, text in enumerate(sentences)) > 0.9 * len(sentences)
    assert add_noise("我们今天去公园玩得很开心", 1) != "我们今天去公园玩得很开心"


def test_the_reservoir_holds_the_newest_rows_and_each_target_once(tmp_path: Path) -> None:
    made = [
        Phase(n, f"round-{1 + n // 2}", 1 + n // 2, EN_ES if n % 2 == 0 else EN_ES.reverse, n % 2 == 1)
        for n in range(8)
    ]
    for phase in made:
        own = [
            [SYNTHETIC, f"source {phase.round}.{i}", f"target {phase.direction.name} {phase.round + i}"]
            for i in range(3)
        ]
        others = [[REAL, "r", "s"], [EARLIER, "old", "old"], [NOISED, "n", "m"]]
        write_rows(path_of(tmp_path, phase), own + others)
    assert earlier_rows(tmp_path, made, made[6], 0) == []
    assert earlier_rows(tmp_path, made, made[0], 9) == []
    # Round 3 wrote for targets 3, 4 and 5; of round 2 (2, 3, 4) and 1 (1, 2, 3) one each is left.
    found = earlier_rows(tmp_path, made, made[6], 9)
    assert [row[1] for row in found] == ["source 3.0", "source 3.1", "source 3.2", "source 2.0", "source 1.0"]
    assert earlier_rows(tmp_path, made, made[6], 4) == found[:4]
    assert all("en-es" in row[2] for row in found)


def test_equal_sources_of_two_rounds_are_two_rows(tmp_path: Path) -> None:
    made = [Phase(number, f"round-{1 + number}", 1 + number, EN_ES, False) for number in range(3)]
    write_rows(path_of(tmp_path, made[0]), [[SYNTHETIC, f"s{i}", f"t{i}"] for i in range(4)])
    write_rows(path_of(tmp_path, made[1]), [[SYNTHETIC, f"s{i + 2}", f"u{i}"] for i in range(2)])
    found = earlier_rows(tmp_path, made, made[2], 9)
    assert [row[2] for row in found] == ["u0", "u1", "t0", "t1", "t2", "t3"]


def test_samples_of_one_line_stay_together_in_the_reservoir(tmp_path: Path) -> None:
    first, second = Phase(0, "round-1", 1, EN_ES, False), Phase(1, "round-2", 2, EN_ES, False)
    write_rows(path_of(tmp_path, first), [[SYNTHETIC, "a", "x"], [SYNTHETIC, "b", "x"], [SYNTHETIC, "c", "y"]])
    assert [row[1] for row in earlier_rows(tmp_path, [first, second], second, 9)] == ["a", "b", "c"]


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [event for event in found if event["event"] == kind]


EVERYTHING = (
    "rounds.count=3", "rounds.monolingual_lines=8", "rounds.replay_examples=12",
    "rounds.denoising_ratio=0.2", "train.final_epochs=3",
    "train.parallel_epochs=4", "train.patience=3", "train.synthetic_weight=0.5", "train.label_smoothing=0.1",
    "train.ema_decay=0.9", "generate.temperature=0.8",
    "filter.min_round_trip_chrf=1.0", "train.kl_weight=0.1",
)  # fmt: skip


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Path, Path, str]:
    """A finished run with everything in this file at once."""
    from tests.conftest import RECIPE

    folder = tmp_path_factory.mktemp("everything")
    (folder / "toy.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in toy_pairs()), encoding="utf-8")
    (folder / "small.toml").write_text(RECIPE.format(model=model_folder), encoding="utf-8")
    return folder / "small.toml", folder / "run", go(folder / "small.toml", folder / "run", overrides=EVERYTHING)


def test_everything_at_once_is_mixed_as_asked(everything: tuple[Path, Path, str]) -> None:
    _, run, _ = everything
    found = [event for event in events(run, "examples") if event["stage"].startswith("round")]
    for number, event in enumerate(found):
        before = [one["synthetic"] for one in found[number % 2 : number : 2]]
        assert 0 < event["earlier"] <= min(12, sum(before)) or not before
        synthetic = event["synthetic"] + event["earlier"]
        assert event["real"] == round(synthetic * 0.4 / 0.6)
        assert event["noised"] == round((synthetic + event["real"]) * 0.2 / 0.8)
    for number in (4, 5):  # what has a new source is not learnt from again with an old one
        rows_of = [
            json.loads(line) for line in sorted(run.glob("examples/*round-3*"))[number % 2].read_text().splitlines()
        ]
        new, old = ({row[2] for row in rows_of if row[0] == kind} for kind in (SYNTHETIC, EARLIER))
        assert new and old and not new & old
    stages = list(json.loads((run / "metrics.json").read_text())["test"])
    assert stages[:3] == ["copy", "base", PARALLEL] and stages[-1] == FINAL


def test_everything_at_once_goes_on_as_if_it_had_not_been_stopped(
    everything: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole, _ = everything
    plain = Trainer.train_step
    chosen = random.Random(1).sample(
        range(1, sum(json.loads((whole / "metrics.json").read_text())["steps"].values())), 6
    )
    stops = sorted(chosen)

    def stopping(self: Trainer, *arguments: Any) -> Any:
        if stops and self.state.total_steps() == stops[0]:
            stops.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", stopping)
    resume = False
    while stops:
        with pytest.raises(Interrupted):
            go(recipe, tmp_path / "run", resume=resume, overrides=EVERYTHING)
        resume = True
    go(recipe, tmp_path / "run", resume=True, overrides=EVERYTHING)
    assert_same(end_state(tmp_path / "run"), end_state(whole))


def test_a_row_of_the_reservoir_that_is_damaged_is_named(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round learns from files of rounds before it, so its checkpoints stand on these."""
    plain = Trainer.train_step

    def stopping(self: Trainer, phase: Phase, *arguments: Any) -> Any:
        if phase.round == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, phase, *arguments)

    path, overrides = write_recipe(), ("rounds.count=2", "rounds.replay_examples=9", "checkpoint.keep=1")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopping)
        with pytest.raises(Interrupted):
            go(path, tmp_path / "run", overrides=overrides)
    block = next((tmp_path / "run" / "examples").glob("*round-1-es-en.jsonl"))
    text = block.read_text()
    block.write_text(text.replace("a", "b", 1))
    with pytest.raises(RunError, match="no checkpoint is whole"):
        go(path, tmp_path / "run", resume=True, overrides=overrides)
    block.write_text(text)
    go(path, tmp_path / "run", resume=True, overrides=overrides)


def test_noised_rows_keep_their_prompt_whatever_the_day(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat template may print the date."""
    from roundtrip.engine import translator
    from roundtrip.tokens.prompt_segments import Segments

    path = write_recipe()
    go(path, tmp_path / "run", overrides=("rounds.denoising_ratio=0.3",))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["segments"]
    assert set(facts) == {"en-es", "es-en", "en-es noised", "es-en noised"}
    loaded = loader.load_recipe(str(path), ("rounds.denoising_ratio=0.3",))
    fixed = {name: Segments.from_dict(value) for name, value in facts.items()}
    monkeypatch.setattr(translator, "build_segments", lambda *_: pytest.fail("built anew"))
    both = translator.load(loaded.recipe, loaded.folder, fixed)
    assert both["en-es"].templates.denoising.segments == fixed["en-es noised"]


def test_noised_rows_go_from_a_language_into_itself(
    everything: tuple[Path, Path, str], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    encode = Trainer.encode

    def seeing(self: Trainer, block: Any, phase: Phase) -> Any:
        table = encode(self, block, phase)
        tokenizer = self.translators[phase.direction.name].base.tokenizer
        for (kind, _, _), start, size in zip(block.rows, table.offset_R.tolist(), table.sizes, strict=True):
            if kind == NOISED:
                seen.append(tokenizer.decode(table.ids_X[start : start + size].tolist()))
        return table

    monkeypatch.setattr(Trainer, "encode", seeing)
    go(write_recipe(), tmp_path / "run", overrides=("rounds.denoising_ratio=0.3",))
    languages = {(text.count("Spanish: "), text.count("English: ")) for text in seen}
    assert languages == {(2, 0), (0, 2)}


# --------------------------------------------------------------------------------------------------- when stages end


@given(values=st.lists(st.integers(0, 9), max_size=12), patience=st.integers(1, 4))
def test_a_stall_is_so_many_values_that_are_no_better_than_the_best_before(values: list[int], patience: int) -> None:
    expected = len(values) > patience and all(value <= max(values[:-patience]) for value in values[-patience:])
    assert has_stopped_improving(values, patience) == expected
    assert has_stopped_improving([-value for value in values], patience, lower=True) == expected


def test_passes_end_at_a_stall(write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dev gets cheaper in the first direction for three passes, in the other one for two."""
    losses = {"en-es": [3.0, 2.0, 1.0, 1.5, 1.6, 0.1], "es-en": [3.0, 2.0, 2.0, 2.5, 2.0, 0.1]}
    monkeypatch.setattr(
        "roundtrip.backtranslation.validation.Scorer.dev_loss", lambda self, direction: losses[direction.name].pop(0)
    )
    shown = go(write_recipe(), tmp_path / "run", overrides=("train.parallel_epochs=6", "train.patience=2"))
    assert "parallel: no pass has made dev cheaper for 2; it ends here" in shown
    assert losses == {"en-es": [0.1], "es-en": [0.1]}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"]["en-es"] == 5 * 2 + 3 and list(metrics["test"]) == ["copy", "base", PARALLEL, "round-1"]


def test_what_dev_costs_is_what_the_step_would_say(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """The look after a pass goes by likelihoods, training by the loss: one number by two roads."""
    seen: list[tuple[float, float]] = []
    from roundtrip.backtranslation.dev_scoring import Scorer, parallel_texts

    plain = Scorer.dev_loss

    def both(self: Scorer, direction: Direction) -> float:
        one = self.translators[direction.name]
        pairs = list(zip(*parallel_texts(self.corpora, self.recipe, "dev", direction), strict=True))
        table = TokenDataset.of(one.template.rows(pairs))
        batch = collate(table, range(len(table)), one.base.pad_id)
        with torch.no_grad(), one.direction_model.generating() as model:
            expected = float(loss_sum(model, batch)) / int((batch.labels_BT != -100).sum())
        seen.append((plain(self, direction), expected))
        return seen[-1][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "dev_loss", both)
        go(write_recipe(), tmp_path / "run", overrides=("train.parallel_epochs=2", "train.patience=1"))
    assert len(seen) == 4
    for found, expected in seen:
        assert found == pytest.approx(expected, rel=1e-4)


def test_rounds_end_when_patience_does(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"base": 1.0, PARALLEL: 5.0, "round-1": 9.0, "round-2": 9.0, "round-3": 8.0, "round-4": 99.0, FINAL: 9.5}

    def translations(self: Any, part: str, stage: str) -> dict[str, dict[str, float]]:
        for direction in ("en-es", "es-en"):  # the table shows samples of what was translated
            path = self.run.translations / f"{part}.{stage}.{direction}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text("a\n" * 12)
        return {name: {"chrf": scores[stage], "bleu": 0.0, "unfinished": 0} for name in ("en-es", "es-en")}

    monkeypatch.setattr("roundtrip.backtranslation.validation.Scorer.translations", translations)
    overrides = ("rounds.count=5", "rounds.monolingual_lines=4", "train.patience=2", "train.final_epochs=1")
    shown = go(write_recipe(), tmp_path / "run", overrides=overrides)
    assert "no better round for 2: no further one begins" in shown
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["dev"]) == ["copy", "base", PARALLEL, "round-1", "round-2", "round-3", FINAL]
    assert metrics["best"] == FINAL


def test_a_cold_run_goes_on_when_it_may(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its passes over the pairs are not lost: no figure depends on the key."""
    path = write_recipe(("require_better_than_copy = false", "require_better_than_copy = true"))
    both = {name: {"chrf": 99.0, "bleu": 99.0} for name in ("en-es", "es-en")}
    monkeypatch.setattr("roundtrip.backtranslation.validation.Scorer.copies", lambda self, part: both)
    with pytest.raises(TrainingError, match="no better than copying"):
        go(path, tmp_path / "run")
    shown = go(path, tmp_path / "run", resume=True, overrides=("rounds.require_better_than_copy=false",))
    assert "resumed at round-1, 4 steps done" in shown


def test_a_cold_start_is_refused_with_the_figures(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(("require_better_than_copy = false", "require_better_than_copy = true"))
    both = {name: {"chrf": 99.0, "bleu": 99.0} for name in ("en-es", "es-en")}
    monkeypatch.setattr("roundtrip.backtranslation.validation.Scorer.copies", lambda self, part: both)
    with pytest.raises(TrainingError, match="no better than copying the source does: .* chrF.. .*, copying") as error:
        go(path, tmp_path / "run")
    assert "rounds.require_better_than_copy = false" in str(error.value.cure)
    assert not list((tmp_path / "run" / "examples").glob("*round*")), "nothing was written"


@pytest.mark.parametrize(("now", "cold"), [(10.0, True), (10.1, False)])
def test_cold_is_who_is_not_above_copying(now: float, cold: bool, write_recipe: WriteRecipe) -> None:
    recipe = recipe_with(write_recipe(("require_better_than_copy = false", "require_better_than_copy = true")))
    both = {"en-es": {"chrf": 10.0}, "es-en": {"chrf": 10.0}}
    scores = {"copy": both, PARALLEL: {"en-es": {"chrf": 50.0}, "es-en": {"chrf": now}}}
    if cold:
        with pytest.raises(TrainingError, match="es-en"):
            require_better_than_copy(recipe, scores)
    else:
        require_better_than_copy(recipe, scores)


# ------------------------------------------------------------------------------------------------- without dev pairs


@pytest.fixture
def without_dev(write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a few pairs, a test set and monolingual text, and no dev pairs but five lines of each language."""
    monkeypatch.setattr(corpora, "ROUND_TRIP_LINES", 5)
    cut = '[data.split]\ncorpus = { path = "toy.tsv" }\ntrain = 32\ndev = 12\ntest = 12\n'
    given = '[data]\ntrain = "train.tsv"\ntest = "test.tsv"\nmono = { en = "en.txt", es = "es.txt" }\n'
    path = write_recipe((cut, given))
    pairs = toy_pairs()
    parts = {"test.tsv": pairs[:9], "train.tsv": pairs[20:60]}
    for name, rows_of_part in parts.items():
        (tmp_path / name).write_text("".join(f"{en}\t{es}\n" for en, es in rows_of_part), encoding="utf-8")
    (tmp_path / "en.txt").write_text("".join(f"{en}\n" for en, _ in pairs[100:200]), encoding="utf-8")
    (tmp_path / "es.txt").write_text("".join(f"{es}\n" for _, es in pairs[300:400]), encoding="utf-8")
    return path


def test_without_dev_pairs_lines_that_come_back_choose(
    without_dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "ROUND_TRIP_LINES", 11)
    shown = go(
        without_dev,
        tmp_path / "run",
        overrides=("rounds.require_better_than_copy=true",),
    )
    assert "warning: there are no dev pairs; stages are chosen by the chrF++ of 11 lines" in shown
    assert "without dev pairs its quality is unknown" in shown
    assert "Chosen without dev pairs" in shown and "copies: " in shown
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["dev"]["copy"]["en-es"] == {"bleu": 100.0, "chrf": 100.0, "copied": 1.0}
    # By hand: what the stage writes, and what the other direction makes of it.
    from roundtrip.backtranslation import trained_models
    from roundtrip.backtranslation.dev_scoring import greedy_settings
    from roundtrip.backtranslation.run_folder import RunFolder
    from roundtrip.evaluation import metrics as scoring

    run = RunFolder(tmp_path / "run")
    held = [line.split("\t") for line in (run.data / "dev.tsv").read_text().splitlines()]
    assert len(held) == 11
    for name, side in (("en-es", 0), ("es-en", 1)):
        lines = [row[side] for row in held]
        one, back = (
            trained_models.load(run, trained_models.direction_into(run, code), stage="round-1")
            for code in (name[3:], name[:2])
        )
        settings = greedy_settings(run.recipe()[0])
        there = [" ".join(text.split()) for text in one.write(lines, settings, 0).texts]
        assert there == (run.translations / f"dev.round-1.{name}.txt").read_text().splitlines()
        again = [" ".join(text.split()) for text in back.write(there, settings, 0).texts]
        assert metrics["dev"]["round-1"][name]["chrf"] == pytest.approx(scoring.corpus_scores(again, lines).chrf)
    # What is held out is learnt from nowhere.
    for side, language in enumerate(("en", "es")):
        text = (run.data / f"mono.{language}.txt").read_text().splitlines()
        assert not {row[side] for row in held} & set(text) and len(text) == 89
    trained_on = [row for path in run.blocks.glob("*.jsonl") for row in map(json.loads, path.read_text().splitlines())]
    targets = {row[2] for row in trained_on if row[0] == SYNTHETIC}
    assert targets and not targets & {text for row in held for text in row}


def test_a_pair_of_copiers_is_seen(without_dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from roundtrip.engine.translator import Translator

    write = Translator.write

    def copying(self: Translator, sources: Any, *arguments: Any, **settings: Any) -> Any:
        return replace(write(self, sources, *arguments, **settings), texts=list(sources))

    monkeypatch.setattr(Translator, "write", copying)
    from roundtrip.backtranslation.dev_scoring import Scorer

    seen: list[dict[str, float]] = []
    plain = Scorer._there_and_back
    monkeypatch.setattr(Scorer, "_there_and_back", lambda *a: seen.append(plain(*a)) or seen[-1])
    with pytest.raises(TrainingError, match="'copy'"):
        go(without_dev, tmp_path / "run")
    assert seen and all(one["chrf"] == pytest.approx(100.0) and one["copied"] == 1.0 for one in seen)


def test_a_translation_that_is_too_long_for_the_way_back_counts_as_lost(
    without_dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from roundtrip.backtranslation.dev_scoring import Scorer

    plain, read = Scorer._translate, list[str]()

    def growing(self: Scorer, sources: list[str], stage: str, direction: Direction, what: str) -> Any:
        if what == "translates them back":
            read.extend(sources)
        lines, unfinished = plain(self, sources, stage, direction, what)
        return ([f"{x} {'very ' * 200}" for x in lines] if what == "translates lines" else lines), unfinished

    monkeypatch.setattr(Scorer, "_translate", growing)
    go(without_dev, tmp_path / "run")
    assert len(read) == 3 * 2 * 5 and not any(read)


# -------------------------------------------------------------------------------------------------- from scratch


def test_both_directions_begin_with_one_start_and_read_plain_text_once(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    size = "vocab_size = 420\nnum_layers = 2\nhidden_size = 48\nnum_heads = 4\nmax_positions = 128"
    text = write_recipe().read_text()
    model = next(line for line in text.splitlines() if line.startswith("path = "))
    path = write_recipe(
        (model, ""),
        ("[model]", f"[model.from_scratch]\n{size}\n[model]"),
        ("rank = 4\ndropout = 0.1", 'method = "full"'),
        ("count = 1", "count = 0"),
    )
    settings = ("train.pretrain_lines=40", "train.parallel_epochs=1")
    go(path, tmp_path / "run", overrides=settings)
    steps = json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"]
    assert steps["en-es"] == steps["es-en"] == 5 + 2
    assert len([event for event in events(tmp_path / "run", "step") if event["direction"] == "en-es"]) == 7
    assert len([event for event in events(tmp_path / "run", "step") if event["direction"] == "es-en"]) == 2
    own = [
        load_file(tmp_path / "run" / "adapters" / PRETRAIN / name / "model.safetensors") for name in ("en-es", "es-en")
    ]
    assert all(torch.equal(own[0][key], own[1][key]) for key in own[0])
    apart = go(path, tmp_path / "apart", overrides=(*settings, "model.shared=false"))
    assert apart.count("text: ") and len(events(tmp_path / "apart", "step")) == 14


def test_plain_text_alone_is_a_run(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe(("count = 1", "count = 0"))
    go(path, tmp_path / "run", overrides=("train.pretrain_lines=16", "train.parallel_epochs=0"))
    assert (tmp_path / "run" / "adapters" / PRETRAIN / "en-es").is_dir()


# ------------------------------------------------------------------------------------------------------ the objective


def stepped(two: Any, table: TokenDataset, budget: int = 100, **settings: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients of one step, which is not taken."""
    from roundtrip.models import adapters

    adapters.activate(two, "en-es", train=True)
    two.eval()
    learnt = adapters.parameters(two, "en-es")
    found: dict[str, torch.Tensor] = {}

    class Seen(Optimizer):
        def step(self, scale: float, **others: Any) -> float:
            found.update({name: p.grad.clone() * scale for name, p in learnt.items()})
            self.zero_grad()
            return 1.0

    result = train_step(two, Seen(learnt, Train(), 9), table, range(len(table)), 0, budget, 1, **settings)
    return result.loss, found


@pytest.fixture
def two(model_folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    from roundtrip.models import adapters
    from roundtrip.recipe.schema import Adapter

    made = adapters.add_adapters(
        AutoModelForCausalLM.from_pretrained(model_folder).requires_grad_(False),
        dict.fromkeys(["en-es", "es-en"], Adapter(rank=4)),
        1,
    )
    for parameter in adapters.parameters(made, "en-es").values():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
    return made


def weighted(made: list[TokenRow], weights: list[float]) -> TokenDataset:
    tables = [TokenDataset.of([row], weight=weight) for row, weight in zip(made, weights, strict=True)]
    whole = tables[0]
    for table in tables[1:]:
        whole = whole.plus(table)
    return whole


def test_a_weighted_step_is_the_weighted_mean_of_its_rows(two: Any) -> None:
    made, weights = rows(6, seed=5), [1.0, 0.25, 0.25, 1.0, 0.5, 1.0]
    loss, grads = stepped(two, weighted(made, weights))
    labels = [len(row.ids) - row.start for row in made]
    counted, total = sum(weight * number for weight, number in zip(weights, labels, strict=True)), sum(labels)
    alone = [stepped(two, TokenDataset.of([row])) for row in made]
    shares = [weight * number / counted for weight, number in zip(weights, labels, strict=True)]
    assert loss == pytest.approx(sum(share * one for share, (one, _) in zip(shares, alone, strict=True)), rel=1e-5)
    for name, grad in grads.items():
        # The loss is a weighted mean; the gradient is that of a sum over all labels, so that light steps are light.
        expected = sum(share * own[name] for share, (_, own) in zip(shares, alone, strict=True)) * counted / total
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-6)


def test_a_step_of_light_rows_alone_is_a_light_step(two: Any) -> None:
    made = rows(6, seed=6)
    plain, half = stepped(two, TokenDataset.of(made)), stepped(two, TokenDataset.of(made, weight=0.5))
    assert half[0] == pytest.approx(plain[0], rel=1e-6)
    for name, grad in plain[1].items():
        torch.testing.assert_close(half[1][name], grad * 0.5, rtol=1e-4, atol=1e-7)


def test_weights_follow_their_rows_through_picking() -> None:
    table = weighted(rows(4), [1.0, 0.5, 0.25, 0.125]).select([3, 0, 2])
    assert table.weights == [0.125, 1.0, 0.25]
    assert TokenDataset.of(rows(2)).plus(table).weights == [1.0, 1.0, 0.125, 1.0, 0.25]


def test_smoothed_labels_cost_what_torch_says(two: Any) -> None:
    table = TokenDataset.of(rows(4, seed=7))
    batch = collate(table, range(4), 0)
    keep_BT, targets_N = batch.predictions()
    with torch.no_grad():
        logits_NV = two(input_ids=batch.ids_BT, **batch.inputs).logits[keep_BT].float()
        log_NV = logits_NV.log_softmax(-1)
        plain = -log_NV.gather(1, targets_N[:, None])[:, 0]
        expected = (0.8 * plain + 0.2 * -log_NV.mean(-1)).sum()
        torch.testing.assert_close(loss_sum(two, batch, smoothing=0.2), expected, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(loss_sum(two, batch), plain.sum(), rtol=1e-4, atol=1e-3)
    assert stepped(two, table, smoothing=0.2)[0] > stepped(two, table)[0] or float(expected) != float(plain.sum())


@pytest.mark.parametrize("packed", [False, True])
def test_the_distance_to_the_base_is_part_of_the_step(two: Any, packed: bool) -> None:
    """Against the whole thing by hand: both models, all logits, and autograd."""
    from roundtrip.models import adapters, attention

    made, plain = rows(5, seed=8), [TokenRow(row.ids[2:], 1) for row in rows(5, seed=9)]
    attention.choose(two, "varlen" if packed else "eager")
    table, kl_penalty = TokenDataset.of(made), KLPenalty(TokenDataset.of(plain), 0.7)
    loss, grads = stepped(two, table, kl_penalty=kl_penalty, packed=packed)
    attention.choose(two, "eager")
    adapters.activate(two, "en-es", train=True)
    two.eval()
    batch, whole = collate(table, range(5), 0), collate(kl_penalty.table, range(5), 0)
    labels = int((batch.labels_BT != -100).sum())
    keep_BT, _ = whole.predictions()
    own = two(input_ids=whole.ids_BT, **whole.inputs).logits[keep_BT].float().log_softmax(-1)
    with torch.no_grad(), two.disable_adapter():
        base = two(input_ids=whole.ids_BT, **whole.inputs).logits[keep_BT].float().log_softmax(-1)
    distance = (base.exp() * (base - own)).sum()
    assert distance.item() > 1.0
    plain_loss = loss_sum(two, batch) / labels
    assert loss == pytest.approx(plain_loss.item(), rel=1e-4), "the distance is no part of the loss that is shown"
    expected = plain_loss + 0.7 * distance / int(keep_BT.sum())
    learnt = adapters.parameters(two, "en-es")
    for parameter in learnt.values():
        parameter.grad = None
    expected.backward()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, learnt[name].grad, rtol=1e-3, atol=1e-5)


def test_an_adapter_that_has_learnt_nothing_is_at_its_base(two: Any) -> None:
    from roundtrip.models import adapters

    for name, parameter in adapters.parameters(two, "en-es").items():
        if ".lora_B." in name:
            torch.nn.init.zeros_(parameter)
    table = TokenDataset.of(rows(4, seed=3))
    plain, kl_penalty = (
        stepped(two, table),
        stepped(two, table, kl_penalty=KLPenalty(TokenDataset.of([TokenRow(row.ids, 0) for row in rows(4)]), 5.0)),
    )
    for name, grad in plain[1].items():
        torch.testing.assert_close(kl_penalty[1][name], grad, rtol=1e-3, atol=1e-6)


def test_a_run_that_keeps_near_its_base_moves_less(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    moved = {}
    for weight in (0.0, 20.0):
        go(write_recipe(), tmp_path / str(weight), overrides=(f"train.kl_weight={weight}", "generate.temperature=0.0"))
        tensors = load_file(tmp_path / str(weight) / "adapters" / "round-1" / "en-es" / "adapter_model.safetensors")
        moved[weight] = sum(float(value.square().sum()) for name, value in tensors.items() if "lora_B" in name)
    assert moved[20.0] < 0.7 * moved[0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_is_that_of_the_past_and_is_put_back(dtype: torch.dtype) -> None:
    """Also where a parameter is its own master, over the same memory."""
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=dtype).view(3, 4))
    optimizer = Optimizer({"w": parameter}, Train(lr=0.1, lr_schedule="constant", ema_decay=0.6, lr_warmup_steps=0), 9)
    expected = parameter.detach().float().clone()
    for number in range(5):
        parameter.grad = torch.full_like(parameter, 0.1 * (number + 1))
        optimizer.step(1.0)
        decay = min(0.6, (1 + number) / (10 + number))
        expected += (1 - decay) * (optimizer.state()["master/w"] - expected)
    now = parameter.detach().clone()
    torch.testing.assert_close(optimizer.state()["average/w"], expected)
    with optimizer.averaged():
        torch.testing.assert_close(parameter.detach().float(), expected.to(dtype).float())
        assert not torch.equal(parameter.detach(), now)
    assert torch.equal(parameter.detach(), now)
    saved = {name: value.clone() for name, value in optimizer.state().items()}
    other = Optimizer({"w": torch.nn.Parameter(torch.zeros(3, 4, dtype=dtype))}, optimizer.recipe, 9)
    other.copy_from(optimizer)
    assert all(torch.equal(value, other.state()[name]) for name, value in saved.items())
    assert other.step_number == 5 and other.digest() == optimizer.digest()


def test_without_a_decay_nothing_is_averaged() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Optimizer({"w": parameter}, Train(), 9)
    assert set(optimizer.state()) == {"master/w"}
    with optimizer.averaged():
        assert torch.equal(parameter, torch.ones(2, 2))


def test_a_cut_keeps_given_dev_and_test_out_of_training(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    from roundtrip.data.corpora import prepare

    pairs = toy_pairs()
    path = write_recipe()
    (tmp_path / "dev.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in pairs[:9]), encoding="utf-8")
    settings = ("data.split.dev=0", "data.dev='dev.tsv'")
    loaded = loader.load_recipe(str(path), settings)
    folders = []
    for number, more in enumerate([(), ("seed=99",), ("data.split.seed=3", "seed=99"), ("data.split.seed=4",)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = prepare(
            loader.load_recipe(str(path), (*settings, *more)).recipe, loaded.folder, folder, lambda text: None
        )
        assert list(found.dev) == pairs[:9] and len(found.test) == 12 and len(found.train) == 32
        sides = [{row[side] for row in found.dev} for side in (0, 1)]
        assert not any(row[side] in sides[side] for row in (*found.train, *found.test) for side in (0, 1))
        assert found.counts["corpus"]["also in dev or test"] == 9
        folders.append(list(found.train))
    assert folders[0] != folders[1] and folders[0] == folders[2] and folders[2] != folders[3]


def test_settings_of_generation_reach_who_writes(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """`check` shows what a recipe with everything would do."""
    import io

    from rich.console import Console

    from roundtrip.backtranslation.session import check

    shown = io.StringIO()
    check(loader.load_recipe(str(write_recipe()), EVERYTHING), EventLog(Console(file=shown, width=200)))
    assert "8 new lines, 8 synthetic sources, 12 earlier ones and 13 real pairs, and 8 noised lines" in shown.getvalue()
