"""Every text format: what is read from sound files, and the errors of broken ones."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from roundtrip.data import tabular, text_files, tmx_xliff
from roundtrip.data.corpora import describe_counts
from roundtrip.data.gettext_po import UNNAMED_SOURCE
from roundtrip.data.normalize import clean
from roundtrip.data.readers import read_rows
from roundtrip.data.text_files import decoded_lines
from roundtrip.data.tmx_xliff import DIFFERENT_CODES, INLINE_CODES
from roundtrip.recipe.schema import TextSource
from roundtrip.runtime.errors import Interrupted, TextError, quantity

LANGUAGES = ("en", "es")
PAIRS = [("Hello", "Hola"), ("Good  bye", "Adiós")]

TSV = "Hello\tHola\nGood  bye\tAdiós\n"
CSV = 'Hello,Hola\n"Good  bye","Adiós"\n'
JSONL = '{"en": "Hello", "es": "Hola"}\n{"en": "Good  bye", "es": "Adiós"}\n'
PO = """msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\\n"
"Language: es\\n"

msgid "Hello"
msgstr "Hola"

msgid "Good "
" bye"
msgstr "Adiós"
"""
TMX = """<?xml version="1.0"?>
<tmx version="1.4"><header srclang="en"/><body>
<tu><tuv xml:lang="EN-us"><seg>Hello</seg></tuv><tuv xml:lang="es"><seg>Hola</seg></tuv></tu>
<tu><tuv lang="en"><seg>Good  bye</seg></tuv><tuv lang="es-MX"><seg>Adiós</seg></tuv></tu>
</body></tmx>"""
XLIFF_1 = """<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">
<file source-language="en" target-language="es" original="a" datatype="x"><body>
<trans-unit id="1"><source>Hello</source><target>Hola</target></trans-unit>
<group><trans-unit id="2"><source>Good  bye</source><target state="final">Adiós</target></trans-unit></group>
</body></file></xliff>"""
XLIFF_2 = """<x:xliff version="2.0" xmlns:x="urn:oasis:names:tc:xliff:document:2.0" srcLang="en" trgLang="es">
<x:file id="f"><x:unit id="1"><x:segment><x:source>Hello</x:source><x:target>Hola</x:target></x:segment>
<x:segment state="final"><x:source>Good  bye</x:source><x:target>Adiós</x:target></x:segment></x:unit>
</x:file></x:xliff>"""

# Name, content, and further keys of the recipe.
BILINGUAL: list[tuple[str, str, dict[str, Any]]] = [
    ("a.tsv", TSV, {}),
    ("a.tab", TSV.replace("\n", "\r\n"), {}),
    ("a.csv", CSV, {}),
    ("a.jsonl", JSONL, {"columns": ("en", "es")}),
    ("a.ndjson", JSONL, {"columns": ("en", "es")}),
    ("a.po", PO, {}),
    ("a.tmx", TMX, {}),
    ("a.xlf", XLIFF_1, {}),
    ("a.xliff", XLIFF_2, {}),
    ("a.dat", TSV, {"format": "tsv"}),
]


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def pairs(path: Path, languages: tuple[str, str] = LANGUAGES, **keys: Any) -> list[tuple[str, str]]:
    return list(read_rows(TextSource(path=str(path), **keys), [path], languages))


def texts(path: Path, language: str, **keys: Any) -> list[str]:
    return [text for (text,) in read_rows(TextSource(path=str(path), **keys), [path], (language,))]


def refusal(path: Path, languages: tuple[str, str] = LANGUAGES, **keys: Any) -> TextError:
    with pytest.raises(TextError) as caught:
        pairs(path, languages, **keys)
    assert caught.value.cure
    return caught.value


# -- every format


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize(("name", "content", "keys"), BILINGUAL, ids=lambda value: str(value)[:8])
def test_every_format_gives_the_same_pairs(
    tmp_path: Path, name: str, content: str, keys: dict[str, Any], gz: str
) -> None:
    path = write(tmp_path / f"{name}{gz}", content)
    assert pairs(path, **keys) == PAIRS
    assert pairs(path, limit=1, **keys) == PAIRS[:1]


@pytest.mark.parametrize(("name", "content"), [("a.po", PO), ("a.tmx", TMX), ("a.xlf", XLIFF_1), ("a.xliff", XLIFF_2)])
def test_bilingual_files_give_either_order_and_either_side(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path / name, content)
    assert pairs(path, ("es", "en")) == [(spanish, english) for english, spanish in PAIRS]
    assert texts(path, "en") == [english for english, _ in PAIRS]
    assert texts(path, "es") == [spanish for _, spanish in PAIRS]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "corpus.en", "corpus.en.gz"])
def test_plain_lines(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "\ufeffone\t1\n\nthree\u2028 3 ")
    assert texts(path, "en") == ["one 1", "", "three 3"]


def test_limit_counts_lines_of_all_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.txt", "one\ntwo\n"), write(tmp_path / "b.txt.gz", "three\nfour\n")]
    source = TextSource(path=str(tmp_path / "*.txt*"), limit=3)
    assert list(read_rows(source, paths, ("en",))) == [("one",), ("two",), ("three",)]


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\n\xff\n")
    assert texts(path, "en", limit=1) == ["one"]


@pytest.mark.parametrize("name", ["a.txt", "a.en", "a.en.gz"])
def test_one_file_of_lines_is_refused_as_pairs(tmp_path: Path, name: str) -> None:
    error = refusal(write(tmp_path / name, "one\n"))
    assert error.place == str(tmp_path / name)
    assert ".tsv" in str(error.cure)
    assert ".xliff" in str(error.cure)


# -- broken bytes


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.csv", "a.jsonl", "a.po"])
def test_invalid_utf8_is_refused_with_line_number(tmp_path: Path, name: str, gz: str) -> None:
    path = write(tmp_path / f"{name}{gz}", b"\n\n# caf\xe9\n" if name == "a.po" else b"# caf\xe9\n")
    line = 3 if name == "a.po" else 1
    columns = ("x",) if name == "a.jsonl" else None
    with pytest.raises(TextError) as caught:
        texts(path, "en", columns=columns)
    assert str(caught.value).startswith(f"{path}:{line}: not UTF-8 (byte 0xe9)\n  Convert")
    assert "iconv" in str(caught.value.cure)


def test_bad_line_of_standard_input_is_named_by_its_number() -> None:
    with pytest.raises(TextError, match=r"standard input:2: not UTF-8 \(byte 0xe9\)"):
        list(decoded_lines(io.BytesIO(b"a\n\xe9\n"), "standard input"))


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.tsv", TSV, ":2"),
        ("a.csv", CSV, ":2"),
        ("a.po", PO, ""),
        ("a.tmx", TMX, ""),
        ("a.xlf", XLIFF_1, ""),
    ],
)
def test_truncated_gzip_is_refused(tmp_path: Path, name: str, content: str, place: str) -> None:
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(content.encode())[:-12])
    error = refusal(path)
    assert str(error.place).startswith(f"{path}{place}")
    assert "gzip stream is broken" in error.problem


def test_plain_file_named_gz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv.gz").write_text(TSV)
    error = refusal(tmp_path / "a.tsv.gz")
    assert error.place == f"{tmp_path / 'a.tsv.gz'}:1"
    assert "gzip -t" in str(error.cure)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"a\.txt: cannot be read: No such file"):
        texts(tmp_path / "a.txt", "en")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.po", "a.tmx", "a.xlf", "a.xliff"])
def test_damaged_files_raise_text_errors_only(tmp_path: Path, name: str, seed: int) -> None:
    content = next(content for known, content, _ in BILINGUAL if known == name).encode()
    columns = ("en", "es") if name == "a.jsonl" else None
    outcomes = set()
    for start in range(seed, len(content), 6):
        for damaged in (
            content[:start],
            content[:start] + b"\xff" + content[start:],
            content[:start] + b'"<' + content[start + 2 :],
        ):
            path = write(tmp_path / name, damaged)
            try:
                outcomes.add(len(pairs(path, columns=columns)))
            except TextError as error:
                assert str(error.place).startswith(str(path))
                outcomes.add(-1)
    assert -1 in outcomes


# -- Moses pairs


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("form", ["auto", "moses"])
def test_moses_pair(tmp_path: Path, gz: str, form: Any) -> None:
    paths = [write(tmp_path / f"a.en{gz}", "Hello\n\nx"), write(tmp_path / f"a.es{gz}", "Hola\nb\ny\n")]
    source = TextSource(path=(str(paths[0]), str(paths[1])), format=form)
    assert list(read_rows(source, paths, LANGUAGES)) == [("Hello", "Hola"), ("", "b"), ("x", "y")]


@pytest.mark.parametrize(("first", "second", "longer"), [("1\n2\n3\n4\n", "1\n2\n", 0), ("1\n2", "1\n2\n3\n4\n", 1)])
def test_moses_pair_of_different_lengths_is_refused(tmp_path: Path, first: str, second: str, longer: int) -> None:
    paths = [write(tmp_path / "a.en", first), write(tmp_path / "a.es", second)]
    with pytest.raises(TextError) as caught:
        list(read_rows(TextSource(path=("a.en", "a.es")), paths, LANGUAGES))
    assert caught.value.place == f"{paths[longer]}:3"
    assert f"4 lines here, 2 in {paths[1 - longer]}" in caught.value.problem


@pytest.mark.parametrize("number", [1, 3])
def test_moses_pair_needs_two_files(tmp_path: Path, number: int) -> None:
    paths = [write(tmp_path / f"{n}.txt", "x\n") for n in range(number)]
    with pytest.raises(TextError, match=rf"there are {number} files?,"):
        list(read_rows(TextSource(path="*.txt", format="moses"), paths, LANGUAGES))


def test_moses_pair_in_the_other_order_is_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.es.gz", "Hola\n"), write(tmp_path / "a.en.gz", "Hello\n")]
    names = (str(paths[0]), str(paths[1]))
    with pytest.raises(TextError, match="files of es and en, where en and es are wanted in this order"):
        list(read_rows(TextSource(path=names), paths, LANGUAGES))
    assert list(read_rows(TextSource(path=names), paths, ("es", "en"))) == [("Hola", "Hello")]
    assert list(read_rows(TextSource(path=names, format="moses"), paths, LANGUAGES)) == [("Hola", "Hello")]


def test_moses_pair_is_refused_as_one_language(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.en", "x\n"), write(tmp_path / "a.es", "x\n")]
    with pytest.raises(TextError, match=r"1 language .*\n.*for one language, one file"):
        list(read_rows(TextSource(path=("a.en", "a.es")), paths, ("en",)))


# -- tables


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"columns": (2, 0)}, [("c", "a"), ("3", "1")]),
        ({"columns": ("c", "b")}, [("3", "2")]),
        ({"columns": ("b", 0)}, [("2", "1")]),
        ({"columns": ("a", "b")}, [("1", "2")]),
        ({"columns": (0, 1)}, [("a", "b"), ("1", "2")]),
    ],
)
@pytest.mark.parametrize(("name", "split"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_columns(tmp_path: Path, name: str, split: str, keys: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    path = write(tmp_path / name, "\ufeffa,b,c\r\n1,2,3\r\n".replace(",", split))
    assert pairs(path, **keys) == expected
    if "columns" in keys:
        assert texts(path, "en", **keys | {"columns": keys["columns"][:1]}) == [first for first, _ in expected]


@pytest.mark.parametrize("position", [-1, 2])
def test_positions_beside_a_name_are_checked(tmp_path: Path, position: int) -> None:
    error = refusal(write(tmp_path / "a.tsv", "a\tb\n1\t2\n"), columns=("a", position))
    assert f"names column {position}" in error.problem


def test_tsv_does_not_interpret_quotes(tmp_path: Path) -> None:
    assert pairs(write(tmp_path / "a.tsv", '"a\tb"\n\t\n')) == [('"a', 'b"'), ("", "")]


def test_csv_text_may_contain_line_breaks(tmp_path: Path) -> None:
    assert pairs(write(tmp_path / "a.csv", '"a, ""b""\r\nc",d\r\ne,\r\n')) == [('a, "b" c', "d"), ("e", "")]


@pytest.mark.parametrize(("name", "split"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_rows_have_as_many_columns_as_the_first(tmp_path: Path, name: str, split: str) -> None:
    """A separator inside a text would shift the others, so too many are refused like too few."""
    for second in ("c", "c\td\te"):
        path = write(tmp_path / name, f"a\tb\n{second}\n".replace("\t", split))
        for keys in ({}, {"columns": (0, 1)}, {"columns": (1, 0)}):
            error = refusal(path, **keys)
            assert str(error).startswith(f"{path}:2: {quantity(second.count(chr(9)) + 1, 'column')} where line 1 has 2")
        assert "where line 1 has 2" in str(pytest.raises(TextError, texts, path, "en", columns=(0,)).value)
    path = write(tmp_path / name, "a\tb\tc\n".replace("\t", split))
    assert "3 columns, expected 2" in refusal(path).problem
    assert "columns = [0, 1]" in str(refusal(path).cure)
    assert "names column -1" in refusal(path, columns=(0, -1)).problem
    with pytest.raises(TextError, match=r"3 columns, expected 1(.|\n)*columns = \[0\]"):
        texts(path, "en")


@pytest.mark.parametrize("split", [";", "\t", " ||| "])
def test_another_separator_is_named(tmp_path: Path, split: str) -> None:
    error = refusal(write(tmp_path / "a.csv", f"a{split}b\n"))
    assert "1 column, expected 2" in error.problem and "as .tsv" in str(error.cure)


@pytest.mark.parametrize(("name", "split"), [("a.tsv", "\t"), ("a.csv", ",")])
@pytest.mark.parametrize(
    ("header", "languages", "expected"),
    [
        ("english\tspanish", ("en", "es"), [("a", "b")]),
        ("Spanish\tEnglish", ("en", "es"), [("b", "a")]),
        ("en\tes", ("es", "en"), [("b", "a")]),
        ("en_US\tes-MX", ("en", "es"), [("a", "b")]),
        ("eng\tspa", ("en", "es"), [("a", "b")]),
        ("zh_TW\tzh_CN", ("zh-Hans", "zh-Hant"), [("b", "a")]),
        ("red\trojo", ("en", "es"), [("red", "rojo"), ("a", "b")]),
        ("English\tel inglés", ("en", "es"), [("English", "el inglés"), ("a", "b")]),
        ("Polish\tPolonais", ("en", "fr"), [("Polish", "Polonais"), ("a", "b")]),
        ("source_es\ttarget_en", ("en", "es"), [("b", "a")]),
        ("Text (Spanish)\t#en", ("en", "es"), [("b", "a")]),
        ("English (US)\tsentence es", ("en", "es"), [("a", "b")]),
        ("Spanish (es)\tEnglish [en]", ("en", "es"), [("b", "a")]),
        ("Spanish words/sentences\tEnglish words/sentences", ("en", "es"), [("b", "a")]),
        ("Greek el\tGerman de", ("de", "el"), [("b", "a")]),
        ("English it\tGerman de", ("en", "de"), [("a", "b")]),
    ],
)
def test_a_header_names_the_languages(
    tmp_path: Path, name: str, split: str, header: str, languages: tuple[str, str], expected: list[tuple[str, str]]
) -> None:
    path = write(tmp_path / name, f"{header}\na\tb\n".replace("\t", split))
    assert pairs(path, languages) == expected


@pytest.mark.parametrize(
    "header", ["source\ttarget", "Text\tTranslation", "src\ttgt", "SRC\tTRG", "text_1\ttext2", "source\tde", "0\t1"]
)
def test_a_header_that_names_no_language_is_refused(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "a.tsv", f"{header}\na\tb\n")
    error = refusal(path)
    assert "a header that does not name en and es" in error.problem
    first, second = header.split("\t")
    assert f'columns = ["{first}", "{second}"]' in str(error.cure)
    assert pairs(path, columns=(first, second)) == [("a", "b")] == pairs(path, columns=(0, 1))
    assert texts(write(tmp_path / "b.tsv", "english\na\n"), "en") == ["a"]


@pytest.mark.parametrize("header", ["fr\tde", "en\tfr", "French\tGerman"])
def test_a_header_of_other_languages_may_be_text(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "a.tsv", f"{header}\na\tb\n")
    cure = str(refusal(path).cure)
    assert "Name a file in en and es. If the line is text: `columns = [0, 1]`." in cure
    assert 'columns = ["' not in cure, "they would be learned as the wrong languages"
    assert pairs(path, columns=(0, 1)) == [tuple(header.split("\t")), ("a", "b")]
    assert pairs(write(path, "no\tno\na\tb\n")) == [("no", "no"), ("a", "b")], "columns have two names"


@pytest.mark.parametrize(("name", "split"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_the_header_of_a_wider_table_names_the_columns(tmp_path: Path, name: str, split: str) -> None:
    path = write(tmp_path / name, "id\tes\tdomain\ten\n1\tHola\tx\tHello\n".replace("\t", split))
    assert pairs(path) == [("Hello", "Hola")] and texts(path, "es") == ["Hola"]
    assert pairs(path, columns=(3, 1)) == [("Hello", "Hola")] and pairs(path, columns=(2, 0)) == [("x", "1")]
    with pytest.raises(TextError, match=r"the header calls columns \[1\] es; wanted: en"):
        texts(path, "en", columns=(1,))
    for columns in ((1, 3), (2, 3), (1, 2)):
        error = refusal(path, columns=columns)
        assert "the header calls columns" in error.problem and "columns = [3, 1]" in str(error.cure)


def test_the_cure_of_a_wider_table_is_its_column_of_text(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"columns = \[1\]`; the first line has 0 'id', 1 'text'"):
        texts(write(tmp_path / "a.csv", "id,text\n1,Hello\n"), "en")


@pytest.mark.parametrize("split", [";", "\t", "|"])
def test_commas_of_a_text_are_no_separators(tmp_path: Path, split: str) -> None:
    """Each of these lines has one comma, so that it would be two fields."""
    path = write(tmp_path / "a.csv", f"Hello, you{split}Bonjour toi\nBye, you{split}Au revoir\n")
    for keys in ({}, {"columns": (0, 1)}):
        assert "no separators" in refusal(path, **keys).problem
    path = write(tmp_path / "a.csv", f'"Hello, you{split}two",Bonjour\n"Bye{split}",Au revoir\n')
    assert len(pairs(path)) == 2


def test_quotes_after_a_space_are_quotes(tmp_path: Path) -> None:
    assert pairs(write(tmp_path / "a.csv", '"a, b", "c, d"\ne, f\n')) == [("a, b", "c, d"), ("e", "f")]


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
@pytest.mark.parametrize(("first", "problem"), [('{"en": "a", "es": "b"}', "begins as JSON"), ("sep=;", "only Excel")])
def test_a_table_begins_with_a_row(tmp_path: Path, name: str, first: str, problem: str) -> None:
    assert problem in refusal(write(tmp_path / name, f"{first}\n")).problem


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_blank_lines_at_the_end_are_nothing(tmp_path: Path, name: str) -> None:
    line = {"a.tsv": "a\tb", "a.csv": "a,b", "a.jsonl": '{"en": "a", "es": "b"}'}[name]
    assert pairs(write(tmp_path / name, f"{line}\n\n \r\n\x1a")) == [("a", "b")]
    refusal(write(tmp_path / name, f"{line}\n\n{line}\n"))


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_blank_line_is_one_empty_column(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "a\n\nb\n")
    assert texts(path, "en") == ["a", "", "b"]
    assert "1 column," in refusal(path).problem


def test_unknown_column_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "english\tspanish\n")
    error = refusal(path, columns=("english", "es"))
    assert str(error).startswith(f"{path}:1: no column 'es'\n")
    assert "english, spanish" in str(error.cure)


@pytest.mark.parametrize(("content", "line"), [('a,b\n"c" d,e\n', 2), ('a,b\nc,"d\ne\n', 3)])
def test_bad_csv_quoting_is_refused(tmp_path: Path, content: str, line: int) -> None:
    error = refusal(write(tmp_path / "a.csv", content))
    assert error.place == f"{tmp_path / 'a.csv'}:{line}"
    assert "not a csv row" in error.problem
    assert '""hi""' in str(error.cure)


def test_jsonl_columns_with_dots_reach_into_records(tmp_path: Path) -> None:
    rows = [
        {"translation": {"en": "a", "es": None}},
        {"translation.en": "b", "translation": {"es": "\ud83d\ude00\ud800"}},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert pairs(path, columns=("translation.en", "translation.es")) == [("a", ""), ("b", "😀\ufffd")]


@pytest.mark.parametrize(
    ("line", "problem", "cure"),
    [
        ('{"t": {"en": "a"', "unreadable JSON (Expecting ',' delimiter: column 17 ", "one object"),
        ("", "unreadable JSON (Expecting value: column 1 ", "blank lines are not allowed"),
        ('["a", "b"]', "list where a record with 't' is expected", "t.en"),
        ('{"t": "a"}', "str where a record with 'en' is expected", "t.en"),
        ('{"t": {"de": "a", "fr": "b"}}', "no column 't.en'", "de, fr"),
        ('{"t": {"en": 3}}', "column 't.en' contains int, not text", "column of texts"),
        ("[" * 100_000, "unreadable JSON", "one object"),
        ("1" * 5000, "unreadable JSON", "one object"),
    ],
    ids=lambda value: value[:12],
)
def test_bad_jsonl_record_is_refused(tmp_path: Path, line: str, problem: str, cure: str) -> None:
    good = '{"t": {"en": "a"}}'
    path = write(tmp_path / "a.jsonl", f"{good}\n{line}\n{good}\n")
    with pytest.raises(TextError) as caught:
        texts(path, "en", columns=("t.en",))
    assert str(caught.value).startswith(f"{path}:2: {problem}")
    assert cure in (caught.value.cure or "")


@pytest.mark.parametrize(
    ("record", "keys", "names"),
    [
        ({"text": "Hello", "es": "Hola"}, {}, ["text", "es"]),
        ({"en": "Hello", "es": "Hola"}, {"columns": (0, 1)}, ["en", "es"]),
        ({"id": "1", "source": "Hello", "target": "Hola"}, {}, ["source", "target"]),
        ({"translation": {"en": "Hello", "es": "Hola"}}, {}, ["translation.en", "translation.es"]),
    ],
)
def test_the_cure_of_jsonl_names_its_columns(
    tmp_path: Path, record: dict[str, Any], keys: dict[str, Any], names: list[str]
) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps(record) + "\n")
    assert f"`columns = {json.dumps(names)}`" in str(refusal(path, **keys).cure)
    assert pairs(path, columns=tuple(names)) == [("Hello", "Hola")]


def test_records_are_read_by_columns_named_as_the_languages(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"Spanish": "Hola", "text_en": "Hello", "id": 1}\n')
    assert pairs(path) == [("Hello", "Hola")]
    path = write(tmp_path / "a.jsonl", '{"id": "17", "en": "Hello", "ind": "Halo"}\n')
    assert pairs(path, ("en", "id")) == [("Hello", "Halo")], "id is no Indonesian beside it"
    path = write(tmp_path / "a.jsonl", '{"id": "17", "text": "Halo"}\n')
    with pytest.raises(TextError, match=r'columns = \["text"\]'):
        texts(path, "id")
    assert pairs(write(tmp_path / "a.jsonl", '{"id": "Halo", "en": "Hello"}\n'), ("en", "id")) == [("Hello", "Halo")]


@pytest.mark.parametrize(
    "content", ['[{"en": "a"}, {"en": "b"}]\n', '["a"]\n', '[\n {"en": "a"}]\n', '{\n "en": "a"}\n']
)
def test_json_that_is_not_by_lines_is_refused_with_its_conversion(tmp_path: Path, content: str) -> None:
    for keys in ({}, {"columns": ("en",)}):
        with pytest.raises(TextError, match=r"jq -c '\.\[\]' FILE"):
            texts(write(tmp_path / "a.jsonl", content), "en", **keys)


FIELD = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]))
FILES: Iterator[int] = count()


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(FIELD, FIELD)))
def test_tables_round_trip_any_text(tmp_path: Path, name: str, rows: list[tuple[str, str]]) -> None:
    rows = [("a cat", "un gato"), *rows]  # because a first row may be a header
    text = io.StringIO(newline="")
    if name == "a.csv":
        csv.writer(text).writerows(rows)
    elif name == "a.tsv":
        text.writelines(f"{first}\t{second}\n" for first, second in rows)
    else:
        text.writelines(json.dumps({"a": first, "b": second}) + "\n" for first, second in rows)
    path = write(tmp_path / f"{next(FILES)}{name}", text.getvalue())
    columns = ("a", "b") if name == "a.jsonl" else None
    assert pairs(path, columns=columns) == [(clean(first), clean(second)) for first, second in rows]


@pytest.mark.parametrize("row", [("", "{"), ("[", ""), ("[", "["), ("<a", ">")])
def test_a_first_row_of_brackets_is_text(tmp_path: Path, row: tuple[str, str]) -> None:
    assert pairs(write(tmp_path / "a.tsv", "\t".join(row) + "\nb\tc\n")) == [row, ("b", "c")]


@given(rows=st.lists(st.text(st.sampled_from('a,"\n\r '))))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_round_trips_quotes_and_breaks(tmp_path: Path, rows: list[str]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([row] for row in rows)
    path = write(tmp_path / f"{next(FILES)}.csv", text.getvalue())
    assert texts(path, "en", columns=(0,)) == [clean(row) for row in rows]


# -- parquet and data sets


def parquet_file(path: Path, columns: dict[str, list[Any]]) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_parquet(tmp_path: Path, gz: str) -> None:
    nested = [{"en": "x", "es": "y"}, {"en": "z", "es": None}]
    path = parquet_file(tmp_path / "a.parquet", {"es": ["Hola", None], "en": ["Hello", "b"], "t": nested})
    if gz:
        path = write(tmp_path / f"a.parquet{gz}", path.read_bytes())
    assert pairs(path) == [("Hello", "Hola"), ("b", "")]
    assert texts(path, "es") == ["Hola", ""]
    assert pairs(path, columns=("t.es", "t.en")) == [("y", "x"), ("", "z")]
    assert pairs(path, columns=("en", "t.en"), limit=1) == [("Hello", "x")]


@pytest.mark.parametrize(
    ("columns", "place", "problem", "cure"),
    [
        (None, "", "does not name the columns", "id, src"),
        (("src", "tgt.es"), "", "no column 'tgt'", "id, src"),
        (("src", "id"), "", "contains int64", "column of texts"),
        (("src", "src.a"), "", "string where a record with 'a' is expected", "columns"),
        (("src", "names"), "", "contains list<element: string>", "column of texts"),
        (("src", "raw"), "", "contains binary", "column of texts"),
        (("src", "both"), "", "contains struct", "translation.en"),
        (("src", "both.c"), "", "no column 'c'", "a, b"),
    ],
)
def test_bad_parquet_columns_are_refused(tmp_path: Path, columns: Any, place: str, problem: str, cure: str) -> None:
    others = {"names": [["a"]], "raw": [b"a"], "both": [{"a": "1", "b": None}]}
    path = parquet_file(tmp_path / "a.parquet", {"id": [1], "src": ["a"], **others})
    error = refusal(path, columns=columns)
    assert error.place == f"{path}{place}"
    assert problem in error.problem
    assert cure in str(error.cure)


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_broken_parquet_is_refused(tmp_path: Path, keep: int) -> None:
    path = parquet_file(tmp_path / "a.parquet", {"en": ["a"], "es": ["b"]})
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path}: unreadable parquet file" in str(refusal(path))


def hub(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load, config=SimpleNamespace()))
    # Which another test of this process may have set.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_dataset_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load(*args: Any, **keys: Any) -> Iterator[dict[str, Any]]:
        calls.append((args, keys))
        yield from ({"translation": {"en": f"a {n}", "es": f"b {n}"}, "en": "c"} for n in count())

    hub(monkeypatch, load)
    columns = ("translation.en", "translation.es")
    source = TextSource(path="hf:a/b#subset=en-es&split=test", columns=columns, limit=2)
    assert list(read_rows(source, [], LANGUAGES)) == [("a 0", "b 0"), ("a 1", "b 1")]
    assert calls == [(("a/b", "en-es"), {"split": "test", "streaming": True, "revision": None})]
    assert list(read_rows(TextSource(path="hf:a/b", format="datasets", limit=1), [], ("en",))) == [("c",)]


def unreachable(*args: Any, **keys: Any) -> Iterator[dict[str, Any]]:
    yield {"en": "a", "es": "b"}
    raise ConnectionError("no route to host\nmore")


def test_unreachable_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, unreachable)
    rows = read_rows(TextSource(path="hf:a/b"), [], LANGUAGES)
    assert next(rows) == ("a", "b")
    with pytest.raises(
        TextError, match=r"^hf:a/b: the request for data set 'a/b' failed: ConnectionError: no route to host\n  check"
    ):
        next(rows)


def test_interrupt_during_a_download_is_not_a_hub_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **keys: Any) -> Iterator[dict[str, Any]]:
        raise Interrupted(2)

    hub(monkeypatch, load)
    with pytest.raises(Interrupted):
        next(read_rows(TextSource(path="hf:a/b"), [], LANGUAGES))


@pytest.mark.parametrize(("package", "path"), [("datasets", "hf:a/b"), ("pyarrow", "a.parquet")])
def test_missing_optional_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, package: str, path: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    paths = [] if path.startswith("hf:") else [Path(path)]
    with pytest.raises(TextError, match=rf"{path}: .*package `{package}`.*\n  pip install 'roundtrip-mt\[data\]'"):
        list(read_rows(TextSource(path=path), paths, LANGUAGES))


# -- gettext catalogues

SPANISH = "Plural-Forms: nplurals=3; plural=n == 1 ? 0 : n != 0 && n % 1000000 == 0 ? 1 : 2;"
HEADER = f'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\nLanguage: es\\n{SPANISH}\\n"\n\n'
ENTRIES = r"""#, fuzzy
msgid "Fuzzy"
msgstr "Confuso"

