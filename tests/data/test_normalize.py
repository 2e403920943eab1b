"""Properties of `clean` on examples and on any text."""

from __future__ import annotations

import re
import sys
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roundtrip.data.normalize import clean

# Any code point, surrogates too, delicate ones often enough to be adjacent.
DELICATE = st.sampled_from(list("\ufeff\x00\x1c\x85\u2028\t\n\r\v\f \u00a0\u2000e\u0301\ud83d\ude00\x9f\u200d"))
ANY_TEXT = st.text(st.one_of(DELICATE, st.characters(codec=None, exclude_categories=())))
PLACEHOLDERS = ("%(name)s", "{0}", "${x}", "$x", "&amp;", "%d%%", "👩\u200d🚀", "می\u200cخواهم", "🇪🇸", "<b>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("  one  two  ", "one  two", id="inner spaces stay"),
        pytest.param("one \t\n  two", "one two", id="a run with a break is one space"),
        pytest.param("one\r\ntwo\n", "one two", id="crlf"),
        pytest.param("a\x85b\u2028c\u2029d\fe\vf", "a b c d e f", id="every line break"),
        pytest.param("a\u00a0b", "a\u00a0b", id="no-break space stays"),
        pytest.param("a\u00a0\nb", "a b", id="no-break space before a break"),
        pytest.param("\ufeffone \ufefftwo", "one two", id="byte order marks"),
        pytest.param("a \ufeff\n\ufeff b", "a b", id="a mark inside a run"),
        pytest.param("a\x00b\x07c\x1cd\x7fe\x9ff", "abcdef", id="controls"),
        pytest.param("Cafe\u0301", "Caf\u00e9", id="composed"),
        pytest.param("Cafe\x00\u0301", "Caf\u00e9", id="composed after a control is gone"),
        pytest.param("a\ud800b", "a\ufffdb", id="lone surrogate"),
        pytest.param("\ud83d\ude00", "😀", id="the halves of a pair"),
        pytest.param("\n\t ", "", id="nothing left"),
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert clean(text) == expected


@given(ANY_TEXT)
def test_clean_text_is_one_composed_line_and_stable(text: str) -> None:
    result = clean(text)
    assert clean(result) == result
    assert unicodedata.is_normalized("NFC", result)
    assert not [char for char in result if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")]
    assert "\ufeff" not in result
    assert result == result.strip()
    assert result.encode("utf-8").decode("utf-8") == result


@given(st.text(st.characters(categories=["Lu", "Nd", "Zs", "Sm"])))
def test_clean_changes_nothing_else(text: str) -> None:
    assert clean(text) == unicodedata.normalize("NFC", text.strip())


@given(st.lists(st.sampled_from(PLACEHOLDERS), min_size=1), st.sampled_from([" ", "  ", "\n", "\t", " \r\n"]))
def test_clean_keeps_placeholders(placeholders: list[str], space: str) -> None:
    expected = " " if space.strip(" ") else space
    assert clean(space.join(placeholders)) == expected.join(placeholders)


MARKS = st.text(st.sampled_from("\u0301\u0327\u0302\u0323\u0344\u0f73\u05b0\u3099\u034f\ufe0f…«"), max_size=150)


@given(st.lists(st.tuples(st.sampled_from("ae\u1ebf\uac00 "), MARKS), max_size=4))
def test_clean_separates_only_long_runs_of_marks(parts: list[tuple[str, str]]) -> None:
    text = "".join(letter + marks for letter, marks in parts)
    result = clean(text)
    assert clean(result) == result and unicodedata.is_normalized("NFC", result)
    runs = re.findall("[\u0301\u0327\u0302\u0323\u0308\u0f71\u0f72\u05b0\u3099]+", unicodedata.normalize("NFD", text))
    if max(map(len, runs), default=0) <= 40:
        assert result == unicodedata.normalize("NFC", text.strip())
    assert result.replace("\u034f", "").strip() or not text.strip("\u034f ")


def test_no_combining_mark_is_a_letter_a_digit_or_white_space() -> None:
    marks = [char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.combining(char)]
    assert len(marks) > 800 and not re.findall(r"[\w\s\x00-\x7f]", "".join(marks))


@pytest.mark.parametrize("text", ["\u0301\u0327", "\u0327\u0301", "a\u0301\u0327\u0344", "…\u0301", "\u0301"])
def test_cleaning_takes_linear_time(text: str) -> None:
    start = time.monotonic()
    result = clean("a" + text * (1_000_000 // len(text)))
    assert time.monotonic() - start < 10 and len(result) >= 900_000
