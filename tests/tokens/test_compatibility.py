"""The compatibility report: mode, every reason, the cure; and what a recipe may ask of it."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tokenizers import AddedToken, Tokenizer
from transformers import ByT5Tokenizer

from benchmarks import zoo
from roundtrip.backtranslation import token_rows
from roundtrip.cli import check as check_cli
from roundtrip.cli.app import exit_with
from roundtrip.recipe import loader
from roundtrip.recipe.plan import directions
from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.runtime.errors import RecipeError, RowBuilderError
from roundtrip.runtime.event_log import EventLog
from roundtrip.tokens import compatibility
from roundtrip.tokens.prompt_segments import build_segments
from roundtrip.tokens.prompt_template import PromptTemplate
from roundtrip.tokens.row_builder import SPLICED, TEXT_ONLY, RowBuilder
from roundtrip.tokens.tokenizer_diff import tokenizer_differences
from tests.conftest import WriteRecipe, bpe, toy_pairs, wrap
from tests.tokens.test_prompt_template import LINES, TOKENIZERS

PLAIN, CHAT = TemplateRecipe(kind="plain"), TemplateRecipe(kind="chat")
PAIRS = toy_pairs()[::20]


def check(a: Any, b: Any, text: TemplateRecipe = PLAIN, **settings: Any) -> compatibility.CompatibilityReport:
    options = compatibility.BuildOptions(num_attacks=200, **settings)
    return compatibility.check_tokenizers(a, b, text, ("en", "es"), PAIRS, options)


def test_equal_tokenizers_in_two_objects_are_spliced() -> None:
    one = TOKENIZERS["pad apart from end"]
    other = wrap(Tokenizer.from_str(one.backend_tokenizer.to_str()))
    assert one is not other and tokenizer_differences(one, other) == []
    # What a call leaves behind is no difference.
    other(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert tokenizer_differences(one, other) == []
    found = check(one, other)
    assert (found.mode, found.checker, found.reasons, found.cure) == ("splice", "device", (), None)
    assert found.share == 1.0 and found.attacks["false accepts"] == 0 < found.attacks["accepted"]


def test_the_same_family_with_other_special_tokens_is_spliced_and_said() -> None:
    one = TOKENIZERS["pad apart from end"]
    other = wrap(Tokenizer.from_str(one.backend_tokenizer.to_str()), eos_token="<|endoftext|>", chat_template="{{ 1 }}")
    parts = {part.part: part for part in tokenizer_differences(one, other)}
    assert set(parts) == {"special tokens", "chat template"} and not any(part.matters for part in parts.values())
    assert "'<|im_end|>' against '<|endoftext|>'" in parts["special tokens"].what
    found = check(one, other)
    assert found.mode == "splice" and len(found.reasons) == 2


def _changed(tokenizer: Any, change: Any) -> Any:
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    change(document)
    return wrap(Tokenizer.from_str(json.dumps(document)))


def _swap_merges(document: dict[str, Any]) -> None:
    merges = document["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]


def _ignore_merges(document: dict[str, Any]) -> None:
    document["model"]["ignore_merges"] = True


def _nfc(document: dict[str, Any]) -> None:
    document["normalizer"] = {"type": "NFC"}


def _prefix_space(document: dict[str, Any]) -> None:
    document["pre_tokenizer"]["add_prefix_space"] = True


@pytest.mark.parametrize(
    ("change", "part", "what"),
    [
        (_swap_merges, "merges", "against"),
        (_ignore_merges, "model", "ignore_merges is False against True"),
        (_nfc, "normalizer", 'null against {"type": "NFC"}'),
        (_prefix_space, "pre-tokenizer", "add_prefix_space"),
    ],
)
def test_what_changes_ids_makes_the_pair_take_the_text_path(change: Any, part: str, what: str) -> None:
    one = TOKENIZERS["pad apart from end"]
    other = _changed(one, change)
    first = tokenizer_differences(one, other)[0]
    assert first.part == part and first.matters and what in first.what
    found = check(one, other)
    assert found.mode == "text" and found.checker is None and found.reasons[0].startswith(part)
    assert found.cure is not None and "the same tokenizer" in found.cure


def test_another_vocabulary_names_its_first_difference() -> None:
    one, other = TOKENIZERS["pad apart from end"], wrap(bpe(LINES[:50], 500))
    first = tokenizer_differences(one, other)[0]
    assert first.part == "vocabulary" and "id " in first.what and "against" in first.what
    assert tokenizer_differences(zoo.small()["unigram"], one)[0].part == "model"
    added = copy.deepcopy(one)
    added.add_tokens([AddedToken("</b>", special=False)])
    assert tokenizer_differences(one, added)[0].part == "added tokens" and tokenizer_differences(one, added)[0].matters


def test_python_tokenizers_take_the_text_path() -> None:
    tokenizer = ByT5Tokenizer()
    found = check(tokenizer, tokenizer)
    assert found.mode == "text" and "Python tokenizer" in found.reasons[0] and "tokenizer.json" in str(found.cure)
    # The text path works without offsets: labels are the target and its end.
    used = PromptTemplate(tokenizer, build_segments(tokenizer, PLAIN, "en", "es", ()))
    row = used.rows([("Hi </s>", "Hola")])[0]
    assert tokenizer.decode(row.ids[row.start :]) == " Hola</s>" and row.ids.count(tokenizer.eos_token_id) == 1
    assert used.prompts(["Hi </s>"])[0] == row.ids[: row.start]


def test_a_template_that_changes_its_text_is_said() -> None:
    tokenizer = copy.deepcopy(TOKENIZERS["pad apart from end"])
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'] | lower")
    found = check(tokenizer, tokenizer, CHAT)
    assert found.mode == "text" and "chat template" in found.reasons[0] and "plain" in str(found.cure)


@pytest.mark.parametrize("name", ["chatml-system", "chatml-think", "llama3", "mistral", "gemma", "zephyr"])
def test_templates_that_insert_are_spliced_with_what_they_insert(name: str) -> None:
    dressed, text = zoo.dress(TOKENIZERS["pad apart from end"], name)
    found = check(dressed, dressed, text)
    assert found.mode == "splice", found


def test_a_template_with_a_date_is_said() -> None:
    tokenizer = copy.deepcopy(TOKENIZERS["pad apart from end"])
    tokenizer.chat_template = {"default": "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template}
    found = check(tokenizer, tokenizer, CHAT)
    assert found.mode == "splice" and any("today's date" in reason for reason in found.reasons)
    assert not any("today's date" in reason for reason in check(tokenizer, tokenizer).reasons)


def test_the_checker_may_be_chosen_and_is_refused_where_it_does_not_work() -> None:
    tokenizer = TOKENIZERS["pad apart from end"]
    assert check(tokenizer, tokenizer, checker="host").checker == "host"
    assert check(tokenizer, tokenizer, checker="device").checker == "device"
    with pytest.raises(RowBuilderError, match="Unigram"):
        check(zoo.small()["unigram"], zoo.small()["unigram"], checker="device")


def test_tables_are_kept_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    tokenizer = TOKENIZERS["pad apart from end"]
    first = check(tokenizer, tokenizer, cache_folder=tmp_path)
    [kept] = tmp_path.glob("*.json")
    monkeypatch.setattr(compatibility.BoundaryProbe, "find", lambda *_: pytest.fail("tried again"))
    monkeypatch.setattr(compatibility, "audit_rules", lambda *_: pytest.fail("audited again"))
    assert check(tokenizer, tokenizer, cache_folder=tmp_path) == first
    monkeypatch.undo()
    content = kept.read_bytes()
    changed = json.loads(json.loads(content)["measured"])["tables"]["first_V"]
    digit = content.index(b", ".join(str(i).encode() for i in changed[100:120])) + 1
    for damaged in (b"broken", b"", content[:-9], content[:digit] + b"7" + content[digit + 1 :]):
        assert damaged != content
        kept.write_bytes(damaged)
        caplog.clear()
        assert check(tokenizer, tokenizer, cache_folder=tmp_path) == first
        assert f"{kept}: damaged, and made again" in caplog.text
        assert kept.read_bytes() == content


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "file as cache", "read-only"])
def test_a_cache_that_cannot_be_used_changes_nothing(kind: str, tmp_path: Path, caplog: Any) -> None:
    tokenizer, folder = TOKENIZERS["pad apart from end"], tmp_path / "cache"
    first = check(tokenizer, tokenizer, cache_folder=folder)
    [kept] = folder.glob("*.json")
    if kind == "file as cache":
        shutil.rmtree(folder)
        folder.write_text("no folder")
    elif kind == "read-only":
        kept.write_text("damaged")
        (folder / ".lock").unlink()
        (folder / ".lock").mkdir()  # it cannot be locked
    else:
        kept.unlink()
        outside = tmp_path / "outside"
        outside.write_text("not of the cache")
        {"fifo": os.mkfifo, "folder": Path.mkdir, "link": lambda path: path.symlink_to(outside)}[kind](kept)
    assert check(tokenizer, tokenizer, cache_folder=folder) == first
    assert "made again" in caplog.text
    if kind == "link":
        assert outside.read_text() == "not of the cache"


def small_row_builder(**settings: Any) -> RowBuilder:
    tokenizer = TOKENIZERS["pad apart from end"]
    forward, reverse = (
        PromptTemplate(tokenizer, build_segments(tokenizer, PLAIN, *codes, ()))
        for codes in (("en", "es"), ("es", "en"))
    )
    options = compatibility.BuildOptions(num_attacks=50)
    row_builder, _ = compatibility.build_row_builder(reverse, forward, PAIRS, options)
    return RowBuilder(**(vars(row_builder) | settings))


def hypotheses(of: RowBuilder, *texts: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [of.forward_template.tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in texts]
    width = max(map(len, rows))
    return torch.tensor([[*row, *(width - len(row)) * [0]] for row in rows]), torch.tensor([len(row) for row in rows])


def test_strict_stops_at_a_row_that_cannot_be_spliced() -> None:
    row_builder = small_row_builder(strict=True)
    ids, size = hypotheses(row_builder, "the house", "the door")
    assert row_builder.build(ids, size, ["la casa", "la puerta"], ["the house", "the door"])[1] == {SPLICED: 2}
    letters = torch.tensor([row_builder.forward_template.tokenizer.convert_tokens_to_ids(list("house"))])
    with pytest.raises(RowBuilderError, match=r"cannot be spliced \(.*\): 'house' -> 'la casa'"):
        row_builder.build(letters, torch.tensor([5]), ["la casa"])


def test_the_audit_of_a_run_stops_at_a_row_that_differs_from_the_text_path() -> None:
    row_builder = small_row_builder(audit=1.0)
    ids, size = hypotheses(row_builder, "the house", "the door")
    row_builder.build(ids, size, ["la casa", "la puerta"], ["the house", "the door"])
    with pytest.raises(RowBuilderError, match="at token") as caught:
        row_builder.build(ids, size, ["la casa", "la puerta"], ["the house", "a door"])
    assert "'a door' -> 'la puerta'" in str(caught.value) and "tokens.mode" in str(caught.value)


def test_the_text_path_counts_its_rows() -> None:
    row_builder = small_row_builder(tensors=None)
    ids, size = hypotheses(row_builder, "the house")
    rows, counts = row_builder.build(ids, size, ["la casa"])
    assert counts == {TEXT_ONLY: 1}
    assert rows.ids_BT[0].tolist() == row_builder.forward_template.rows([("the house", "la casa")])[0].ids


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("strict = true", "tokens.strict"),
        ('guard = "host"', "tokens.guard"),
        ("audit = 0.5", "tokens.audit: unknown key"),
        ('mode = "sideways"', "tokens.mode"),
    ],
)
def test_impossible_tokens_are_refused_when_the_recipe_is_read(
    write_recipe: WriteRecipe, tokens: str, message: str
) -> None:
    path = write_recipe(("[filter]", f"[tokens]\n{tokens}\n\n[filter]"))
    with pytest.raises(RecipeError, match=message.replace(".", r"\.")):
        loader.load_recipe(str(path))


def test_a_demanded_splice_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    report = compatibility.CompatibilityReport("text", None, ("vocabulary: differs",), "use one base")
    monkeypatch.setattr(compatibility, "build_row_builder", lambda *arguments: (builder, report))
    recipe = loader.load_recipe("quickstart", ["tokens.mode=splice"]).recipe
    template: Any = None
    builder, base = RowBuilder(template, template, None), SimpleNamespace(device=torch.device("cpu"))
    both = directions(recipe)
    translators: Any = {each.name: SimpleNamespace(direction=each, base=base, template=template) for each in both}
    events = EventLog(Console(quiet=True))
    with pytest.raises(RecipeError, match=r"tokens\.mode: .* cannot be spliced: vocabulary: differs"):
        token_rows.make_row_builders(recipe, translators, [], events)
    _, reports = token_rows.make_row_builders(loader.load_recipe("quickstart").recipe, translators, [], events)
    assert reports == {each.name: report for each in both}


def run_check(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["check", *arguments])
    with pytest.raises(SystemExit) as caught:
        exit_with(check_cli.main)
    return caught.value.code


def test_the_command_prints_the_report_and_its_json(
    write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe()
    assert run_check(monkeypatch, str(path)) == 0
    shown = capsys.readouterr().out
    assert "token rows of en-es: splice, verified on the device; 12 of 12 sample lines" in shown
    assert "peak memory on cpu:" in shown
    assert run_check(monkeypatch, str(path), "--json", "--set", "tokens.mode=splice") == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"text", "compatibility", "plan", "steps", "seconds", "total_seconds", "peak_bytes"}
    assert document["peak_bytes"]["cpu"] > 10_000_000 and document["total_seconds"] > 0
    report = document["compatibility"]["en-es"]
    assert report["mode"] == "splice" and report["checker"] == "host"