msgid "Untranslated"
msgstr ""

msgid "One %(n)s file"
msgid_plural "%(n)s files"
msgstr[0] "Un archivo"
msgstr[1] "Archivos"
msgstr[2] "%(n)s archivos"

#. Default: "Say \"hi\" to\nthe \\world"
#: somewhere.py:1
msgid "label_hi"
msgstr "Saluda"

#. A note.
#. Default: "Over two "
#. "strings, and
#. three lines"
#. Another "note"
msgid "label_lines"
msgstr "En líneas"

#. Default: ""
msgid "label_empty"
msgstr "Vacío"

#~ msgid "Obsolete"
#~ msgstr "Obsoleto"
"""
TRANSLATED = [
    ("One %(n)s file", "Un archivo"),
    ("%(n)s files", "%(n)s archivos"),
    ('Say "hi" to the \\world', "Saluda"),
    ("Over two strings, and three lines", "En líneas"),
    ("label_empty", "Vacío"),
]


def test_po_catalogue(tmp_path: Path) -> None:
    path = write(tmp_path / "a.po", HEADER + ENTRIES)
    assert pairs(path) == TRANSLATED
    assert texts(path, "es") == [target for _, target in TRANSLATED]
    assert texts(path, "en") == ["Fuzzy", "Untranslated", *(source for source, _ in TRANSLATED)]


@pytest.mark.parametrize(
    ("header", "languages", "is_swapped"),
    [
        ("Language: es", ("en", "es"), False),
        ("Language: es", ("es", "en"), True),
        ("Language: es_AR", ("es", "en"), True),
        ("Language-Code: es", ("es", "en"), True),
        ("Language: pt_PT", ("pt-BR", "pt-PT"), False),
        ("Language: nb_NO", ("en", "no"), False),
        ("Language: zh_TW", ("en", "zh-Hant"), False),
        ("Language: ", ("es", "en"), True),
        ("X-Nothing: es", ("es", "en"), True),
    ],
)
def test_po_language_header_decides_the_order(
    tmp_path: Path, header: str, languages: tuple[str, str], is_swapped: bool
) -> None:
    path = write(tmp_path / "a.po", f'msgid ""\nmsgstr "{header}\\n"\n\nmsgid "Hello"\nmsgstr "Hola"\n')
    assert pairs(path, languages) == [("Hola", "Hello") if is_swapped else ("Hello", "Hola")]


@pytest.mark.parametrize(
    ("header", "languages", "num_counted"),
    [
        ("Language: fr", ("es", "fr"), 1),
        ("Language: fr", ("fr", "es"), 1),
        ("Language: en", ("en", "fr"), 1),
        ("Language: fr", ("en", "fr"), 0),
        ("Language: en_GB", ("en-US", "en-GB"), 0),
        ("Language: fr\\nX-Source-Language: es", ("es", "fr"), 0),
    ],
)
def test_messages_of_a_catalogue_that_are_not_known_to_be_in_a_language_are_counted(
    tmp_path: Path, header: str, languages: tuple[str, str], num_counted: int
) -> None:
    path = write(tmp_path / "a.po", f'msgid ""\nmsgstr "{header}\\n"\n\nmsgid "A"\nmsgstr "B"\n')
    count = Counter[str]()
    assert len(list(read_rows(TextSource(path=str(path)), [path], languages, count))) == 1
    assert count[UNNAMED_SOURCE] == num_counted
    shown = "1 line, 1 with messages whose language no X-Source-Language header names"
    assert describe_counts(count | Counter(kept=1)) == (shown if num_counted else "1 line")


def test_po_in_another_language_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.po", 'msgid ""\nmsgstr "Language: fr\\n"\n\nmsgid "Hello"\nmsgstr "Bonjour"\n')
    error = refusal(path, ("en", "es"))
    assert "in 'fr', which is neither of the languages; wanted: 'en' and 'es'" in error.problem
    assert "Language: es" not in str(error.cure), "French would be learned as Spanish"


def test_po_side_without_language_header_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.po", 'msgid "Hello"\nmsgstr "Hola"\n')
    with pytest.raises(TextError, match=r"a\.po: without a Language header(.|\n)*Language: es"):
        texts(path, "es")


def test_pot_template_has_messages_only(tmp_path: Path) -> None:
    header = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=CHARSET\\n"\n\n'
    path = write(tmp_path / "a.pot", header + 'msgid "Olé"\nmsgstr ""\n')
    assert texts(path, "en") == ["Olé"]
    assert pairs(path) == []


def test_po_charset_header_is_used(tmp_path: Path) -> None:
    content = PO.replace("UTF-8", "ISO-8859-1")
    path = write(tmp_path / "a.po", content.encode("latin-1"))
    assert pairs(path) == PAIRS
    path = write(tmp_path / "a.po", content.replace("ISO-8859-1", "ascii").encode("latin-1"))
    assert str(refusal(path)).startswith(f"{path}:11: not ASCII (byte 0xf3)")


def test_po_message_may_contain_line_separators(tmp_path: Path) -> None:
    path = write(tmp_path / "a.po", 'msgid "a\u2028b\x0cc"\nmsgstr "d"\n')
    assert pairs(path) == [("a b c", "d")]


@pytest.mark.parametrize("forms", ["", "plural=EXPRESSION;", "plural=n!;"])
def test_plural_forms_are_not_guessed(tmp_path: Path, forms: str) -> None:
    start = f'msgid ""\nmsgstr "Language: ar\\nPlural-Forms: {forms}\\n"\n\n'
    entry = 'msgid "a"\nmsgid_plural "b"\nmsgstr[0] "0"\nmsgstr[1] "1"\nmsgstr[2] "2"\n'
    error = refusal(write(tmp_path / "a.po", start + entry), ("en", "ar"))
    assert "Plural-Forms header" in error.problem and "another catalogue in this language" in str(error.cure)
    without_plurals = write(tmp_path / "a.po", start + 'msgid "a"\nmsgstr "b"\n')
    assert pairs(without_plurals, ("en", "ar")) == [("a", "b")]


@pytest.mark.parametrize("charset", ["rot13", "utf-16", "none"])
def test_a_charset_that_cannot_be_is_utf_8(tmp_path: Path, charset: str) -> None:
    assert pairs(write(tmp_path / "a.po", PO.replace("UTF-8", charset))) == PAIRS
    content = PO.replace("Content-Type", "content-type").replace("UTF-8", "ISO-8859-1")
    assert pairs(write(tmp_path / "a.po", content.encode("latin-1"))) == PAIRS


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('msgid "a"\nmsgstr "b"\nnonsense\n', 3),
        ('msgid "a"\nmsgstr "b', 2),
        ('msgid "a"\nmsgstr "b\n"c"\n', 2),
        ('msgid "a"\nmsgstr "b" c"\n', 2),
        ('msgstr "b"\n', 1),
        ('msgid "a"\nmsgid_plural "b"\nmsgstr[x] "c"\n', 3),
    ],
)
def test_broken_po_is_refused_with_line_number(tmp_path: Path, content: str, line: int) -> None:
    path = write(tmp_path / "a.po", content)
    error = refusal(path)
    assert str(error).startswith(f"{path}:{line}: not a gettext catalogue")
    assert "msgfmt" in str(error.cure)


# -- TMX and XLIFF


def tmx(body: str, before: str = "", attributes: str = "") -> str:
    root = f'<tmx version="1.4"{attributes}>'
    return f'<?xml version="1.0"?>\n{before}{root}<header/><body>\n{body}\n</body></tmx>'


def unit(**variants: str) -> str:
    sides = (f'<tuv xml:lang="{code.replace("_", "-")}"><seg>{text}</seg></tuv>' for code, text in variants.items())
    return f"<tu>{''.join(sides)}</tu>"


def test_tmx_with_three_languages(tmp_path: Path) -> None:
    body = unit(fr="Un", en="One", es="Uno") + unit(en="Two", fr="Deux") + unit(es_MX="Tres", en_GB="3", en="Three")
    path = write(tmp_path / "a.tmx", tmx(body))
    assert pairs(path) == [("One", "Uno"), ("Three", "Tres")]
    assert pairs(path, ("fr", "en")) == [("Un", "One"), ("Deux", "Two")]
    assert texts(path, "en") == ["One", "Two", "Three"]
    assert texts(path, "en-GB") == ["One", "Two", "3"]


def test_tmx_reads_all_variants_of_one_language(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tmx", tmx(unit(en_US="color", en_GB="colour", es="color")))
    assert texts(path, "en") == ["color", "colour"]


def test_tmx_varieties_of_a_language_do_not_share_a_text(tmp_path: Path) -> None:
    body = unit(pt_BR="a", pt_PT="b") + unit(pt_BR="c") + unit(pt="d", pt_BR="e")
    path = write(tmp_path / "a.tmx", tmx(body))
    assert pairs(path, ("pt-PT", "pt-BR")) == [("b", "a"), ("d", "e")]


@pytest.mark.parametrize("attributes", ["", ' xmlns="http://www.lisa.org/tmx14"'])
def test_tmx_inline_tags_keep_their_text(tmp_path: Path, attributes: str) -> None:
    segment = 'a <bpt i="1">(</bpt>b<ept i="1">)</ept> <hi>c<ph/></hi> &amp; &#100;<!-- no --><?no no?> e'
    body = unit(en=segment, es="<hi/>")
    path = write(tmp_path / "a.tmx", tmx(body, '<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n', attributes))
    assert pairs(path) == [("a b c & d e", "")]


def xliff_1(units: str, languages: str = 'source-language="en" target-language="es"', minor: str = "2") -> str:
    root = f'<xliff version="1.{minor}" xmlns="urn:oasis:names:tc:xliff:document:1.{minor}">'
    return f"{root}<file {languages}><body>{units}</body></file></xliff>"


def test_xliff_1_skips_units_without_translation(tmp_path: Path) -> None:
    body = """
    <trans-unit id="1"><source>one</source></trans-unit>
    <trans-unit id="2"><source>two</source><target state="new">two</target></trans-unit>
    <trans-unit id="3"><source>three</source><target state="needs-translation"/></trans-unit>
    <trans-unit id="4" translate="no"><source>four</source><target>4</target></trans-unit>
    <group translate="no"><trans-unit id="5"><source>five</source><target>5</target></trans-unit>
      <trans-unit id="6" translate="yes"><source>six</source><target>6</target></trans-unit></group>
    <trans-unit id="7" approved="no"><source>sev<g id="1">en</g><x id="2"/></source>
      <seg-source><mrk mtype="seg">seven</mrk></seg-source>
      <alt-trans><source>x</source><target>y</target></alt-trans><target>7</target></trans-unit>
    <trans-unit id="8"><source>eight</source><target/></trans-unit>
    <trans-unit id="9"><source>nine</source><alt-trans><target>9</target></alt-trans></trans-unit>"""
    path = write(tmp_path / "a.xlf", xliff_1(body))
    assert pairs(path) == [("six", "6"), ("seven{2}", "7"), ("eight", "")]
    assert texts(path, "es") == ["6", "7", ""]
    assert texts(path, "en") == ["one", "two", "three", "six", "seven{2}", "eight", "nine"]


@pytest.mark.parametrize(
    ("unit", "languages"),
    [
        ('<target state-qualifier="rejected-grammar">b</target>', ("en", "es")),
        ('<target><mrk mtype="seg" mid="1">b</mrk> <mrk mtype="seg" mid="2"/></target>', ("en", "es")),
        ('<target><mrk mtype="seg" mid="1">b</mrk></target>', ("en", "es")),
        ('<target xml:lang="fr">b</target>', ("en", "fr")),
    ],
)
def test_xliff_1_targets_that_are_no_translations_of_their_source(
    tmp_path: Path, unit: str, languages: tuple[str, str]
) -> None:
    segments = '<seg-source><mrk mtype="seg" mid="1">a</mrk> <mrk mtype="seg" mid="2">c</mrk></seg-source>'
    whole = '<target><mrk mtype="seg" mid="1">b</mrk> <mrk mtype="seg" mid="2">d</mrk></target>'
    body = "".join(f'<trans-unit id="1"><source>a c</source>{segments}{t}</trans-unit>' for t in (unit, whole))
    path = write(tmp_path / "a.xlf", xliff_1(body))
    assert pairs(path) == [("a c", "b d")]
    assert pairs(path, languages)[0] == (("a c", "b d") if languages == LANGUAGES else ("a c", "b"))


def test_the_cure_of_texts_without_a_language_adds_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.xlf",
        xliff_1("<trans-unit><source>a</source><target>b</target></trans-unit>", 'source-language="en"'),
    )
    assert "target-language in XLIFF" in str(refusal(path).cure)
    path = write(tmp_path / "a.tmx", tmx(unit(en="a", sr_SP_Latn="b")))
    assert "to be corrected in the file: sr-SP-Latn." in str(refusal(path, ("en", "sr-Latn")).cure)


def test_xliff_2_skips_segments_without_translation(tmp_path: Path) -> None:
    body = """<unit id="1"><segment state="initial"><source>one</source><target>1</target></segment>
    <ignorable><source> </source><target> </target></ignorable>
    <segment><source>t<pc id="1">w</pc>o</source><target>2</target></segment>
    <segment><source>three</source></segment></unit>
    <unit id="2" translate="no"><segment><source>four</source><target>4</target></segment></unit>"""
    content = XLIFF_2[: XLIFF_2.index("<x:unit")] + f"{body}</x:file></x:xliff>"
    content = content.replace("x:", "").replace("xmlns:=", "xmlns=").replace("xmlns:x=", "xmlns=")
    path = write(
        tmp_path / "a.xlf",
        content.replace("urn:oasis:names:tc:xliff:document:2.0", "urn:oasis:names:tc:xliff:document:2.2"),
    )
    assert pairs(path) == [("two", "2")]
    assert texts(path, "en") == ["one", "two", "three"]


@pytest.mark.parametrize(
    "content",
    [
        xliff_1('<trans-unit id="1"><source>a</source><target>b</target></trans-unit>', minor="1"),
        xliff_1(
            '<trans-unit id="1"><source>a</source><target xml:lang="es">b</target></trans-unit>',
            'source-language="en-GB"',
        ),
        '<xliff version="1.0"><file source-language="en" target-language="ES"><body>'
        "<trans-unit><source>a</source><target>b</target></trans-unit></body></file></xliff>",
        xliff_1(
            '<trans-unit id="1" xmlns:z="urn:z"><source>a</source><target>b</target>'
            "<z:unit/><z:trans-unit/></trans-unit>"
        ),
    ],
)
def test_xliff_1_versions_and_namespaces(tmp_path: Path, content: str) -> None:
    assert pairs(write(tmp_path / "a.xlf", content)) == [("a", "b")]


def test_xliff_with_files_of_several_languages(tmp_path: Path) -> None:
    first, _, second = XLIFF_1.partition("</file>")
    french = '</file><file source-language="en" target-language="fr"><body><trans-unit id="1"><source>a</source>'
    path = write(tmp_path / "a.xlf", f"{first}{french}<target>b</target></trans-unit></body></file>{second}")
    assert pairs(path) == PAIRS
    assert pairs(path, ("fr", "en")) == [("b", "a")]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.tmx", TMX, "EN-us, es, en, es-MX"),
        ("a.xlf", XLIFF_1, "en, es"),
        ("a.xliff", XLIFF_2, "en, es"),
        ("b.tmx", tmx(""), "none"),
    ],
)
def test_missing_language_is_refused(tmp_path: Path, name: str, content: str, found: str) -> None:
    path = write(tmp_path / name, content)
    error = refusal(path, ("de", "fr"))
    assert error.problem == "no text in 'de', 'fr'"
    assert f"Languages found: {found}." in str(error.cure)
    with pytest.raises(TextError, match="no text in 'de'"):
        texts(path, "de")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tmx", TMX[:-10], ":5: broken XML (expected '>')"),
        ("a.tmx", TMX.replace("Hello</seg>", "Hello & bye</seg>"), ":3: broken XML"),
        ("a.tmx", TMX.replace("Hello", "&nbsp;"), ":3: broken XML (Entity 'nbsp' not defined)"),
        ("a.tmx", "", ": broken XML (no element found"),
        ("a.tmx", XLIFF_1, ": not TMX: the root is <{urn:oasis:names:tc:xliff:document:1.2}xliff>"),
        ("a.xlf", TMX, ": not XLIFF: the root is <tmx>"),
        ("a.xlf", XLIFF_1.replace("document:1.2", "document:3.0"), ": not XLIFF"),
        ("a.xlf", XLIFF_1.encode().replace(b"Hello", b"Hell\xf3"), ":3: broken XML"),
    ],
)
def test_broken_xml_is_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    assert str(refusal(path)).startswith(f"{path}{message}")


BOMB = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize("name", ["a.tmx", "a.xlf"])
@pytest.mark.parametrize(
    ("declared", "entity"), [(BOMB, "a9"), ('<!ENTITY x SYSTEM "{secret}">', "x"), ('<!ENTITY x "y">', "x")]
)
def test_xml_entities_are_not_expanded(tmp_path: Path, name: str, declared: str, entity: str) -> None:
    secret = write(tmp_path / "secret", "secret")
    root, content = ("tmx", TMX.partition("\n")[2]) if name == "a.tmx" else ("xliff", XLIFF_1)
    doctype = f"<!DOCTYPE {root} [{declared.replace('{secret}', secret.as_uri())}]>\n"
    path = write(tmp_path / name, doctype + content.replace("Hello", f"&{entity};"))
    error = refusal(path)
    assert "secret" not in str(error).replace(str(secret), "")
    if declared == BOMB:
        # The parser may refuse it before we do, depending on its version.
        assert "not expanded" in error.problem or "broken XML" in error.problem
        return
    assert error.problem == f"the entity &{entity}; is not expanded"
    assert str(error.place) == f"{path}:{3 if name == 'a.tmx' else 4}"
    assert "Write out" in str(error.cure)


def test_entity_bomb_in_an_attribute_is_refused(tmp_path: Path) -> None:
    content = f"<!DOCTYPE tmx [{BOMB}]>\n" + TMX.partition("\n")[2].replace('lang="es"', 'lang="&a9;"')
    assert "broken XML" in refusal(write(tmp_path / "a.tmx", content)).problem


TEXT = "a" * 1000
XLIFF_UNIT = f"<trans-unit><source>{TEXT}</source><target>b</target></trans-unit>"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tmx", "<!-- before the root -->" + tmx(unit(en=TEXT, es="b") * 1000).partition("\n")[2]),
        ("a.xlf", xliff_1(XLIFF_UNIT * 1000)),
        ("a.xlf", xliff_1(f"<group>{XLIFF_UNIT}</group>" * 1000)),
    ],
    ids=["tmx", "xliff", "groups"],
)
def test_xml_elements_are_freed_after_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    sizes: list[int] = []
    inner_text = tmx_xliff._inner_text

    def count_elements(element: Any, path: Path) -> str:
        sizes.append(sum(1 for _ in element.getroottree().iter()))
        return inner_text(element, path)

    monkeypatch.setattr(tmx_xliff, "_inner_text", count_elements)
    assert pairs(write(tmp_path / name, content)) == [(TEXT, "b")] * 1000
    # The parser is about 32 kB ahead of the reader.
    assert max(sizes) < 500


# -- files that are not what they seem


@pytest.mark.parametrize(
    ("content", "problem", "cure"),
    [
        ("a\tb\n".encode("utf-16"), "it is UTF-16", "iconv -f UTF-16 "),
        ("a\tb\n".encode("utf-16-le"), "NUL bytes", "iconv -f UTF-16LE"),
        ("a\tb\n".encode("utf-16-be"), "NUL bytes", "iconv -f UTF-16BE"),
        (b"PAR1\x15\0", "a parquet file", "ends in .parquet"),
        ("a\tb\n".encode("utf-32"), "it is UTF-32", "iconv -f UTF-32"),
        (gzip.compress(b"a\tb\n", mtime=0), "compressed with gzip", "ends in .gz"),
        (b"PK\x03\x04rest", "a zip archive", "Unpack it"),
        (b"BZh91AY", "bzip2", "bunzip2"),
        (b"%PDF-1.7\n", "a PDF", "Export its text"),
        (b"a\tb\rc\td\r", "end in a carriage return alone", "tr '\\r' '\\n'"),
        (b"a\tb\rc\td", "end in a carriage return alone", "tr '\\r' '\\n'"),
    ],
)
@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.txt"])
def test_what_is_not_lines_of_utf_8_is_named(
    tmp_path: Path, name: str, content: bytes, problem: str, cure: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(TextError) as caught:
        texts(path, "en")
    assert problem in caught.value.problem and cure in str(caught.value.cure)


@pytest.mark.parametrize("name", ["a.json", "a.xml", "a.html", "a.docx", "a.zip", "a.srt", "a.YAML", "a.sgm"])
def test_files_of_other_formats_are_no_plain_lines(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "Hello\n")
    with pytest.raises(TextError, match="is not one of plain lines"):
        texts(path, "en")
    assert texts(path, "en", format="lines") == ["Hello"]
    assert texts(path, "en", format="tsv") == ["Hello"]


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        ('{"id": 0, "text": "Hola"}', "JSON"),
        ('[{"text": "Hola"},', "JSON"),
        ('["Hola",', "JSON"),
        ("[", "JSON"),
        ('<?xml version="1.0"?>', "XML"),
        ("<xliff version='1.2'>", "XML"),
        ("<!DOCTYPE html>", "HTML"),
        ('<rss version="2.0">', "XML"),
        ("<!-- made by hand -->", "XML"),
        ("WEBVTT", "subtitles"),
        ('msgid ""', "a gettext catalogue"),
    ],
)
def test_plain_lines_do_not_begin_as_markup(tmp_path: Path, first: str, kind: str) -> None:
    path = write(tmp_path / "a.txt", f" \n{first}\nHello\n")
    with pytest.raises(TextError, match=f"begins as {kind}"):
        texts(path, "en")
    path = write(tmp_path / "a.txt", f"{first}\nHello\n")
    with pytest.raises(TextError, match=f"begins as {kind}"):
        texts(path, "en")
    assert texts(path, "en", format="lines") == [first, "Hello"]


@pytest.mark.parametrize("first", ["[Music] Hello", "{name}, hello", '["Well", he said]', "<b>Bold</b>", "[1] One"])
def test_text_may_begin_with_a_bracket(tmp_path: Path, first: str) -> None:
    assert texts(write(tmp_path / "a.txt", f"{first}\nHello\n"), "en") == [first, "Hello"]


def test_plain_lines_have_no_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "1\tHello\n2\tBye\n")
    with pytest.raises(TextError, match=r'tabs in its lines(.|\n)*format = "tsv"'):
        texts(path, "en")
    assert texts(path, "en", format="tsv", columns=(1,)) == ["Hello", "Bye"]
    assert texts(path, "en", format="lines") == ["1 Hello", "2 Bye"]


def test_lines_that_end_in_carriage_returns_behind_the_first(tmp_path: Path) -> None:
    for content in ("a\nb\rc\rd\re\n", "b\rc\rd\n"):
        with pytest.raises(TextError, match="end in a carriage return alone"):
            texts(write(tmp_path / "a.txt", content), "en")
    assert texts(write(tmp_path / "a.txt", "a\rb\r\r\n"), "en") == ["a b"], "a stray one"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "a folder where a file is expected" in refusal(tmp_path).problem


def test_a_csv_text_of_a_book_has_a_quote_that_is_not_closed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'a,b\n"' + "x" * (1 << 20) + '\n"\n')
    error = refusal(path)
    assert "a text of more than 1,048,576 characters" in error.problem and "never closed" in str(error.cure)


def test_a_null_record_is_an_empty_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"t": null}\n{"t": {"en": "a", "es": "b"}}\n')
    assert pairs(path, columns=("t.en", "t.es")) == [("", ""), ("a", "b")]


# -- inline elements


def inline_unit(source: str, target: str, kind: str) -> str:
    if kind == "tmx":
        variants = "".join(f'<tuv xml:lang="{c}"><seg>{t}</seg></tuv>' for c, t in (("en", source), ("es", target)))
        return f'<tmx version="1.4"><header/><body><tu>{variants}</tu></body></tmx>'
    if kind == "xliff":
        return (
            '<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2"><file source-language="en" '
            f'target-language="es"><body><trans-unit id="1"><source>{source}</source><target>{target}</target>'
            "</trans-unit></body></file></xliff>"
        )
    return (
        '<xliff version="2.0" xmlns="urn:oasis:names:tc:xliff:document:2.0" srcLang="en" trgLang="es"><file id="f">'
        f'<unit id="1"><segment><source>{source}</source><target>{target}</target></segment></unit></file></xliff>'
    )


@pytest.mark.parametrize(
    ("kind", "inside", "expected"),
    [
        ("tmx", 'Press <bpt i="1">{\\b </bpt>Save<ept i="1">}</ept> now', "Press Save now"),
        ("tmx", 'Press <ph x="2">&lt;img src="disk.png"/&gt;</ph> now', "Press now"),
        ("tmx", "Open <ph>%(name)s</ph>!", "Open %(name)s!"),
        ("tmx", "Open <ph>{0}</ph>, <hi>now</hi>", "Open {0}, now"),
        ("tmx", '<it pos="begin">&lt;i&gt;</it>Now<ut>{\\par}</ut>', "Now"),
        ("tmx", 'One<ph x="1">&lt;br/&gt;</ph>two<ph x="2"> </ph>three<ph>\\n</ph>', "One two three"),
        ("tmx", "<ph>{\\b </ph>Bold<ph>}</ph>", "Bold"),
        ("tmx", 'See <ph>&lt;img alt="<sub>a picture</sub>"/&gt;</ph>', "See a picture"),
        ("xliff", 'Hello <x id="INTERPOLATION" equiv-text="{{name}}"/>, open', "Hello {{name}}, open"),
        ("xliff", 'Hello <x id="3"/>, open', "Hello {3}, open"),
        ("xliff", '<g id="1">Hello</g> <mrk mtype="seg">you</mrk>', "Hello you"),
        ("xliff", 'A<bx id="1"/>b<ex id="1"/>c <bpt id="2">&lt;b&gt;</bpt>d<ept id="2">&lt;/b&gt;</ept>', "Abc d"),
        ("xliff2", '<pc id="1">Hello</pc> <ph id="2" equiv="%s"/> <sc id="3"/>you<ec/>', "Hello %s you"),
        ("xliff2", 'Hello <ph id="2" disp="&lt;br/&gt;"/> you<cp hex="001A"/>', "Hello you"),
    ],
)
def test_native_code_is_no_text(tmp_path: Path, kind: str, inside: str, expected: str) -> None:
    path = write(tmp_path / f"a.{kind.removesuffix('2')}", inline_unit(inside, inside, kind))
    count: Counter[str] = Counter()
    assert list(read_rows(TextSource(path=str(path)), [path], LANGUAGES, count)) == [(expected, expected)]
    assert count[INLINE_CODES] == (inside[:4] != "<hi>" and "<g" not in inside) and not count[DIFFERENT_CODES]


@pytest.mark.parametrize("kind", ["tmx", "xliff", "xliff2"])
def test_pairs_whose_codes_differ_are_counted(tmp_path: Path, kind: str) -> None:
    path = write(
        tmp_path / f"a.{kind.removesuffix('2')}", inline_unit('A <ph id="1">%s</ph>', 'B <ph id="1">%d</ph>', kind)
    )
    count: Counter[str] = Counter()
    assert list(read_rows(TextSource(path=str(path)), [path], LANGUAGES, count)) == [("A %s", "B %d")]
    assert count[INLINE_CODES] == count[DIFFERENT_CODES] == 1


def test_a_memory_without_segments_is_refused(tmp_path: Path) -> None:
    body = '<tu>\n<tuv xml:lang="en">Hello</tuv><tuv xml:lang="es">Hola</tuv></tu>'
    path = write(tmp_path / "a.tmx", f'<tmx version="1.4"><header/><body>{body}</body></tmx>')
    assert "a <tuv> without <seg>" in refusal(path).problem and str(refusal(path)).startswith(f"{path}:2: ")


def _parquet_rows(tmp_path: Path, table: Any, columns: Any = None) -> list[tuple[str, ...]]:
    path = tmp_path / "a.parquet"
    # Without a schema of Arrow, by which a dictionary would be read as one unasked.
    parquet.write_table(table, path, compression="zstd", store_schema=False)
    source = TextSource(path=str(path), columns=columns)
    return [tuple(text[:5] for text in row) for row in read_rows(source, [path], ("en", "es"))]


def test_a_parquet_file_that_grows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "FREE_BYTES", 1 << 20)
    with pytest.raises(TextError, match="grows more than 300 times when it is unpacked"):
        _parquet_rows(tmp_path, pyarrow.table({"en": ["a" * (1 << 26)], "es": ["b"]}))
    monkeypatch.setattr(text_files, "FREE_BYTES", 1 << 30)
    with pytest.raises(TextError, match="row 1: a text of more than 8 MiB"):
        _parquet_rows(tmp_path, pyarrow.table({"en": ["a" * (9 << 20)], "es": ["b"]}))


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_texts_that_a_parquet_file_repeats_do_not_fill_the_memory(tmp_path: Path, depth: int) -> None:
    dictionary = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1, None] * 70), ["a" * (3 << 20), "b"])
    for _ in range(depth):
        dictionary = pyarrow.StructArray.from_arrays([dictionary], ["x"])
    table = pyarrow.table({"en": dictionary, "es": ["c"] * 210})
    usual = pyarrow.default_memory_pool()
    pool = pyarrow.proxy_memory_pool(usual)
    pyarrow.set_memory_pool(pool)
    try:
        rows = _parquet_rows(tmp_path, table, columns=("en" + depth * ".x", "es"))
    finally:
        pyarrow.set_memory_pool(usual)
    assert rows == [("aaaaa", "c"), ("b", "c"), ("", "c")] * 70
    assert pool.max_memory() <= 160 << 20
    # 210 MiB of text, in a file of a few KiB.
    assert (tmp_path / "a.parquet").stat().st_size < 10_000


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_columns_of_any_kind_of_string_are_read(tmp_path: Path, nested: bool) -> None:
    texts = [f"text {n % 7}" for n in range(3000)]
    columns = {"en": pyarrow.array(texts, pyarrow.large_string()), "es": pyarrow.array(texts), "n": range(3000)}
    if nested:
        columns["x"] = pyarrow.array([{"en": ["a"]}] * 3000)
    assert _parquet_rows(tmp_path, pyarrow.table(columns)) == [("text ", "text ")] * 3000


@pytest.mark.parametrize("name", ["column", "id", "no", "fr"])
def test_a_table_of_many_columns_is_read_or_refused_at_once(tmp_path: Path, name: str) -> None:
    for number, words in ((1990, "columns|does not name"), (300_000, "300,002 columns|300,001 columns")):
        columns = [f"{name}{'' if name in ('id', 'no') else n}" for n in range(number)]
        for ending, text in {
            "tsv": "\t".join([*columns, "x", "y"]),
            "csv": ",".join([*columns, "x", "y"]),
            "jsonl": json.dumps({f"{n}{column}": "a" for n, column in enumerate([*columns, "x", "y"])}),
        }.items():
            path = tmp_path / f"a.{ending}"
            path.write_text(text + "\n")
            with pytest.raises(TextError, match=words) as caught:
                list(read_rows(TextSource(path=str(path)), [path], ("en", "es")))
            assert len(str(caught.value)) < 20_000


def test_a_path_is_no_data_set_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(TextError, match="this is a path, not the name of a data set"):
        list(tabular.read_dataset(f"hf:{tmp_path}", ("en",), None))
