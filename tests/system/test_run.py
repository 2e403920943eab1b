"""Whole runs: what they leave behind, how they are resumed, and the message where one cannot start or continue."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from roundtrip.backtranslation import checkpoint, filtering, token_rows, trained_models
from roundtrip.backtranslation.dev_scoring import greedy_settings
from roundtrip.backtranslation.run_folder import RunFolder, reopen, run_lock
from roundtrip.backtranslation.synthesis import Synthesizer
from roundtrip.backtranslation.trainer import Trainer
from roundtrip.cli import check, train, translate
from roundtrip.cli.app import exit_with
from roundtrip.data import corpora
from roundtrip.engine import checked_translation, long_inputs
from roundtrip.engine.checked_translation import CheckedTranslation
from roundtrip.models import direction_model
from roundtrip.recipe.loader import load_recipe
from roundtrip.recipe.plan import Phase
from roundtrip.runtime.errors import Interrupted, RunError, TextError, TrainingError, quantity
from roundtrip.tokens.batching import TokenDataset, collate
from roundtrip.tokens.row_builder import TEXT_ONLY, RowBuilder
from roundtrip.tokens.splice.canonicality import PAIR
from tests.conftest import WriteRecipe
from tests.runs import NAMES, assert_same, change_json, end_state, go, read_events, run_module


def test_two_steps_by_the_command_line(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe(("train = 32", "train = 16"), ("monolingual_lines = 24", "monolingual_lines = 10"))
    done = run_module(
        "roundtrip.train", str(path), "--out", str(tmp_path / "run"), "--set", "rounds.parallel_ratio=0.0"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"] == {"en-es": 2, "es-en": 2}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["overrides"] == ["rounds.parallel_ratio=0.0"]
    assert "Test scores: chrF++ / BLEU" in done.stdout
    assert "\x1b" not in done.stdout, "no escape codes where the output is not a terminal"
    translated = run_module(
        "roundtrip", "translate", str(tmp_path / "run"), "--to", "es", stdin="I see the house.\n\nThe moon\n"
    )
    assert translated.returncode == 0, translated.stderr
    assert len(translated.stdout.splitlines()) == 3
    assert translated.stdout.splitlines()[1] == ""


def test_what_a_run_leaves_behind(finished: tuple[Path, Path, str]) -> None:
    recipe, folder, shown = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["test"]) == ["copy", "base", "parallel", "round-1"]
    assert list(metrics["dev"]) == ["copy", "base", "parallel", "round-1"]
    for scores in metrics["test"].values():
        assert set(scores) == set(NAMES)
        assert all(0 <= values["bleu"] <= 100 and 0 <= values["chrf"] <= 100 for values in scores.values())
    for name in NAMES:
        best = max(("parallel", "round-1"), key=lambda stage: metrics["dev"][stage][name]["chrf"])
        comparison = metrics["comparison"][name]
        assert metrics["best"][name] == best == comparison["system"]
        assert {best, comparison["baseline"]} == {"parallel", "round-1"}
        assert {entry["metric"] for entry in comparison["metrics"]} == {"BLEU", "chrF++"}
    assert "nw:2" in metrics["signatures"]["en-es"]["chrf"] and "tok:13a" in metrics["signatures"]["en-es"]["bleu"]
    assert all(len(samples) == 3 for samples in metrics["samples"].values())
    assert set(metrics["seconds"]) == {"reading", "loading", "checking", "generating", "training", "scoring"}
    assert metrics["steps"] == {"en-es": 2 + 3, "es-en": 2 + 3}
    assert (folder / "recipe.toml").read_text() == recipe.read_text()
    kinds = [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert kinds.count("step") == 10 and kinds.count("phase") == 4 and kinds.count("examples") == 2
    assert kinds[0] == "text" and kinds[-1] == "end"
    for part in ("base model, zero-shot", "copying the source", "* kept as best", "paired bootstrap", "reference"):
        assert part in shown
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt")), "no pickles"
    assert not list(folder.rglob(".*"))


def test_examples_of_a_round_are_new_lines_with_synthetic_sources_and_parallel_pairs(
    finished: tuple[Path, Path, str],
) -> None:
    _, folder, _ = finished
    for number, name, target in ((2, "en-es", "mono.es.txt"), (3, "es-en", "mono.en.txt")):
        lines = (folder / "examples" / f"{number:04d}-round-1-{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        synthetic = [row for row in rows if row[0] == "synthetic"]
        parallel = {(row[1], row[2]) for row in rows if row[0] == "parallel"}
        mono = set((folder / "data" / target).read_text().splitlines())
        assert synthetic and all(row[2] in mono for row in synthetic)
        pairs = {tuple(line.split("\t")) for line in (folder / "data" / "train.tsv").read_text().splitlines()}
        assert parallel <= {pair if name == "en-es" else pair[::-1] for pair in pairs}
        assert len(parallel) == round(len(synthetic) * 0.4 / 0.6)


def test_adapters_load_with_peft_alone_and_give_the_same_logits(
    finished: tuple[Path, Path, str], model_folder: Path
) -> None:
    recipe, folder, _ = finished
    translator = trained_models.load(RunFolder(folder), trained_models.direction_into(RunFolder(folder), "es"))
    batch = collate(TokenDataset.of(translator.template.rows([("I see the moon.", "Veo la luna.")])), [0], 3)
    alone = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation="eager"), folder / "adapters/best/en-es"
    ).eval()
    with torch.no_grad():
        ours = translator.direction_model.model(batch.ids_BT, attention_mask=batch.inputs["attention_mask"]).logits
        theirs = alone(batch.ids_BT, attention_mask=batch.inputs["attention_mask"]).logits
        with alone.disable_adapter():
            base = alone(batch.ids_BT, attention_mask=batch.inputs["attention_mask"]).logits
    assert torch.equal(ours, theirs)
    assert not torch.allclose(theirs, base, atol=1e-3)
    config = json.loads((folder / "adapters/best/en-es/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_folder) and config["inference_mode"] is True


@pytest.mark.parametrize("at", [1, 3, 5, 6, 8, 9])
def test_a_resumed_run_equals_an_uninterrupted_one(
    finished: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    recipe, whole, _ = finished
    step = Trainer.train_step

    def stopping(self: Trainer, *arguments: Any) -> Any:
        result = step(self, *arguments)
        if self.state.total_steps() == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(Trainer, "train_step", stopping)
    with pytest.raises(Interrupted) as caught:
        go(recipe, tmp_path / "run")
    assert caught.value.exit_code == 143
    assert not (tmp_path / "run" / "metrics.json").exists()
    monkeypatch.undo()
    shown = go(recipe, tmp_path / "run", resume=True)
    assert f"{quantity(at, 'step')} done" in shown
    assert_same(end_state(tmp_path / "run"), end_state(whole))


@pytest.mark.parametrize("tokens", [("tokens.mode=text",), ("tokens.mode=splice",), ()])
def test_every_way_to_build_rows_trains_the_same_adapters(
    finished: tuple[Path, Path, str], tmp_path: Path, tokens: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the splice or the text path, checked on device or host: to the last bit the same run."""
    recipe, whole, shown = finished
    monkeypatch.setattr(token_rows, "AUDIT_SHARE", 1.0)
    go(recipe, tmp_path / "run", overrides=tokens)
    one, other = end_state(tmp_path / "run"), end_state(whole)
    counts_by_name, usual = one.pop("token_rows"), other.pop("token_rows")
    assert_same(one, other)
    synthetic = {name: sum(counts.values()) for name, counts in usual.items()}
    assert {name: sum(counts.values()) for name, counts in counts_by_name.items()} == synthetic
    assert all(set(counts) == {"splice"} and counts["splice"] > 0 for counts in usual.values())
    expected = {TEXT_ONLY} if tokens == ("tokens.mode=text",) else {"splice"}
    assert all(set(counts) == expected for counts in counts_by_name.values())
    assert "token rows of en-es: splice, verified on the device" in shown


