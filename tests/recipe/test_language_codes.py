"""Which text is in which language: one decision for catalogues, memories, columns and recipes, by normalized codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from roundtrip.data.readers import read_rows
from roundtrip.recipe.language_codes import (
    bleu_tokenizer,
    code_of_name,
    is_spaceless,
    match_codes,
    match_rank,
    standard_code,
)
from roundtrip.recipe.schema import TextSource
from roundtrip.runtime.errors import TextError

# The code of a recipe, what a file calls the same language, and what it may not be taken for.
SAME = [
    ("es", "es"),
    ("es", "es_ES"),
    ("es", "es_419"),
    ("es", "spa"),
    ("de", "ger"),
    ("de", "de_DE.UTF-8@euro"),
    ("fr", "fra_Latn"),
    ("fr-CA", "fr_CA"),
    ("no", "nb_NO"),
    ("nb", "no"),
    ("nob", "nb"),
    ("nn", "nn_NO"),
    ("he", "iw"),
    ("id", "in_ID"),
    ("yi", "ji"),
    ("fil", "tl"),
    ("tl", "fil_PH"),
    ("ro", "mo"),
    ("sr", "sr_RS"),
    ("sr", "sr@cyrillic"),
    ("sr-Latn", "sr@latin"),
    ("sr-Latn", "sr_RS@latin"),
    ("sr-Latn", "sh"),
    ("sr-Latn", "sr@Latn"),
    ("sr-Latn", "sr@ijekavianlatin"),
    ("en-Shaw", "en@shaw"),
    ("zh-Hant", "zh-CHT"),
    ("zh", "zh-CHS"),
    ("acm", "acm_Arab"),
    ("qaa-Cyrl", "qaa"),
    ("uz-Cyrl", "uz@cyrillic"),
    ("zh", "zh_CN"),
    ("zh", "cmn"),
    ("zh-Hans", "zh_CN"),
    ("zh-Hans", "zho_Hans"),
    ("zh-Hant", "zh_TW"),
    ("zh-Hant", "zh_HK"),
    ("zh-TW", "zh_Hant"),
    ("pt", "pt_BR"),
    ("pt-BR", "pt"),
    ("pt-PT", "pt_PT"),
    ("ca", "ca@valencia"),
    ("ar", "arb"),
    ("fa", "pes"),
    ("ms", "zsm"),
    ("et", "ekk"),
    ("yue", "yue_HK"),
]
OTHER = [
    ("nn", "no"),
    ("nn", "nb"),
    ("sr", "sr@latin"),
    ("sr", "sr@latn"),
    ("sr", "sr@latinijekavian"),
    ("sr-Latn", "sr"),
    ("sr-Latn", "sr_RS"),
    ("hr", "sr@latin"),
    ("uz", "uz@cyrillic"),
    ("uz", "uz@Cyrl"),
    ("no", "no@nynorsk"),
    ("zh-Hant", "zh_CN"),
    ("zh-Hans", "zh_TW"),
    ("zh", "zh_TW"),
    ("zh", "zh-CHT"),
    ("zh", "chi_tra"),
    ("zh-Hant", "zh"),
    ("zh", "yue"),
    ("pt-BR", "pt_PT"),
    ("fr-CA", "fr_FR"),
    ("ca-valencia", "ca"),
    ("ar", "arz"),
    ("es", "ca"),
    ("es", "Spanish"),
    ("es", "C"),
]


def catalogue(path: Path, *headers: str) -> Path:
    text = "".join(f'"{header}\\n"\n' for header in headers)
    path.write_text(f'msgid ""\nmsgstr ""\n{text}\nmsgid "MESSAGE"\nmsgstr "TRANSLATION"\n', encoding="utf-8")
    return path


def memory(path: Path, codes: tuple[str, ...]) -> Path:
    variants = "".join(f'<tuv xml:lang="{code}"><seg>{code}</seg></tuv>' for code in codes)
    path.write_text(f'<tmx version="1.4"><header/><body><tu>{variants}</tu></body></tmx>', encoding="utf-8")
    return path


def read(path: Path, *languages: str) -> list[tuple[str, ...]]:
    return list(read_rows(TextSource(path=str(path)), [path], languages))


@pytest.mark.parametrize(("wanted", "code"), SAME)
def test_a_catalogue_in_a_wanted_language_is_placed(tmp_path: Path, wanted: str, code: str) -> None:
    path = catalogue(tmp_path / "a.po", f"Language: {code}")
    assert read(path, "en", wanted) == [("MESSAGE", "TRANSLATION")]
    assert read(path, wanted, "en") == [("TRANSLATION", "MESSAGE")]
    assert read(path, wanted) == [("TRANSLATION",)]
    assert read(path, "en") == [("MESSAGE",)]


@pytest.mark.parametrize(("wanted", "code"), OTHER)
def test_a_catalogue_in_another_language_is_refused(tmp_path: Path, wanted: str, code: str) -> None:
    path = catalogue(tmp_path / "a.po", f"Language: {code}")
    for languages in (("en", wanted), (wanted, "en"), (wanted,)):
        with pytest.raises(TextError, match=f"{code!r}.*wanted: .*{wanted!r}"):
            read(path, *languages)


@pytest.mark.parametrize(("wanted", "code"), SAME)
def test_a_memory_finds_the_wanted_language_in_either_order(tmp_path: Path, wanted: str, code: str) -> None:
    for number, codes in enumerate((("en", code), (code, "en"))):
        # XML has no modifiers behind an @, but some tools write what gettext had.
        path = memory(tmp_path / f"{number}.tmx", codes)
        assert read(path, "en", wanted) == [("en", code)]
        assert read(path, wanted, "en") == [(code, "en")]
        assert read(path, wanted) == [(code,)]


@pytest.mark.parametrize(("wanted", "code"), OTHER)
def test_a_memory_without_the_wanted_language_is_refused(tmp_path: Path, wanted: str, code: str) -> None:
    path = memory(tmp_path / "a.tmx", ("en", code))
    for languages in (("en", wanted), (wanted, "en"), (wanted,)):
        with pytest.raises(TextError, match=f"no text in {wanted!r}"):
            read(path, *languages)


@pytest.mark.parametrize("codes", [("zh-TW", "zh-CN"), ("zh-CN", "zh-TW"), ("en", "zh-Hant", "zh-Hans")])
def test_two_scripts_of_one_language_are_not_swapped(tmp_path: Path, codes: tuple[str, ...]) -> None:
    path = memory(tmp_path / "a.tmx", codes)
    simplified, traditional = (
        next(c for c in codes if c in pair) for pair in (("zh-CN", "zh-Hans"), ("zh-TW", "zh-Hant"))
    )
    assert read(path, "zh-Hans", "zh-Hant") == [(simplified, traditional)]
    assert read(path, "zh-Hant", "zh") == [(traditional, simplified)]
    assert read(path, "zh-Hant") == [(traditional,)]


def test_a_translation_into_a_variety_of_english_holds_english_alone(tmp_path: Path) -> None:
    for code in ("en_GB", "en_AU", "en@quot"):
        path = catalogue(tmp_path / "a.po", f"Language: {code}")
        for languages in (("en", "fr"), ("fr", "en")):
            with pytest.raises(TextError, match=f"it translates English into '{code}'; there is no 'fr' in it"):
                read(path, *languages)
        assert read(path, "en") == [("TRANSLATION",)]
    path = catalogue(tmp_path / "a.po", "Language: en_GB")
    assert read(path, "en-US", "en-GB") == [("MESSAGE", "TRANSLATION")]
    assert read(path, "en-US") == [("MESSAGE",)]
    assert read(catalogue(path, "Language: en"), "en", "fr") == [("TRANSLATION", "MESSAGE")], "messages in French"


def test_the_language_of_messages_is_english_or_named(tmp_path: Path) -> None:
    path = catalogue(tmp_path / "a.po", "Language: es")
    with pytest.raises(TextError, match="its messages English, unless an X-Source-Language header"):
        read(path, "fr")
    assert read(path, "fr", "es") == [("MESSAGE", "TRANSLATION")], "who names it for a pair knows what it holds"
    path = catalogue(path, "Language: es", "X-Source-Language: fr")
    assert read(path, "fr") == [("MESSAGE",)] and read(path, "es") == [("TRANSLATION",)]
    assert read(path, "es", "fr") == [("TRANSLATION", "MESSAGE")]
    for languages in (("en", "es"), ("es", "en"), ("en",)):
        with pytest.raises(TextError, match="messages(.*)'fr'"):
            read(path, *languages)
    assert read(catalogue(path, "Language: en_GB", "X-Source-Language: fr"), "en", "fr") == [("TRANSLATION", "MESSAGE")]
    path = catalogue(path, "X-Generator: none")
    with pytest.raises(TextError, match="without a Language header it is unknown which side is which"):
        read(path, "es", "fr")


def test_a_code_that_fits_both_languages_is_refused(tmp_path: Path) -> None:
    path = catalogue(tmp_path / "a.po", "Language: en", "X-Source-Language: fr")
    with pytest.raises(TextError, match="'en', which is either of the languages"):
        read(path, "en-AU", "en-GB")
    path = catalogue(path, "Language: pt", "X-Source-Language: pt_PT")
    assert read(path, "pt-PT", "pt-BR") == [("MESSAGE", "TRANSLATION")], "pt is Brazilian where both are wanted"


def test_ranks_prefer_the_same_code_then_the_likely_region() -> None:
    assert [match_rank("pt-BR", code) for code in ("pt_BR", "pt", "pt_PT", "es")] == [0, 1, None, None]
    assert match_codes(["en", "en-GB"], ["en-GB", "en-US"]) == (1, 0)
    assert match_codes(["en"], ["fr"]) == (None,)


@pytest.mark.parametrize("code", ["zh", "zh-Hans", "zho-Hans", "zho_Hant", "cmn", "wuu", "nan", "yue", "zh_TW"])
def test_chinese_by_any_code_is_scored_by_characters_of_chinese(code: str) -> None:
    assert bleu_tokenizer(code) == "zh" and is_spaceless(code)


@pytest.mark.parametrize("code", ["ja", "jpn", "jpn_Jpan", "th", "tha", "km", "lo", "my", "mya_Mymr", "bo", "dz"])
def test_languages_without_spaces_are_scored_by_characters(code: str) -> None:
    assert bleu_tokenizer(code) == "char" and is_spaceless(code)


@pytest.mark.parametrize(
    "code", ["en", "eng_Latn", "ko", "vi", "zh-Latn", "nan-Latn", "ja-Latn", "qaa", "", "not a code"]
)
def test_languages_with_spaces_have_the_usual_tokenizer(code: str) -> None:
    assert bleu_tokenizer(code) == "13a" and not is_spaceless(code)


def test_standard_codes() -> None:
    codes = ["zh_hant", "pt_BR", "eng_Latn", "iw", "es-ES", "sr@latin", "ca@valencia", "zh-CHT"]
    standard = ["zh-Hant", "pt-BR", "en", "he", "es-ES", "sr-Latn", "ca-valencia", "zh-Hant"]
    assert [standard_code(code) for code in codes] == standard
    assert [standard_code(code) for code in ("Spanish", "xx", "zh-XYZ", "")] == [None] * 4


@pytest.mark.parametrize("header", ["language: es", "LANGUAGE: es", "Language : es", "language-code: es"])
def test_names_of_headers_have_any_letter_case(tmp_path: Path, header: str) -> None:
    path = catalogue(tmp_path / "a.po", header)
    assert read(path, "es") == [("TRANSLATION",)] and read(path, "es", "en") == [("TRANSLATION", "MESSAGE")]
    with pytest.raises(TextError, match="in 'es', which is neither"):
        read(path, "en", "fr")


@pytest.mark.parametrize("header", ["X-Poedit-Language: Spanish", "Language-Team: Spanish <es@example.org>"])
def test_a_name_against_the_wanted_language_is_refused(tmp_path: Path, header: str) -> None:
    path = catalogue(tmp_path / "a.po", header)
    assert read(path, "en", "es") == [("MESSAGE", "TRANSLATION")]
    for languages in (("en", "fr"), ("fr", "en")):
        with pytest.raises(TextError, match="it has no Language header, and 'Spanish' as"):
            read(path, *languages)
    for team in ("LANGUAGE <LL@li.org>", "KDE", "Our Team", ""):
        assert read(catalogue(path, f"Language-Team: {team}"), "en", "fr") == [("MESSAGE", "TRANSLATION")]


def test_the_cure_of_another_script_or_region_is_its_code(tmp_path: Path) -> None:
    for header, wanted, code in (("sr@latin", "sr", "sr-Latn"), ("zh_HK", "zh-TW", "zh-HK"), ("sr", "sr-Latn", "sr")):
        with pytest.raises(TextError, match=f"use '{code}' in the recipe"):
            read(catalogue(tmp_path / "a.po", f"Language: {header}"), "en", wanted)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("Spanish", "es"),
        ("Serbian (Latin)", "sr-Latn"),
        ("Portuguese (Brazil)", "pt-BR"),
        ("Portuguese Brazil", "pt-BR"),
        ("Spanish (Latin America)", "es-419"),
        ("Chinese (Simplified)", "zh-Hans"),
        ("Traditional Chinese", "zh-Hant"),
        ("Norwegian Nynorsk", "nn"),
        ("French (informal)", "French (informal)"),
        ("Hello", "Hello"),
        ("pt_BR", "pt_BR"),
    ],
)
def test_names_keep_their_script_and_region(name: str, code: str) -> None:
    assert code_of_name(name) == code
