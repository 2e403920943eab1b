"""Documents of all formats: what is not translated stays as it is, what is translated is read back."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import polib
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roundtrip.data.documents.document import Document, Request
from roundtrip.data.documents.formats import document_format, read_document
from roundtrip.data.normalize import clean
from roundtrip.data.readers import read_rows
from roundtrip.recipe.schema import TextSource
from roundtrip.runtime.errors import TextError

REQUEST = Request("en", "es")
PO_HEADER = (
    'msgid ""\nmsgstr ""\n"Language: es\\n"\n"Content-Type: text/plain; charset=UTF-8\\n"\n'
    '"Plural-Forms: nplurals=2; plural=(n != 1);\\n"\n\n'
)
XLIFF_1 = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">\n'
    '<file source-language="en" target-language="es" original="a" datatype="plaintext"><body>\n'
    "{}</body></file></xliff>\n"
)
XLIFF_2 = (
    '<xliff version="2.0" srcLang="en" trgLang="es" xmlns="urn:oasis:names:tc:xliff:document:2.0"><file id="f">\n'
    "{}</file></xliff>\n"
)
TMX = '<?xml version="1.0"?>\n<tmx version="1.4"><header srclang="en"/><body>\n{}</body></tmx>\n'


def read(folder: Path, name: str, content: str | bytes, request: Request = REQUEST) -> Document:
    """Write a document and read it, which without translations stays as it is."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    document = read_document(path, request)
    assert document.write({}) == path.read_bytes()
    return document


def fill(document: Document, *translations: str | Sequence[str]) -> str:
    """Return the text of a document in which the first units without translation have these."""
    untranslated = [index for index, unit in enumerate(document.units) if unit.status == "untranslated"]
    texts = [[each] if isinstance(each, str) else list(each) for each in translations]
    data = document.write(dict(zip(untranslated, texts, strict=True)))
    return data.decode(document.encoding)


def pairs(path: Path) -> list[tuple[str, ...]]:
    """Return what the package reads of a document."""
    return list(read_rows(TextSource(path=str(path)), [path], ("en", "es")))


# A word before anything, so that it is a text and no number, bracket or empty.
WORDS = st.lists(
    st.sampled_from(["casa", "ñandú", "A", "¿qué?", "<b>", "&amp;", "&", '"', "\\", "%s", "{}", ",", ";", "日本", "'"]),
    min_size=1,
    max_size=5,
).map(lambda words: clean("x" + " ".join(words)))


def po_text(sources: Sequence[str]) -> str:
    return PO_HEADER + "\n".join(str(polib.POEntry(msgid=source, msgctxt=str(i))) for i, source in enumerate(sources))


def xml_text(source: str) -> str:
    return source.replace("&", "&amp;").replace("<", "&lt;")


def csv_row(*fields: str) -> str:
    return ",".join('"' + field.replace('"', '""') + '"' for field in fields) + "\r\n"


