"""Which texts of documents are translated, which candidate is taken, and what is kept of a command that stops."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roundtrip.data.documents.document import Request
from roundtrip.data.documents.formats import read_document
from roundtrip.engine.checked_translation import NUM_RETRIES, CheckedTranslation, translate_checked
from roundtrip.engine.document_translation import (
    CHUNK_TEXTS,
    TranslationCache,
    join_translations,
    needed_texts,
    paragraphs,
    texts_of,
    translate_document,
    translate_texts,
)
from roundtrip.engine.request import Callbacks
from roundtrip.recipe.plan import Direction
from roundtrip.recipe.schema import Generate
from roundtrip.serving.served_run import ServedRun

GREEDY = Generate(temperature=0.0)


class Stub:
    """A translator with given candidates: the first one is that of the greedy search."""

    direction = Direction("en", "es")

    def __init__(self, candidates: dict[str, list[str]], unfinished: tuple[str, ...] = ()) -> None:
        self.candidates, self.unfinished, self.asked = candidates, unfinished, list[tuple[str, int]]()

    def can_translate(self, texts: list[str], settings: Generate) -> list[bool]:
        return [len(text) < 80 for text in texts]

    def translate(self, texts: list[str], settings: Generate, seed: int, **_: Any) -> SimpleNamespace:
        self.asked += [(text, settings.num_candidates) for text in texts]
        first = 1 if settings.temperature_value else 0
        made = [list(islice(cycle(self.candidates[text]), first, first + settings.num_candidates)) for text in texts]
        flat = [text for each in made for text in each]
        return SimpleNamespace(texts=flat, finished=[text not in self.unfinished for text in flat])

    def likelihoods(self, pairs: list[tuple[str, str]], max_tokens: int) -> list[float]:
        return [float(len(candidate)) for candidate, _ in pairs]


@given(st.text(alphabet=" \n\r\tab\u2028\u00a0", max_size=40))
def test_paragraphs_are_the_text(text: str) -> None:
    parts = paragraphs(text)
    assert "".join(parts) == text and len(parts) % 2
    assert all(part == part.strip() and "\n" not in part for part in parts[::2])
    assert not any(part.strip() for part in parts[1::2])


def test_the_first_candidate_that_keeps_placeholders_is_taken() -> None:
    forward = Stub({"%s a": ["b", "%s", "%s c"], "d": ["e"], "f %s": ["g"]}, unfinished=("%s",))
    results = translate_checked(forward, ["%s a", "d", "", "f %s"], GREEDY)  # type: ignore[arg-type]
    assert results[:3] == [CheckedTranslation("%s c"), CheckedTranslation("e"), CheckedTranslation("")]
    assert results[3].text == "g" and "printf placeholder: missing" in results[3].problem
    assert forward.asked == [("%s a", 1), ("d", 1), ("f %s", 1), ("%s a", NUM_RETRIES), ("f %s", NUM_RETRIES)]


def test_samples_are_ranked_by_the_likelihood_of_the_source() -> None:
    forward = Stub({"a": ["b", "cc", "dddd", "a", ""], "long": ["x", "a cut one", "y", "z", "w"]}, ("a cut one",))
    results = translate_checked(forward, ["a", "long"], GREEDY, Stub({}), samples=4)  # type: ignore[arg-type]
    assert [result.text for result in results] == ["dddd", "x"]


@pytest.mark.parametrize(
    ("candidates", "text", "problem"),
    [(["", ""], "", "the translation is empty"), (["cut"], "cut", "the translation was cut at its length limit")],
)
def test_what_is_wrong_with_a_translation(candidates: list[str], text: str, problem: str) -> None:
    (result,) = translate_checked(Stub({"a": candidates}, ("cut",)), ["a"], GREEDY)  # type: ignore[arg-type]
    assert result == CheckedTranslation(text, problem)


def test_long_texts_go_by_sentences_and_too_long_ones_are_named() -> None:
    sentences = [
        "This is the first sentence of a long text that has some words in it.",
        "Here comes the second %s one.",
    ]
    forward = Stub({sentences[0]: ["Uno."], sentences[1]: ["Dos.", "Dos %s."]})
    results = translate_checked(forward, [" ".join(sentences), "x" * 101], GREEDY)  # type: ignore[arg-type]
    assert results == [CheckedTranslation("Uno. Dos %s."), CheckedTranslation("", "a sentence of 1 words is too long")]


def known_of(**translations: str) -> dict[str, CheckedTranslation]:
    return {source: CheckedTranslation(text, "broken" if "!" in text else "") for source, text in translations.items()}


def test_paragraphs_numbers_and_white_space_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('en\n" one\n\n  two\n3 %\n"\n...\nbad\none\n')
    document = read_document(path, Request("en", "es"))
    assert texts_of(document, "none") == ["one", "two", "bad"]
    result = translate_document(document, known_of(one="uno", two="dos", bad="mal!"), "none", keep_broken=False)
    assert result.translations == {0: [" uno\n\n  dos\n3 %\n"], 1: ["..."], 3: ["uno"]}
    assert result.left_alone == [(8, "broken")] and result.pairs == [("one", "uno"), ("two", "dos"), ("one", "uno")]
    kept = translate_document(document, known_of(one="uno", two="dos", bad="mal!"), "none", keep_broken=True)
    assert kept.translations[2] == ["mal!"] and not kept.left_alone


@pytest.mark.parametrize(
    ("source", "translations", "is_broken"),
    [
        ("{n, plural,\n one {# file}\n other {# files}\n}", ["{n, plural,", "uno {# a}", "otros {# b}"], True),
        ("{n, plural,\n one {# file}\n other {# files}\n}", ["{n, plural,", "one {# a}", "other {# b}"], False),
        ("Read <1>the terms\nof use</1> now", ["Lea las condiciones", "de uso</1> ya"], True),
        ("Read <1>the terms\nof use</1> now", ["Lea <1>las condiciones", "de uso</1> ya"], False),
        ("\n a {nai\u0308f}\n", ["b {na\u00eff}"], False),
    ],
)
def test_a_text_is_checked_as_a_whole(source: str, translations: list[str], is_broken: bool) -> None:
    needed = needed_texts([source])
    known = dict(zip(needed, map(CheckedTranslation, translations), strict=True))
    assert bool(join_translations(source, known).problem) == is_broken
    served = ServedRun({"en-es": Stub({text: [known[text].text] for text in needed})}, GREEDY)  # type: ignore[dict-item]
    (result,) = served.translate("en-es", [source], Callbacks())
    assert bool(result.problem) == is_broken and result.text == join_translations(source, known).text


def test_what_is_translated_again(tmp_path: Path) -> None:
    path = tmp_path / "a.po"
    path.write_text('msgid "a"\nmsgstr ""\n\n#, fuzzy\nmsgid "b"\nmsgstr "x"\n\nmsgid "c"\nmsgstr "y"\n')
    document = read_document(path, Request("en", "es"))
    assert [texts_of(document, which) for which in ("none", "fuzzy", "all")] == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert translate_document(document, known_of(a="A"), "none", keep_broken=False).num_kept == 2


def test_what_is_finished_is_kept_and_read_again(tmp_path: Path) -> None:
    texts, asked = [f"text {i} \ud800" for i in range(CHUNK_TEXTS + 5)], list[str]()

    def translate(chunk: list[str]) -> list[CheckedTranslation]:
        if asked:
            raise KeyboardInterrupt
        asked.extend(chunk)
        return [CheckedTranslation(text.upper(), "bad" if text == texts[3] else "") for text in chunk]

    cache = TranslationCache(tmp_path / "cache", "key")
    with pytest.raises(KeyboardInterrupt):
        translate_texts(texts, translate, cache)
    cache.add([["written", "a.po", texts[0]]])
    with (tmp_path / "cache").open("a") as file:
        file.write('["half a li')
    again = TranslationCache(tmp_path / "cache", "key")
    again.read()
    assert again.known == cache.known and len(again.known) == CHUNK_TEXTS and again.written == {"a.po": texts[:1]}
    translate_texts(texts, lambda chunk: [CheckedTranslation("x")] * len(chunk), again)
    assert len(again.known) == len(texts)


@pytest.mark.parametrize(
    "content", ["", "[]\n", "1\n", '["other", "text", "b", "", ""]\n', "{\n", "[" * 9999 + "\n", "\x00\n", '["key"]\n']
)
def test_what_is_not_of_a_cache_is_not_used(tmp_path: Path, content: str) -> None:
    (tmp_path / "cache").write_text(content)
    cache = TranslationCache(tmp_path / "cache", "key")
    cache.read()
    assert not cache.known and not cache.written
    cache.add([("text", "a", "b", "")])
    cache.read()
    assert cache.known == {"a": CheckedTranslation("b")}


def test_commands_that_share_a_file_do_not_use_each_others_translations(tmp_path: Path) -> None:
    caches = [TranslationCache(tmp_path / "cache", key) for key in ("en-es", "en-fr", "en-es")]
    for cache, text in zip(caches, ("uno", "un", "una"), strict=True):
        cache.read()
        cache.add([("text", text, text.upper(), ""), ("written", text, text), ("written", "unknown", "x")])
    for cache in caches:
        cache.read()
    assert set(caches[0].known) == set(caches[0].written) == {"uno", "una"}
    assert set(caches[1].known) == set(caches[1].written) == {"un"}
