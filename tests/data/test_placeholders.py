"""Placeholders and markup: what is one, what is prose, and which differences are found."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roundtrip.data.placeholders import (
    Kind,
    count_intact,
    differences,
    errors,
    first_intact,
    has_placeholders,
)

PLACEHOLDERS = [
    "%s", "%d", "%5.2f", "%-10s", "%03d", "%lu", "%@", "%+d", "%.2f", "%*d", "%(name)s", "%(n)03d", "%1$s", "%2$d",
    "%<PRIu64>", "%-8<PRIxFAST16>", "%1%", "%12%", "%I32d", "%5I64u", "[X7X]", "[X120X ]",
    "{}", "{0}", "{name}", "{name!r:>10}", "{a.b[0]}", "{x:{w}}", "{:,}", "{day:%d %B}", "{n, number}", "{n,10}",
    "{{ name }}", "{{name|title}}", "{{{x}}}", "{% url 'a' %}", "${name}", "${user/name}", "$name", "$HOME", "%{count}",
    "#{count}", "%APPDATA%", "%count%", "{ $user }", "{-brand}", "<b>", "</b>", "<br/>", '<a href="/x">', "<0>",
    "</0>", '<x id="1"/>', "<xliff:g>", "<img src='a.png'>", "{n, plural, one {# file} other {# files of {name}}}",
    "{sex, select, female {her} other {their}}",
]  # fmt: skip
PROSE = [
    "It costs 100 % of $5, and 50% discount is 5% of it; US$ 20, A$ 3; I owe $____.",
    "If a < b and c > d, then <none> of it [1].",
    "Die Maschine ist zu 100%ig sicher, 5%ige Lösung, 20 %-Regel.", "50%-os kedvezmény, 5%-ot kapott.",
    "%50'si indirimli, %100 doğru, %5 fazla.", "100 % d'accord, 20 % de remise, 5 % en plus.",
    "100 % d'accord, en % d’usage, 20 % d, %1%5, a % days, [X] or [1], 5%-10%, arr[X7].",
    "El 20 % de descuento, un 5% sobre el total.", "Il 30% degli utenti, il 5 % circa.",
    "50 % av alla, 100%-ig säkerhet.", "Ehuneko %10eko beherapena.", "Скидка 50% для всех, 5%-ный раствор.",
    "全部で50%の割引です。", "折扣 50%，共 5 元。", "خصم ٥٠٪ على الجميع، 50% فقط.", "Έκπτωση 50% σε όλα; Ναι.",
    "R&D, Q&A, AT&T and rock & roll.", "He said: :-) <3 and :{ too.", "f(x) = {1, 2, 3} and { something else }",
]  # fmt: skip


@pytest.mark.parametrize("text", PLACEHOLDERS)
def test_each_placeholder_is_found_where_it_is_lost_or_added(text: str) -> None:
    whole = f"Open {text} now </0>" if text == "<0>" else f"Open {text} now"
    assert has_placeholders(whole)
    assert not differences(whole, f"Abrir {whole[5:]}")
    without = whole.replace(text, "")
    assert errors(whole, without) and errors(without, whole)
    assert errors(whole, f"{whole} {text}")


@pytest.mark.parametrize("text", PROSE)
def test_prose_has_no_placeholders(text: str) -> None:
    assert not has_placeholders(text) and not errors(text, "") and not errors("", text)


@pytest.mark.parametrize(
    ("source", "target", "kind"),
    [
        ("%s of %d", "%d of %s", Kind.PRINTF), ("%(name)s", "%(nombre)s", Kind.PRINTF),
        ("%(name)s", "%(name) s", Kind.PRINTF), ("%d", "%s", Kind.PRINTF), ("%5.2f", "%5.1f", Kind.PRINTF),
        ("100%% of %s", "100% de %s", Kind.PRINTF), ("%s is 5", "%s is 5 %", Kind.PRINTF),
        ("% d", "", Kind.PRINTF), ("% d", "%d", Kind.PRINTF), ("%d", "% d", Kind.PRINTF),
        ("% .2f", "%.2f", Kind.PRINTF), ("%I32d", "%d", Kind.PRINTF),
        ("%<PRIu64>", "%<PRIu32>", Kind.PRINTF), ("%1% of %2%", "%1% de %1%", Kind.PRINTF),
        ("[X7X] and [X19X]", "[X7X] y [X7X]", Kind.MASK), ("[X7X]", "[x7x]", Kind.MASK), ("a", "[X7X]", Kind.MASK),
        ("%s %s", "%1$s %1$s", Kind.PRINTF), ("%1$s", "%2$s", Kind.PRINTF), ("https://x.org/%s", "%20s", Kind.PRINTF),
        ("{name}", "{nombre}", Kind.BRACES), ("{name!r}", "{name}", Kind.BRACES), ("{x:d}", "{x:s}", Kind.BRACES),
        ("{} {}", "{} {} {}", Kind.BRACES), ("{name}", "{name", Kind.BRACES), ("a {x}", "a {x} }", Kind.BRACES),
        ("{{ a }}", "{{ b }}", Kind.BRACES), ("{{x}", "{x}", Kind.BRACES), ("${name}", "$(name)", Kind.BRACES),
        ("{n, plural, one {#} other {#}}", "{n, plural, one {1} other {x}}", Kind.BRACES),
        ("{n, plural, one {a} other {b}}", "{n, plural, one {a} few {b}}", Kind.BRACES),
        ("{n, plural, one {a} other {b}}", "{m, plural, one {a} other {b}}", Kind.BRACES),
        ("{n, plural, one {a} other {b}}", "{n, selectordinal, one {a} other {b}}", Kind.BRACES),
        ("{n, plural, one {#} other {#}}", "{n, plural, uno {#} other {#}}", Kind.BRACES),
        ("{n, plural, =0 {a} other {#}}", "{n, plural, =cero {a} other {#}}", Kind.BRACES),
        ("{n, plural, =0 {a} other {#}}", "{n, plural, 0 {a} other {#}}", Kind.BRACES),
        ("{n, selectordinal, two {a} other {#}}", "{n, selectordinal, dos {a} other {#}}", Kind.BRACES),
        ("{n, plural, other {{m, plural, one {a} other {b}}}}", "{n, plural, other {{m, plural, un {a} other {b}}}}",
         Kind.BRACES),
        ("{n, plural, other {{x} a}}", "{n, plural, other {{y} a}}", Kind.BRACES),
        ("{n, plural, other {a}}", "{n, plural, other {a}", Kind.BRACES),
        ("{g, select, male {a} other {b}}", "{g, select, hombre {a} other {b}}", Kind.BRACES),
        ("$name", "$nombre", Kind.VARIABLE), ("%TEMP%", "%TMP%", Kind.VARIABLE),
        ("<b>a</b>", "<b>a", Kind.TAG), ("<b>a</b>", "</b>a<b>", Kind.TAG), ("<b>a</b>", "<i>a</i>", Kind.TAG),
        ("<b><i>a</i></b>", "<b><i>a</b></i>", Kind.TAG), ("<b>a</b>", "< b>a</ b>", Kind.TAG),
        ('<a href="/x">a</a>', '<a href="/y">a</a>', Kind.TAG), ('<p class="a">b', '<p id="a">b', Kind.TAG),
        ("a\n", "a", Kind.LINE_BREAK), ("a", "\na", Kind.LINE_BREAK),
    ],
)  # fmt: skip
def test_what_breaks_a_program_is_an_error(source: str, target: str, kind: Kind) -> None:
    found = errors(source, target)
    assert found[0].kind is kind and kind.is_error and found == [each for each in differences(source, target)][:1]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("%(a)s has %(b)s", "%(b)s de %(a)s"), ("%s has %d", "%2$d de %1$s"), ("%1$s %2$s", "%2$s %1$s"),
        ("%1% of %2%", "%2% de %1%"), ("[X7X] of [X19X]", "[X19X] de [X7X ]"), ("%<PRIu64> %d", "%2$d %1$<PRIu64>"),
        ("{} of {}", "{1} de {0}"), ("{a} {b}", "{b} {a}"), ("{{ a }}", "{{a}}"), ("{a}", "{ a }"),
        ("{n, plural, one {# file} other {# files}}", "{n, plural, one {# файл} few {# файла} other {# файлов}}"),
        ("{n, plural, one {#} other {#}}", "{n, plural, =1 {un} =12 {#} zero {#} two {#} many {#} other {#}}"),
        ("{n, plural, =0 {no <b>file</b>} other {# <b>files</b>}}", "{n, plural, other {# <b>件</b>}}"),
        ("{n, plural, one {'{' #} other {# '}'}}", "{n, plural, other {'{' # '}'}}"),
        ("{g, select, a {x} other {y}}", "{g, select, other {w} a {z}}"),
        ("<b>a</b> <i>c</i>", "<i>c</i> <b>a</b>"), ("a<br>b", "a<br />b"),
        ('<a href="x" id="y">', "<a id='y' href='x'>"),
        ('<img alt="Dog" src="a">', '<img alt="Perro" src="a">'), ("$name.", "$name的"), ("%i.", "%i个"),
        ("100 % of %s", "cent pour cent de %s"), ("https://x.org/%d0%b0", "https://x.org/%d1%b0"), ("'{' or '}'", "ni"),
        ('{"a": 1}', "a = 1"),
    ],
)  # fmt: skip
def test_what_works_is_no_error(source: str, target: str) -> None:
    assert not errors(source, target)


@pytest.mark.parametrize(
    ("source", "target", "kind"),
    [
        ("a&nbsp;b", "a b", Kind.ENTITY), ("&File", "Datei", Kind.ACCELERATOR),
        ("E&xit", "&Be&enden", Kind.ACCELERATOR), ("_File", "Datei", Kind.ACCELERATOR),
        ("Sa_ve", "Salvar", Kind.ACCELERATOR), ("a", "&b", Kind.ACCELERATOR),
        ("see https://a.org/b", "voir https://a.org", Kind.URL),
        ("<a href='http://a.b'>", "<a href='http://a.c'>", Kind.URL),
        ("to me@a.org", "à moi@a.org", Kind.EMAIL), ("1,000.5 kg", "1.000,6 kg", Kind.NUMBER),
        ("3 a", "4 a", Kind.NUMBER),
        ("in 1999", "en", Kind.NUMBER), ("3.5", "35", Kind.NUMBER), (" a", "a", Kind.SPACE), ("a ", "a  ", Kind.SPACE),
        ("Name:", "Nom", Kind.PUNCTUATION), ("Why?", "Pourquoi.", Kind.PUNCTUATION), ("a...", "a.", Kind.PUNCTUATION),
    ],
)  # fmt: skip
def test_what_a_person_may_mean_is_a_warning(source: str, target: str, kind: Kind) -> None:
    assert [each.kind for each in differences(source, target)] == [kind] and not kind.is_error
    assert not errors(source, target)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("1,000.5 and 2.5", "2,5 et 1.000,5"), ("1,000", "1 000"), ("10,000", "10\u202f000"), ("25", "٢٥"),
        ("3 files", "drei Dateien"), ("two", "2"), ("Name:", "Nom :"), ("Wait...", "Attendez…"), ("Why?", "¿Por qué?"),
        ("Why?", "Γιατί;"), ("Why?", "لماذا؟"), ("Why?", "为什么？"), ("Done.", "完了。"), ("Done.", "समाप्त।"),
        ("Done.", "เสร็จแล้ว"), ('He said "no."', "Er sagte „nein“."), ("&File", "文件(&F)"), ("_Open", "Öf_fnen"),
        ("R&D", "FuE"), ("key_of_it", "Schlüssel"), ("See https://a.org/x.", "Voir https://a.org/x ."),
        ("%d files:", "Files (%d):"), ("<b>Note:</b>", "<b>Nota :</b>"),
    ],
)  # fmt: skip
def test_customs_of_a_language_are_no_difference(source: str, target: str) -> None:
    assert not differences(source, target)


PIECES = st.lists(
    st.sampled_from([*PLACEHOLDERS, *PROSE, "word", "\n", "<", ">", "&", "_", "1.5"]) | st.text(), max_size=8
)


@given(pieces=PIECES)
@settings(max_examples=300, deadline=None)
@example(["{", "{n, plural, one {# file} other {# files of {name}}}"])
def test_a_text_keeps_everything_of_itself(pieces: list[str]) -> None:
    text = " ".join(pieces)
    assert not differences(text, text)
    assert first_intact(text, ["%(other)s", text, text]) == 1


WORDS = st.lists(
    st.sampled_from(["the", "file", "is", "100", "%", "of", "it;", "Größe", "öffnen", "文件"]), max_size=6
).map(" ".join)


@given(before=WORDS, after=WORDS, text=st.sampled_from(PLACEHOLDERS), data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_placeholder_is_found_in_any_text(before: str, after: str, text: str, data: st.DataObject) -> None:
    closing = " </0>" if text == "<0>" else ""  # without it, this is no tag
    source = f"{before} {text} {after}{closing}"
    assert errors(source, f"{before} {after}{closing}"), "removed"
    assert errors(f"{before} {after}{closing}", source), "inserted"
    start = data.draw(st.integers(0, len(text) - 1))
    # A letter inside of it; those of words in a plural may change.
    altered = f"{text[:start]}q{text[start + 1 :]}"
    if altered != text and not {"plural", "select"} & set(text.replace(",", "").split()):
        assert errors(source, f"{before} {altered} {after}{closing}"), altered


@pytest.mark.parametrize(
    "unit",
    ["%(", "{", "{{", "{a, plural, other {", "{a[", "${", "<a ", "<a b='", "<b>", "A_", "http://.", "a.@", "1,000",
     "%aa"],
)  # fmt: skip
def test_hostile_text_takes_time_in_proportion(unit: str) -> None:
    text = (unit * 100_000)[:100_000]
    start = time.perf_counter()
    differences(text, text[:-1] + "}")
    assert time.perf_counter() - start < 20  # a second; in quadratic time, minutes


def test_first_intact_prefers_the_greedy_one() -> None:
    assert first_intact("Delete %s?", ["¿Eliminar %s?", "¿Borrar %s?"]) == 0
    assert first_intact("Delete %s?", ["¿Eliminar?", "¿Borrar %d?"]) is None
    assert first_intact("Delete %s?", []) is None


def test_lines_without_placeholders_are_not_counted() -> None:
    sources = ["a %s", "b", "<b>c</b>", "100 %"]
    assert count_intact(sources, ["a %s", "%s", "c", ""]) == (1, 2)


def test_a_difference_names_what_is_missing_and_what_is_extra() -> None:
    (difference,) = errors("%(name)s", "%(nombre)s")
    assert str(difference) == "printf placeholder: missing %(name)s, extra %(nombre)s"
