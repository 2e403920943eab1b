"""A tokenizer that does not end, fills the memory or expands text is refused before it is used; no published one is."""

from __future__ import annotations

import base64
import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks import zoo
from roundtrip.runtime.errors import ModelError
from roundtrip.runtime.limits import call_limited
from roundtrip.tokens import tokenizer_limits
from roundtrip.tokens.tokenizer_limits import load_within_limits, problem_of
from tests.conftest import bpe, small_tokenizer, wrap
from tests.tools.attack_inputs import hostile_tokenizers

PUBLISHED = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt-4": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
    "llama 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "gpt-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek v3": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "falcon": r"[0-9][0-9][0-9]",
    "starcoder": r"\p{N}",
    "sentencepiece": r" {2,}",
    "gemma": r" ",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_patterns_are_accepted(name: str) -> None:
    tokenizer = bpe(["some text"])
    split = pre_tokenizers.Split(Regex(PUBLISHED[name]), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    assert problem_of(wrap(tokenizer)) is None


@pytest.mark.parametrize("name", [*zoo.REAL, *zoo.small()])
def test_tokenizers_of_the_zoo_are_accepted(name: str) -> None:
    assert problem_of(zoo.load(name) if name in zoo.REAL else zoo.small()[name]) is None


def charsmap(replacement: bytes) -> str:
    return base64.b64encode((4).to_bytes(4, "little") + bytes(4) + b"fi\0" + replacement + b"\0").decode()


def replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("normalizer", replace("q", "a" * 10_000), "may expand a text more than 1,000 times"),
        ("normalizer", {"type": "Sequence", "normalizers": [replace("a", "aa")] * 24}, "more than 1,000 times"),
        ("normalizer", replace("", "a" * 2000), "more than 1,000 times"),
        ("normalizer", {"type": "Prepend", "prepend": "a" * 10_000}, "more than 1,000 times"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": charsmap(b"a" * 5000)}, "1,000 times"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * 2000}, "more than 1,000 steps"),
        ("decoder", replace("a", "a" * 10_000), "its decoder may expand"),
        ("pre_tokenizer", split("a" * 30_000), "a pattern or text of more than 20,000 characters"),
        ("pre_tokenizer", split("(a+)+$"), "retry-limit-in-match"),
        ("pre_tokenizer", split(r"(\s+)+$"), "retry-limit-in-match"),
        ("added_tokens", [{"id": 0, "content": "a" * 50_000_000, **ADDED}], "more memory|too much memory|seconds"),
        (
            "post_processor",
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [],
                "special_tokens": {"x": {"id": "x", "ids": [0] * 2000, "tokens": ["x"] * 2000}},
            },
            "more than 1,000 tokens for an empty text",
        ),
    ],
)
def test_a_tokenizer_beyond_a_limit_is_refused(
    model_folder: Path, tmp_path: Path, part: str, value: Any, words: str
) -> None:
    document = json.loads((model_folder / "tokenizer.json").read_text())
    document[part] = value
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    start = time.monotonic()
    for _ in range(2):  # a refused one is not remembered
        with pytest.raises(ModelError, match=words) as caught:
            load_within_limits(folder, None, str(folder))
    assert caught.value.place == str(folder) and time.monotonic() - start < 40


def test_a_tokenizer_is_tried_once_until_its_files_change(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_limits, "cache_dir", lambda: tmp_path / "cache")
    calls: list[float] = []
    monkeypatch.setattr(tokenizer_limits, "call_limited", lambda *a: calls.append(a[1]) or call_limited(*a))
    shutil.copytree(model_folder, tmp_path / "model")
    for _ in range(3):
        assert isinstance(
            load_within_limits(tmp_path / "model", None, str(tmp_path / "model")), PreTrainedTokenizerFast
        )
    assert len(calls) == 1
    (tmp_path / "model" / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    load_within_limits(tmp_path / "model", None, str(tmp_path / "model"))
    assert len(calls) == 2


def test_normalizers_of_published_tokenizers_are_accepted() -> None:
    tokenizer = bpe(["some text"])
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Replace(Regex(" {2,}"), "▁"),
            normalizers.Replace("``", '"'),
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
        ]
    )
    assert problem_of(wrap(tokenizer)) is None
    document = json.loads(tokenizer.to_str())
    assert sum(1 for _ in tokenizer_limits._steps(document["normalizer"])) < 20


def test_any_tokenizer_is_accepted_or_refused(model_folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    small_tokenizer().save_pretrained(base)
    shutil.copy(model_folder / "config.json", base)
    counts = {True: 0, False: 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, folder in hostile_tokenizers(base, tmp_path, 5, 30):
        start = time.monotonic()
        try:
            tokenizer = load_within_limits(folder, None, str(folder))
            assert len(tokenizer("a b " * 100)["input_ids"]) < 50_000, name
            counts[True] += 1
        except Exception as error:
            # Damaged files are explained by who loads the model.
            counts[False] += 1
            assert str(error), name
        assert time.monotonic() - start < 20, name
    assert all(counts.values())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10


@pytest.mark.parametrize(
    ("pattern", "content", "is_refused"),
    [
        (r"\s+", " ", False),
        (" {2,}", " ", False),
        ("[\u200b\u00ad]", "", False),
        ("(?=Q)", "Q", True),
        ("x*", "a", True),
        ("", "a", True),
        (r"\b", "a", True),
        ("a|", "a", True),
        ("x{0,3}", "a", True),
        ("a", "aa", True),
    ],
)
def test_many_steps_that_expand_nothing_are_accepted(pattern: str, content: str, is_refused: bool) -> None:
    steps = [{"type": "Replace", "pattern": {"Regex": pattern}, "content": content}] * 16
    problem = tokenizer_limits._problem_of_steps({"type": "Sequence", "normalizers": steps})
    assert bool(problem) is is_refused