def test_rows_that_take_the_text_path_are_counted_and_reported(
    finished: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole, _ = finished
    verify = RowBuilder._verify

    def verify_two_of_three(self: RowBuilder, *arguments: Any) -> list[int]:
        return [reason if i % 3 else PAIR for i, reason in enumerate(verify(self, *arguments))]

    monkeypatch.setattr(RowBuilder, "_verify", verify_two_of_three)
    shown = go(recipe, tmp_path / "run")
    one, other = end_state(tmp_path / "run"), end_state(whole)
    counts_by_name = one.pop("token_rows")
    del other["token_rows"]
    assert_same(one, other)
    assert all(counts["not canonical inside"] > 0 for counts in counts_by_name.values())
    assert "synthetic rows took the text path: {'not canonical inside':" in shown
    reported = [event["rows"] for event in read_events(tmp_path / "run", "token_rows")]
    assert reported == list(counts_by_name.values())
    reports = {event["direction"]: event for event in read_events(tmp_path / "run", "compatibility")}
    assert set(reports) == set(NAMES) and reports["en-es"]["mode"] == "per_row"


def test_token_pairs_that_the_checker_has_settled_are_in_the_checkpoint(finished: tuple[Path, Path, str]) -> None:
    newest = checkpoint.newest(finished[1] / "checkpoints", lambda text: None)
    assert newest is not None
    assert len(newest[1]["pairs"]["good"]) > 50


def test_another_tokenizer_is_refused_at_resume(
    write_recipe: WriteRecipe, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    path = write_recipe((str(model_folder), str(folder)))
    step = Trainer.train_step

    def stopping(self: Trainer, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", stopping)
    with pytest.raises(Interrupted):
        go(path, tmp_path / "run")
    monkeypatch.undo()
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    document["model"]["merges"][-2:] = document["model"]["merges"][-2:][::-1]
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(RunError, match="base model of en-es is not the one this run was started with"):
        go(path, tmp_path / "run", resume=True)


def test_stopped_while_generating_loses_nothing(
    finished: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole, _ = finished

    translate_lines = Synthesizer.translate

    def stopping(self: Synthesizer, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return translate_lines(self, *arguments)

    monkeypatch.setattr(Synthesizer, "translate", stopping)
    with pytest.raises(Interrupted) as caught:
        go(recipe, tmp_path / "run")
    assert caught.value.exit_code == 130
    monkeypatch.undo()
    assert "4 steps done" in go(recipe, tmp_path / "run", resume=True)
    assert_same(end_state(tmp_path / "run"), end_state(whole))


def test_a_second_run_from_the_same_seed_is_the_same_and_another_seed_is_not(
    finished: tuple[Path, Path, str], tmp_path: Path
) -> None:
    recipe, whole, _ = finished
    go(recipe, tmp_path / "same")
    assert_same(end_state(tmp_path / "same"), end_state(whole))
    go(recipe, tmp_path / "other", overrides=("seed=4",))
    assert end_state(tmp_path / "other")["examples"] != end_state(whole)["examples"]


def test_a_finished_run_is_shown_again(finished: tuple[Path, Path, str]) -> None:
    recipe, folder, _ = finished
    before = end_state(folder)
    shown = go(recipe, folder, resume=True)
    assert "this run is complete" in shown and "Test scores" in shown
    assert_same(end_state(folder), before)


def test_resume_refuses_another_recipe_or_version(
    finished: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder, _ = finished
    with pytest.raises(RunError, match=r"train\.lr: 0\.005 then, 0\.1 now"):
        reopen(folder, load_recipe(str(recipe), ["train.lr=0.1"]))
    monkeypatch.setattr("roundtrip.backtranslation.run_folder.versions", lambda: {"torch": "9.9"})
    with pytest.raises(RunError, match=r"version of torch: '2\.\S+' then, '9\.9' now"):
        reopen(folder, load_recipe(str(recipe)))


def test_a_stream_that_ends_starts_over_and_is_reported(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    cut = '[data.split]\ncorpus = { path = "toy.tsv" }\ntrain = 32\ndev = 12\ntest = 12'
    own = """[data]
train = { path = "toy.tsv", limit = 20 }
dev = "dev.tsv"
test = "test.tsv"
[data.mono]
en = "mono.en"
es = "mono.es"
"""
    (tmp_path / "dev.tsv").write_text("The flag\tLa bandera\nThe sun\tEl sol\n")
    (tmp_path / "test.tsv").write_text("The sea\tEl mar\nThe sky\tEl cielo\n")
    (tmp_path / "mono.en").write_text("".join(f"I have {n} cats.\n" for n in range(30)))
    (tmp_path / "mono.es").write_text("".join(f"Tengo {n} gatos.\n" for n in range(7)))
    shown = go(write_recipe((cut, own)), tmp_path / "run")
    assert "all lines of es were read; the next ones start over" in shown
    assert "all lines of en were read" not in shown
    restarted = {event["direction"]: event["restarted"] for event in read_events(tmp_path / "run", "examples")}
    assert "mono.es" in restarted["en-es"] and "mono.en" not in restarted["es-en"]


def test_all_rejected_stops_with_counts_and_advice(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filtering, "MAX_COPY_CHRF", 0.0)
    with pytest.raises(TrainingError, match=r"all 24 synthetic sources were rejected(.|\n)*parallel_epochs"):
        go(write_recipe(("max_length_ratio = 100.0", "max_length_ratio = 1.0")), tmp_path / "run")


def test_rows_over_the_limit_are_left_out_and_counted(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    shown = go(write_recipe(("max_length = 96", "max_length = 34")), tmp_path / "run")
    assert "rows over 34 tokens left out" in shown
    with pytest.raises(TrainingError, match=r"all rows \(32\) are over 5 tokens"):
        go(write_recipe(("max_length = 96", "max_length = 5")), tmp_path / "run2")


def test_gradient_checkpointing_learns_the_same(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    recipe, whole, _ = finished
    go(recipe, tmp_path / "run", overrides=("model.gradient_checkpointing=true",))
    one, other = end_state(tmp_path / "run"), end_state(whole)
    for name, tensors in other["tensors"].items():
        for key, value in tensors.items():
            assert torch.allclose(one["tensors"][name][key], value, rtol=1e-2, atol=1e-3), (name, key)


def test_chat_template_and_sampling(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe(
        ('kind = "plain"', 'kind = "chat"'), ("[filter]", "[generate]\ntemperature = 0.8\ntop_p = 0.9\n[filter]")
    )
    assert "Test scores" in go(path, tmp_path / "run")
    assert RunFolder(tmp_path / "run").manifest().segments["en-es"].mid == "<|im_end|>\n<|im_start|>assistant\n"


CUT = '[data.split]\ncorpus = { path = "toy.tsv" }\ntrain = 32\ndev = 12\ntest = 12'
MISTAKES: dict[str, tuple[tuple[str, str], str]] = {
    "typo in a key": (("lr = 5e-3", "learning_rate = 5e-3"), "train.learning_rate: unknown key"),
    "missing file": (("toy.tsv", "corpus.tsv"), "no such file: 'corpus.tsv'"),
    "one-column tsv": (("toy.tsv", "one.tsv"), "one.tsv:1: 1 column,"),
    "empty file": (("toy.tsv", "empty.tsv"), "0 usable pairs"),
    "same language twice": (('["en", "es"]', '["es", "es"]'), "are the same language"),
    "unknown model": (('path = "/', 'path = "/nowhere/'), "model.path"),
    "unknown device": (('dtype = "float32"', 'dtype = "float32"\ndevice = "cuda:7"'), "no device 'cuda:7'"),
    "unknown layers": (("rank = 4", 'rank = 4\ntargets = ["q_prog"]'), "adapter.targets"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_likely_mistakes_end_in_one_clear_message(
    write_recipe: WriteRecipe, tmp_path: Path, shell: Callable[..., Any], mistake: str
) -> None:
    change, message = MISTAKES[mistake]
    (tmp_path / "one.tsv").write_text("Hello\nWorld\n")
    (tmp_path / "empty.tsv").write_text("")
    code, _, errors = shell(train, str(write_recipe(change)), "--out", "run")
    assert code == 2
    assert errors.startswith("error: ") and message in errors
    assert "Traceback" not in errors
    # Once mended, the same command works: what a failed run left behind does not matter.
    if mistake in {"empty file", "unknown layers"}:
        assert shell(train, str(write_recipe()), "--out", "run")[0] == 0


def test_a_folder_in_use_is_refused(write_recipe: WriteRecipe, tmp_path: Path, shell: Callable[..., Any]) -> None:
    with run_lock(tmp_path / "run"):
        code, _, errors = shell(train, str(write_recipe()), "--out", "run")
    assert code == 2 and "in use by another process" in errors


def test_a_folder_that_holds_something_is_refused(
    finished: tuple[Path, Path, str], write_recipe: WriteRecipe, tmp_path: Path, shell: Callable[..., Any]
) -> None:
    recipe, folder, _ = finished
    code, _, errors = shell(train, str(recipe), "--out", str(folder))
    assert code == 2 and "already holds a run" in errors and "--resume" in errors
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    code, _, errors = shell(train, str(write_recipe()), "--out", "home")
    assert code == 2 and "is not empty and not a run" in errors
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"
    (tmp_path / "home" / "lock").unlink()
    code, _, errors = shell(train, str(write_recipe()), "--out", "home", "--resume")
    assert code == 2 and "not a run folder" in errors
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter.txt"]
    code, _, errors = shell(train, str(write_recipe()), "--out", "nothere", "--resume")
    assert code == 2 and "nothing to resume" in errors and "omit --resume" in errors
    assert not (tmp_path / "nothere").exists()


def test_an_unwritable_folder_is_refused(write_recipe: WriteRecipe, tmp_path: Path, shell: Callable[..., Any]) -> None:
    (tmp_path / "file").write_text("")
    code, _, errors = shell(train, str(write_recipe()), "--out", "file/run")
    assert code == 2 and "cannot be written" in errors and "--out" in errors


def test_ctrl_c_saves_and_exits_130(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    recipe, whole, _ = finished
    command = [sys.executable, "-m", "roundtrip.train", str(recipe), "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.time() + 200
        events = tmp_path / "run" / "events.jsonl"
        while time.time() < deadline and not (events.exists() and '"step"' in events.read_text()):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    assert errors.startswith("stopped: ") and "Traceback" not in errors
    go(recipe, tmp_path / "run", resume=True)
    assert_same(end_state(tmp_path / "run"), end_state(whole))


def test_translation_keeps_lines_and_refuses_by_number(
    finished: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch, capsysbinary: Any
) -> None:
    _, folder, _ = finished
    long_line = " ".join(["house"] * 5000)
    sentences = "I see the red house here. " * 12
    lines = ["I see the moon.", "", long_line, sentences, "  ", "The end"]

    class Input:
        buffer = io.BytesIO(("\n".join(lines) + "\n").encode())

    monkeypatch.setattr(sys, "stdin", Input)
    monkeypatch.setattr(sys, "argv", ["translate", str(folder), "--to", "es"])
    with pytest.raises(SystemExit) as caught:
        exit_with(translate.main)
    captured = capsysbinary.readouterr()
    output = captured.out.decode().split("\n")
    assert caught.value.code == 2
    assert len(output) == len(lines) + 1 and output[-1] == ""
    assert output[1] == output[2] == output[4] == ""
    assert "line 3: a sentence of 5000 words is too long" in captured.err.decode()
    # Sentence by sentence: twelve equal sentences give twelve equal translations.
    translator = trained_models.load(RunFolder(folder), trained_models.direction_into(RunFolder(folder), "es"))
    settings = greedy_settings(RunFolder(folder).recipe())
    (alone,) = long_inputs.translate_any_length(translator, ["I see the red house here."], settings, [], [])
    assert output[3] == " ".join([alone] * 12)
    assert output[0] == next(long_inputs.translate_any_length(translator, ["I see the moon."], settings, [], []))


@pytest.mark.parametrize(
    "long",
    [
        b"x" * (20 << 20),
        b"word " * (1 << 20),
        "\u0301\u0327".encode() * (1 << 20),
        b" " * (9 << 20) + b"x",
        b"<" * 70_000,
    ]
    + ["« ".encode() * (1 << 20), b"<|im_end|>" * (1 << 20), b"\xff" * (1 << 20)],
)
def test_a_line_that_is_too_long_is_refused_by_itself(
    finished: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch, capsysbinary: Any, long: bytes
) -> None:
    content = b"I see the moon.\n" + long + b"\n\nThe end.\n" + long
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    monkeypatch.setattr(sys, "argv", ["translate", str(finished[1]), "--to", "es"])
    start = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        exit_with(translate.main)
    captured = capsysbinary.readouterr()
    assert caught.value.code == 2 and time.monotonic() - start < 20
    output = captured.out.split(b"\n")
    assert len(output) == 6 and output[1] == output[2] == output[4] == b"" and output[0] and output[3]
    assert "line 2: more than 50,000 characters" in (errors := captured.err.decode()) and "line 5: more" in errors
    assert "2 lines without a translation" in errors


BAD = b"bad \xff byte\n"


@pytest.mark.parametrize(
    ("content", "num_lines", "message"),
    [
        (b"I see the moon.\nThe end.\n" + BAD + b"More.\n", 2, "standard input:3: not UTF-8 (byte 0xff)"),
        (b"a\n" * translate.CHUNK_LINES + b"b\n" + BAD, translate.CHUNK_LINES + 1, "standard input:514: not UTF-8"),
        (BAD, 0, "standard input:1: not UTF-8"),
        (b'<?xml version="1.0"?>\n<xliff>\n', 0, "standard input: this is XML"),
        (b"\xef\xbb\xbf<!DOCTYPE html>\n", 0, "standard input: this is HTML"),
        (b'[{"en": "a"}]\n', 0, "standard input: this is JSON"),
        (b'\n<xliff version="1.2">\n', 1, "standard input: this is XML"),
    ],
)
def test_lines_before_one_that_cannot_be_read_are_translated(
    finished: tuple[Path, Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: Any,
    content: bytes,
    num_lines: int,
    message: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    monkeypatch.setattr(sys, "argv", ["translate", str(finished[1]), "--to", "spa_Latn"])
    monkeypatch.setattr(
        checked_translation, "translate_checked", lambda _, texts, *rest: [CheckedTranslation(text) for text in texts]
    )
    with pytest.raises(SystemExit) as caught:
        exit_with(translate.main)
    captured = capsysbinary.readouterr()
    assert caught.value.code == 2 and message in captured.err.decode()
    assert captured.out == b"".join(content.splitlines(keepends=True)[:num_lines])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "fr"), "translates between en and es, not into 'fr'"),
        (("--to", "es", "--stage", "round-9"), "kept: best, parallel, round-1"),
    ],
)
def test_translate_mistakes(
    finished: tuple[Path, Path, str], shell: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    code, _, errors = shell(translate, str(finished[1]), *arguments)
    assert code == 2 and message in errors
    code, _, errors = shell(translate, "nowhere", "--to", "es")
    assert code == 2 and "not a run folder" in errors


def test_a_recipe_that_trains_nothing_is_refused(write_recipe: WriteRecipe, shell: Callable[..., Any]) -> None:
    path = write_recipe(("count = 1", "count = 0"), ("parallel_epochs = 1", "parallel_epochs = 0"))
    code, _, errors = shell(train, str(path))
    assert code == 2 and "train nothing" in errors


def test_a_line_too_long_for_the_model_is_found_before_training(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    cut = '[data.split]\ncorpus = { path = "toy.tsv" }\ntrain = 32\ndev = 12\ntest = 12'
    own = "[data]\ntrain='toy.tsv'\ndev='dev.tsv'\nmono={en='en.txt',es='en.txt'}"
    (tmp_path / "dev.tsv").write_text(f"A bird\tUn ave\n{'house ' * 90}\tcasas\n")
    (tmp_path / "en.txt").write_text("The moon\n")
    with pytest.raises(TextError, match=r"data\.dev \(en\): line 2 has \d+ tokens"):
        go(write_recipe((cut, own)), tmp_path / "run")


@pytest.mark.parametrize("damage", ["{}", "[1]", "{", '{"recipe": {}}'])
def test_a_damaged_run_folder_is_named(tmp_path: Path, shell: Callable[..., Any], damage: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(damage)
    code, _, errors = shell(translate, "run", "--to", "es")
    assert code == 2 and "run" in errors and "Traceback" not in errors


def test_another_base_is_refused(finished: tuple[Path, Path, str], tmp_path: Path, shell: Callable[..., Any]) -> None:
    _, folder, _ = finished
    shutil.copytree(folder, tmp_path / "run")
    change_json(tmp_path / "run" / "run.json", base_hashes={"en-es": "0" * 32})
    code, _, errors = shell(translate, "run", "--to", "es")
    assert code == 2 and "not the one this run was started with" in errors


@pytest.mark.parametrize("damage", ["weights cut", "weight missing", "too many tokens"])
def test_a_damaged_model_is_refused(
    write_recipe: WriteRecipe, tmp_path: Path, model_folder: Path, shell: Callable[..., Any], damage: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    file = broken / "model.safetensors"
    if damage == "weights cut":
        file.write_bytes(file.read_bytes()[:2000])
    else:
        tensors = load_file(file)
        if damage == "weight missing":
            del tensors["model.layers.1.mlp.up_proj.weight"]
        else:
            config = json.loads((broken / "config.json").read_text())
            (broken / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
            tensors = {key: value[:300] if value.shape[0] > 300 else value for key, value in tensors.items()}
        save_file(tensors, file, metadata={"format": "pt"})
    code, _, errors = shell(train, str(write_recipe()), "--out", "run", "--set", f"model.path={broken}")
    assert code == 2 and errors.startswith("error: ") and "Traceback" not in errors
    assert str(file if damage == "weights cut" else "model.path") in errors


def test_stopped_while_scoring_keeps_the_last_step(
    finished: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole, _ = finished
    validate = Trainer.validate_and_keep_best

    def stopping(self: Trainer, phase: Phase) -> None:
        if phase.stage == "parallel":
            os.kill(os.getpid(), signal.SIGTERM)
        validate(self, phase)

    monkeypatch.setattr(Trainer, "validate_and_keep_best", stopping)
    # By the interval alone no checkpoint would be written by then.
    overrides = ("checkpoint.every_steps=1000",)
    with pytest.raises(Interrupted, match="--resume"):
        go(recipe, tmp_path / "run", overrides=overrides)
    monkeypatch.undo()
    assert "4 steps done" in go(recipe, tmp_path / "run", resume=True, overrides=overrides)
    assert_same(end_state(tmp_path / "run"), end_state(whole))


OWN = "[data]\ntrain = {train}\ndev = 'dev.tsv'\ntest = 'test.tsv'\n[data.mono]\nen = 'mono.en'\nes = 'mono.es'\n"
VARIANTS = {
    "languages": "['en-US', 'en-GB']",
    "data.mono": "{en-US = 'mono.en', en-GB = 'mono.es'}",
    "filter.language": "true",
}
NO_TEXT_NEEDED: dict[str, tuple[str, dict[str, str]]] = {
    "no chat template": ('set template.kind = "plain"', {"template.kind": "chat", "model.path": "no_template"}),
    "no model": ("model.path", {"model.path": "./nowhere"}),
    "no causal model": ("is no causal language model", {"model.path": "t5"}),
    "no tokenizer": ("model.path", {"model.path": "no_tokenizer"}),
    "device": ("use 'auto' or 'cpu'", {"model.device": "cuda:9"}),
    "quantized on a cpu": ('set it to "none"', {"model.quantize": "8bit", "model.device": "cpu"}),
    "CUDA graphs on a cpu": ("generate.cuda_graphs", {"generate.cuda_graphs": "true", "model.device": "cpu"}),
    "Liger on a cpu": ("model.use_liger_kernel = false", {"model.use_liger_kernel": "true", "model.device": "cpu"}),
    "flash-attn": ('model.attention = "auto"', {"model.attention": "flash_attention_2"}),
    "adapter of another rank": ("its r is 2, the recipe's 4", {"adapter.init": "adapter"}),
    "language identification": ("set filter.language = false", VARIANTS),
    "missing file": ("no such file: 'gone.tsv'", {"data.train": "gone.tsv"}),
    "two files as two sources": ('{ path = ["mono.en", "mono.es"] }', {"data.train": "['mono.en', 'mono.es']"}),
    "one format for two": ("a .json file is not one of plain lines", {"data.train": "a.json"}),
    "a pair in a format of one file": (
        "Omit `format`",
        {"data.train": "{path = ['mono.en', 'mono.es'], format = 'tsv'}"},
    ),
    "a file in two parts": ("is also in data.test", {"data.train": "test.tsv"}),
}


@pytest.mark.parametrize("mistake", NO_TEXT_NEEDED)
def test_what_needs_no_text_is_refused_before_text_is_read(
    write_recipe: WriteRecipe,
    model_folder: Path,
    tmp_path: Path,
    shell: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    mistake: str,
) -> None:
    message, changes = NO_TEXT_NEEDED[mistake]
    split = '[data.split]\ncorpus = { path = "toy.tsv" }\ntrain = 32\ndev = 12\ntest = 12\n'
    path = write_recipe((split, OWN.format(train="'toy.tsv'")))
    for name, text in {"dev.tsv": "a\tb\n", "test.tsv": "c\td\n", "mono.en": "e\n", "mono.es": "f\n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "a.json").write_text("[]")
    for name in ("no_template", "no_tokenizer", "t5"):
        shutil.copytree(model_folder, tmp_path / name)
    for file in tmp_path.glob("no_template/chat_template*"):
        file.unlink()
    settings = tmp_path / "no_template" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": None}))
    for file in tmp_path.glob("no_tokenizer/tokenizer*"):
        file.unlink()
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "adapter").mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "use_dora": False}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    monkeypatch.setattr(corpora._Preparation, "read_parts", lambda preparation: pytest.fail("text was read"))
    monkeypatch.setattr(direction_model, "load", lambda *arguments: pytest.fail("weights were loaded"))
    overrides = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    for command, more in ((train, ("--out", "run")), (check, ())):
        code, _, errors = shell(command, str(path), *overrides, *more)
        assert code == 2 and message in errors and "Traceback" not in errors, errors