FORMATS = {
    "a.po": po_text,
    "a.xlf": lambda sources: XLIFF_1.format(
        "".join(f'<trans-unit id="{i}">\n<source>{xml_text(s)}</source></trans-unit>\n' for i, s in enumerate(sources))
    ),
    "b.xliff": lambda sources: XLIFF_2.format(
        "".join(
            f'<unit id="{i}"><segment><source>{xml_text(s)}</source></segment></unit>' for i, s in enumerate(sources)
        )
    ),
    "a.tmx": lambda sources: TMX.format(
        "".join(f'<tu>\n  <tuv xml:lang="en"><seg>{xml_text(s)}</seg></tuv>\n</tu>' for s in sources)
    ),
    "a.csv": lambda sources: "id,en\r\n" + "".join(csv_row(str(i), s) for i, s in enumerate(sources)),
    "b.csv": lambda sources: "en,es,id\r\n" + "".join(csv_row(s, "", str(i)) for i, s in enumerate(sources)),
    "a.tsv": lambda sources: "en\tes\n" + "".join(f"{s}\t\n" for s in sources),
    "a.jsonl": lambda sources: "".join(
        json.dumps({"n": i, "translation": {"en": s}}) + "\n" for i, s in enumerate(sources)
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@given(rows=st.lists(st.tuples(WORDS, WORDS, st.booleans()), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back_and_nothing_else_changes(
    tmp_path: Path, name: str, rows: list[tuple[str, str, bool]]
) -> None:
    content = FORMATS[name]([source for source, _, _ in rows])
    document = read(tmp_path, name, content)
    assert [list(unit.sources) for unit in document.units] == [[source] for source, _, _ in rows]
    written = {i: [target] for i, (_, target, is_written) in enumerate(rows) if is_written}
    data = document.write(written)
    (tmp_path / name).write_bytes(data)
    after = read_document(tmp_path / name, REQUEST)
    assert [list(unit.sources) for unit in after.units] == [[source] for source, _, _ in rows]
    assert [unit.status != "untranslated" for unit in after.units] == [is_written for _, _, is_written in rows]
    # What was there stands in the output in the same order; what is new are the translations and their marks.
    remaining = iter(data)
    assert all(any(byte == other for other in remaining) for byte in content.encode() if byte not in b'"\r\n,')
    if name == "a.jsonl":
        records = map(json.loads, data.decode().splitlines())
        assert [record["translation"].get("es") for record in records] == [
            written.get(i, [None])[0] for i in range(len(rows))
        ]
    elif name != "a.po":
        targets = [pair[1] for pair in pairs(tmp_path / name)] if written else []
        assert [target for target in targets if target] == [target for _, target, is_written in rows if is_written]


@given(
    rows=st.lists(st.tuples(WORDS, WORDS, st.booleans()), min_size=1, max_size=6),
    newline=st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_catalogues_keep_all_entries_that_are_not_written(
    tmp_path: Path, rows: list[tuple[str, str, bool]], newline: str
) -> None:
    content = po_text([source for source, _, _ in rows]).replace("\n", newline)
    document = read(tmp_path, "a.po", content, Request("en", "es", mark=False))
    data = document.write({i: [target * 20] for i, (_, target, is_written) in enumerate(rows) if is_written})
    (tmp_path / "a.po").write_bytes(data)
    assert data.count(b"\r\n") == (data.count(b"\n") if newline == "\r\n" else 0)
    entries = list(polib.pofile(data.decode().replace("\r\n", "\n")))
    expected = [
        (source, str(i), target * 20 if is_written else "") for i, (source, target, is_written) in enumerate(rows)
    ]
    assert [(entry.msgid, entry.msgctxt, entry.msgstr) for entry in entries] == expected
    before = Counter(content.split(newline))
    assert not before - Counter(data.decode().split(newline)) - Counter({'msgstr ""': len(rows)})


ODD_PO = (
    "# A comment\n#, fuzzy\n" + PO_HEADER.replace("Language: es", "Language: ") + "#. for all\n#: a.py:1 b.py:2\n"
    '#, python-format\nmsgctxt "menu"\nmsgid "Save %s"\nmsgstr ""\n\n'
    'msgid "Same"\nmsgstr "Igual"\n\nmsgid "%d file"\nmsgid_plural "%d files"\nmsgstr[0] ""\nmsgstr[1] ""\n\n'
    '#, fuzzy\n#| msgid "Open"\nmsgid "Opened"\nmsgstr "Abrir"\n\n'
    'msgid ""\n"Two\\n"\n"lines\\n"\nmsgstr ""\n\n#~ msgid "gone"\n#~ msgstr "ido"\n\n# at the end\n'
)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_catalogue_with_everything(tmp_path: Path, newline: str, mark: str) -> None:
    document = read(tmp_path, "a.po", mark + ODD_PO.replace("\n", newline))
    assert [unit.status for unit in document.units] == [
        *("untranslated", "translated", "untranslated", "fuzzy", "untranslated")
    ]
    text = fill(document, "Guardar %s", ["%d archivo", "%d archivos"], "Dos\nlíneas\n").replace(newline, "\n")
    expected = (
        ODD_PO.replace("Language: ", "Language: es")
        .replace('#, python-format\nmsgctxt "menu"\nmsgid "Save %s"\nmsgstr ""',
                 '#, fuzzy, python-format\nmsgctxt "menu"\nmsgid "Save %s"\nmsgstr "Guardar %s"')
        .replace('msgid "%d file"', '#, fuzzy\nmsgid "%d file"')
        .replace('msgstr[0] ""\nmsgstr[1] ""', 'msgstr[0] "%d archivo"\nmsgstr[1] "%d archivos"')
        .replace('msgid ""\n"Two\\n"\n"lines\\n"\nmsgstr ""',
                 '#, fuzzy\nmsgid ""\n"Two\\n"\n"lines\\n"\nmsgstr ""\n"Dos\\n"\n"líneas\\n"')
    )  # fmt: skip
    assert text == mark + expected


def test_a_fuzzy_entry_that_is_translated_again_without_marks(tmp_path: Path) -> None:
    content = PO_HEADER + '#, fuzzy\nmsgid "a"\nmsgstr "b"\n\n#, fuzzy, c-format\nmsgid "c"\nmsgstr "d"\n'
    document = read(tmp_path, "a.po", content, Request("en", "es", mark=False))
    text = document.write({0: ["x"], 1: ["y"]}).decode()
    assert text == PO_HEADER + 'msgid "a"\nmsgstr "x"\n\n#, c-format\nmsgid "c"\nmsgstr "y"\n'


def test_forms_that_stay_keep_the_mark(tmp_path: Path) -> None:
    content = PO_HEADER + '#, fuzzy\nmsgid "a"\nmsgid_plural "b"\nmsgstr[0] "c"\nmsgstr[1] ""\n'
    document = read(tmp_path, "a.po", content, Request("en", "es", mark=False))
    assert document.write({0: ["x"]}).decode() == content.replace('[1] ""', '[1] "x"')


@pytest.mark.parametrize(
    ("plural_forms", "singular", "expected"),
    [
        ("nplurals=2; plural=(n != 1);", "one file", ["one file", "%d files"]),
        ("nplurals=2; plural=n>1;", "%d file", ["%d file", "%d files"]),
        # Form 0 also serves 0.
        ("nplurals=2; plural=n>1;", "one file", ["%d files", "%d files"]),
        ("nplurals=1; plural=0;", "%d file", ["%d files"]),
        ("nplurals=3; plural=(n%10==1 && n%100!=11 ? 0 : n%10>=2 ? 1 : 2);", "%d file", ["%d file", *["%d files"] * 2]),
        # Form 0 also serves 21, for which the singular does not say how many there are.
        ("nplurals=3; plural=(n%10==1 && n%100!=11 ? 0 : n%10>=2 ? 1 : 2);", "one file", ["%d files"] * 3),
    ],
)
def test_plural_forms_are_those_of_the_language(
    tmp_path: Path, plural_forms: str, singular: str, expected: list[str]
) -> None:
    header = PO_HEADER.replace("nplurals=2; plural=(n != 1);", plural_forms)
    content = header + f'msgid "{singular}"\nmsgid_plural "%d files"\nmsgstr[0] ""\n'
    document = read(tmp_path, "a.po", content)
    assert list(document.units[0].sources) == expected
    text = fill(document, expected)
    assert [f'msgstr[{i}] "{form}"' for i, form in enumerate(expected)] == text.split("\n")[-1 - len(expected) : -1]


def test_the_forms_that_a_catalogue_has_are_kept(tmp_path: Path) -> None:
    content = PO_HEADER + 'msgid "%d a"\nmsgid_plural "%d b"\nmsgstr[0] "%d c"\nmsgstr[1] ""\n'
    assert fill(read(tmp_path, "a.po", content), "%d d").endswith('msgstr[0] "%d c"\nmsgstr[1] "%d d"\n')
    header = PO_HEADER.replace('"Plural-Forms: nplurals=2; plural=(n != 1);\\n"\n', "")
    assert [reason for _, reason in read(tmp_path, "a.po", header + content[len(PO_HEADER) :]).left_alone]


def test_a_catalogue_in_latin_1(tmp_path: Path) -> None:
    content = (PO_HEADER.replace("UTF-8", "ISO-8859-1") + '# ñ\nmsgid "a"\nmsgstr ""\n').encode("latin-1")
    document = read(tmp_path, "a.po", content)
    assert fill(document, "é").encode("latin-1").endswith(b'# \xf1\n#, fuzzy\nmsgid "a"\nmsgstr "\xe9"\n')
    with pytest.raises(TextError, match="'…', which iso8859-1 cannot encode"):
        document.write({0: ["…"]})


@pytest.mark.skipif(shutil.which("msgfmt") is None, reason="gettext is not installed")
def test_msgfmt_accepts_what_is_written(tmp_path: Path) -> None:
    content = ODD_PO.replace("#, fuzzy\n" + PO_HEADER[:5], PO_HEADER[:5])
    text = fill(read(tmp_path, "a.po", content), "Guardar %s", ["%d archivo", "%d archivos"], "Dos\nlíneas\n")
    (tmp_path / "b.po").write_text(text)
    done = subprocess.run(["msgfmt", "--check", "-o", "/dev/null", tmp_path / "b.po"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_inline_elements_stay_in_place(tmp_path: Path) -> None:
    inline = '<x id="2" equiv-text="{{name}}"/>'
    source = f'<source><g id="1">Open {inline} <g id="3">now</g></g></source>'
    document = read(tmp_path, "a.xlf", XLIFF_1.format(f'<trans-unit id="1">{source}</trans-unit>'))
    assert document.units[0].sources == ["Open {{name}} {1}now"]
    target = f'<target state="needs-review-translation"><g id="1">Abre {inline} ya, <g id="3">sí</g></g></target>'
    expected = XLIFF_1.format(f'<trans-unit id="1">{source}{target}</trans-unit>')
    assert fill(document, "Abre {{name}} ya, {1}sí") == expected
    with pytest.raises(TextError, match="inline elements"):
        document.write({0: ["Abre {1} {{name}}"]})


def test_segments_and_states_of_xliff(tmp_path: Path) -> None:
    segments = '<seg-source><mrk mtype="seg" mid="1">One.</mrk> <mrk mtype="seg" mid="2">Two.</mrk></seg-source>'
    units = (
        f'<trans-unit id="1"><source>One. Two.</source>{segments}</trans-unit>'
        '<trans-unit id="2"><source>A</source><target state="new" x="y">A</target></trans-unit>'
        '<trans-unit id="3"><source>B</source><target state="needs-review-translation">b</target></trans-unit>'
        '<trans-unit id="4"><source>C</source><target>c</target></trans-unit>'
        '<trans-unit id="5" translate="no"><source>D</source></trans-unit>'
        '<trans-unit id="6"><source>E<!-- e --></source></trans-unit>'
    )
    document = read(tmp_path, "a.xlf", XLIFF_1.format(units), Request("en", "es", mark=False))
    assert [unit.status for unit in document.units] == ["untranslated", "untranslated", "fuzzy", "translated"]
    assert [reason[:9] for _, reason in document.left_alone] == ["marked tr", "a comment"]
    text = fill(document, ["Uno.", "Dos."], "a")
    assert '<target state="translated"><mrk mtype="seg" mid="1">Uno.</mrk> <mrk mtype="seg" mid="2">Dos.</mrk>' in text
    assert '<target state="translated" x="y">a</target>' in text


SEGMENTS = '<mrk mtype="seg" mid="1">{}</mrk> <mrk mtype="seg" mid="2">{}</mrk>'
IN_SEGMENTS = f"<source>One. Two.</source><seg-source>{SEGMENTS.format('One.', 'Two.')}</seg-source>"


@pytest.mark.parametrize(
    ("unit", "status"),
    [
        (f"{IN_SEGMENTS}<target>{SEGMENTS.format('Uno.', '')}</target>", "fuzzy"),
        (f"{IN_SEGMENTS}<target>{SEGMENTS.format('', '')}</target>", "untranslated"),
        (f"{IN_SEGMENTS}<target>{SEGMENTS.format('One.', 'Two.')}</target>", "translated"),
        ('<source>A</source><target state="new">A</target>', "untranslated"),
        *(
            (f"<source>A</source><target {each}>a</target>", "fuzzy")
            for each in (
                *('state="new"', 'state="needs-translation"', 'state="needs-adaptation"', 'state="needs-l10n"'),
                *('state-qualifier="rejected-grammar"', 'state="translated" state-qualifier="rejected-length"'),
            )
        ),
    ],
)
def test_what_is_in_a_target_is_not_replaced_unasked(tmp_path: Path, unit: str, status: str) -> None:
    document = read(tmp_path, "a.xlf", XLIFF_1.format(f'<trans-unit id="1">{unit}</trans-unit>'))
    assert [each.status for each in document.units] == [status]


@pytest.mark.parametrize(("target", "status"), [("A", "untranslated"), ("a", "fuzzy"), ("", "untranslated")])
def test_initial_segments_of_xliff_2(tmp_path: Path, target: str, status: str) -> None:
    segment = f'<segment state="initial"><source>A</source><target>{target}</target></segment>'
    document = read(tmp_path, "a.xlf", XLIFF_2.format(f'<unit id="1">{segment}</unit>'))
    assert [each.status for each in document.units] == [status]


def test_a_new_state_has_no_qualifier_of_the_old_one(tmp_path: Path) -> None:
    target = '<target state="needs-l10n" state-qualifier="rejected-grammar" x="y">{}</target>'
    unit = f'<trans-unit id="1"><source>A</source>{target}</trans-unit>'
    document = read(tmp_path, "a.xlf", XLIFF_1.format(unit.format("a")))
    written = '<target state="needs-review-translation" x="y">b</target>'
    assert document.write({0: ["b"]}).decode() == XLIFF_1.format(unit.replace(target, written))


def test_subtitles_keep_times_and_are_wrapped_again(tmp_path: Path) -> None:
    content = (
        "\ufeff1\r\n00:00:01,000 --> 00:00:02,000\r\n<i>First line\r\nsecond line</i>\r\n\r\n"
        "2\r\n00:00:03,000 --> 00:00:04,000 X1:1\r\n- Yes.\r\n- <b>No</b>.\r\n"
    )
    document = read(tmp_path, "a.srt", content)
    assert [list(unit.sources) for unit in document.units] == [["First line second line"], [" Yes.", "No{1}."]]
    text = fill(document, "una línea y otra más larga", [" Sí.", "No{1}."])
    assert text == content.replace("First line\r\nsecond line", "una línea y\r\notra más larga").replace("Yes", "Sí")


def test_vtt_keeps_what_is_no_cue(tmp_path: Path) -> None:
    content = "WEBVTT\n\nNOTE a\nb\n\nSTYLE\n::cue {}\n\n00:01.000 --> 00:02.000 line:0\n<v Ann>A &amp; <c.x>b</c>\n"
    document = read(tmp_path, "a.vtt", content)
    assert [list(unit.sources) for unit in document.units] == [["A & {1}b"]]
    assert fill(document, "X < {1}y") == content.replace("A &amp; <c.x>b", "X &lt; <c.x>y")


@pytest.mark.parametrize(
    ("name", "request_", "content", "expected"),
    [
        ("a.csv", REQUEST, "id,English,Spanish\n1,Hi,\n2,You,tú\n", "id,English,Spanish\n1,Hi,x\n2,You,tú\n"),
        ("a.csv", REQUEST, '\ufeffid,en\r\n1,"a\nb"\r\n2,\r\n', '\ufeffid,en,es\r\n1,"a\nb","x"\r\n2,,\r\n'),
        ("a.csv", Request("en", "es", 1), "1,Hi\n2,", "1,Hi,x\n2,,"),
        ("a.tsv", Request("en", "es", "q", "r"), "q\tz\nHi\t1\n", "q\tz\tr\nHi\t1\tx\n"),
        ("a.tsv", Request("en", "es", 0, 1), "Hi\told\nHo\t\n", "Hi\told\nHo\tx\n"),
        ("a.jsonl", Request("en", "es", "a.b", "a.c"), '{"a":{"b":"Hi"},"n":1}\n', '{"a":{"b":"Hi","c":"x"},"n":1}\n'),
        ("a.jsonl", REQUEST, '{"en": "H\\u00ef", "es": null}', '{"en": "H\\u00ef", "es": "x"}'),
        ("a.txt", REQUEST, "\ufeff  Hi \r\n\r\n", "\ufeff  x \r\n\r\n"),
    ],
)
def test_tables_and_lines(tmp_path: Path, name: str, request_: Request, content: str, expected: str) -> None:
    assert fill(read(tmp_path, name, content, request_), "x") == expected


@pytest.mark.parametrize("name", ["a.po", "a.txt", "a.csv", "a.tsv", "a.jsonl", "a.srt"])
@pytest.mark.parametrize("content", ["", "\n", "\ufeff"])
def test_an_empty_file_has_nothing_to_translate(tmp_path: Path, name: str, content: str) -> None:
    try:
        document = read(tmp_path, name, content)
    except TextError:
        assert content and name != "a.txt"
    else:
        assert not document.units


def test_a_catalogue_of_comments_alone(tmp_path: Path) -> None:
    assert not read(tmp_path, "a.po", '# nothing\n#~ msgid "a"\n#~ msgstr "b"\n').units


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.po", PO_HEADER.replace("es", "fr", 1) + 'msgid "a"\nmsgstr ""\n', "translations are in 'fr'"),
        ("a.po", PO_HEADER.replace("UTF-8", "CHARSET") + 'msgid "a"\nmsgstr ""\n', "a template"),
        ("a.po", '{"en": "a"}\n', "not a gettext catalogue"),
        ("a.po", b'msgid "\xff"\nmsgstr ""\n', "not UTF-8"),
        ("a.po", b"\x1f\x8b\x08", "compressed with gzip"),
        ("a.po.gz", b"\x1f\x8b\x08", "compressed"),
        ("a.xlf", '<!DOCTYPE x [<!ENTITY a "b">]><xliff/>', "declarations of its own"),
        ("a.xlf", TMX.format(""), "no text in 'en'"),
        ("a.xlf", "<xliff", "broken XML"),
        ("a.xlf", "<html/>", "neither TMX nor XLIFF"),
        ("a.xlf", XLIFF_1.format("").replace('"es"', '"fr"'), "target-language is 'fr'"),
        ("a.xlf", '<!DOCTYPE a SYSTEM "b"><xliff>&c;</xliff>', "entity &c; is not expanded"),
        ("a.tmx", TMX.format('<tu><tuv xml:lang="en"/></tu>'), "without <seg>"),
        ("a.csv", "en,es\na,b,c\n", "3 columns where line 1 has 2"),
        ("a.csv", "x,y\na,b\n", "no column is named as 'en'"),
        ("a.csv", 'en,es\n"a,b\n', "not a csv row"),
        ("a.jsonl", "[1]\n", "unreadable JSON"),
        ("a.jsonl", '{"en": 1}\n', "contains int, not text"),
        ("a.txt", "<html>\n", "this is HTML"),
        ("a.srt", "Hello\n", "no lines with times"),
        ("a.docx", "x", "is not translated"),
    ],
)
def test_what_cannot_be_translated_is_refused(tmp_path: Path, name: str, content: str | bytes, problem: str) -> None:
    with pytest.raises(TextError) as caught:
        read(tmp_path, name, content)
    assert problem in str(caught.value) and str(tmp_path / name) in str(caught.value) and caught.value.cure


@pytest.mark.parametrize(
    "ending", ["ftl", "toml", "py", "js", "php", "sql", "tex", "ts", "md", "json", "log", "parquet", "fr"]
)
def test_only_plain_text_is_translated_as_lines(tmp_path: Path, ending: str) -> None:
    with pytest.raises(TextError, match=f"a .{ending} file, which is not translated"):
        read(tmp_path, f"a.{ending}", "x = 1\n")


@pytest.mark.parametrize("name", ["a", "a.txt", "a.TEXT", "newstest.en"])
def test_plain_text_is_translated_as_lines(tmp_path: Path, name: str) -> None:
    assert fill(read(tmp_path, name, "one\n"), "uno") == "uno\n"


def test_utf_16_and_numeric_characters(tmp_path: Path) -> None:
    content = TMX.format('<tu><tuv xml:lang="en"><seg>é &#x20AC; <![CDATA[<]]></seg></tuv></tu>')
    data = content.replace('version="1.0"', 'version="1.0" encoding="UTF-16"', 1).encode("utf-16")
    document = read(tmp_path, "a.tmx", data)
    assert list(document.units[0].sources) == ["é € <"]
    assert '<tuv xml:lang="es"><seg>ñ &lt; &amp;</seg></tuv>' in fill(document, "ñ < &")


def test_the_endings_of_names() -> None:
    names = ["a.pot", "a.sdlxliff", "a.TMX", "a.ndjson", "a.vtt", "a.md", "a.mo"]
    assert [document_format(Path(name)) for name in names] == ["po", "xliff", "tmx", "jsonl", "vtt", None, None]


DAMAGED = {
    "a.po": ODD_PO,
    "a.xlf": FORMATS["a.xlf"](["one", "two & <"]),
    "b.xliff": FORMATS["b.xliff"](["one", "two"]),
    "a.tmx": FORMATS["a.tmx"](["one", "two"]),
    "b.csv": FORMATS["b.csv"](['a "b"', "c, d"]),
    "a.tsv": FORMATS["a.tsv"](["one", "two"]),
    "a.jsonl": FORMATS["a.jsonl"](["one", "two"]),
    "a.srt": "1\n00:00:01,000 --> 00:00:02,000\n<i>one</i> {\\an8}\n- two\n",
    "a.vtt": "WEBVTT\n\n00:01.000 --> 00:02.000\n- one <b>&amp;\n- two\n",
    "a.txt": "one\n\n two \n",
}
PIECES = st.sampled_from(
    ["", "\n", "\r", "\t", '"', "'", "\\", "<", ">", "/", "&", "&#0;", "]]>", "<!--", ",", "{", "}", "[", ":", "#", "~"]
    + ["msgid ", "msgstr[3] ", '""\n', "\ufeff", "\u2028", "\x00", "\x85", "é", "<x/>", "</source>", "-->", "null", "%"]
)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), PIECES), min_size=1, max_size=4)


@pytest.mark.parametrize("name", DAMAGED)
@given(edits=EDITS)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_document_is_refused_or_written(
    tmp_path: Path, name: str, edits: list[tuple[float, int, str]]
) -> None:
    content = DAMAGED[name]
    for position, length, piece in edits:
        start = int(position * len(content))
        content = content[:start] + piece + content[start + length :]
    try:
        document = read(tmp_path, name, content)
        data = document.write({i: [f"x{part}" for part in unit.sources] for i, unit in enumerate(document.units)})
    except TextError:
        return
    (tmp_path / name).write_bytes(data)
    again = read_document(tmp_path / name, REQUEST)
    assert [list(unit.sources) for unit in again.units] == [list(unit.sources) for unit in document.units] or (
        name.endswith(("srt", "vtt", "txt"))
    )


@pytest.mark.parametrize(
    "content",
    [ODD_PO.replace('\nmsgstr "Igual"', '\n\ufeffmsgstr "Igual"'), ODD_PO.replace("#~ msgid", "msgid")],
)
def test_a_catalogue_that_only_the_parser_understands_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(TextError, match="invisible characters|obsolete in part"):
        read(tmp_path, "a.po", content)


def test_a_message_that_was_a_header_is_no_header(tmp_path: Path) -> None:
    content = ODD_PO.replace('msgid ""', 'msgid "x"', 1).replace("Language: es", "Language: ")
    document = read(tmp_path, "a.po", content)
    assert document.units[0].status == "fuzzy" and document.write({0: ["y"]}).decode().count("Language") == 0
