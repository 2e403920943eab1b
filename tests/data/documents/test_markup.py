"""Text with markup in it."""

from roundtrip.data.documents.markup import mark


def test_a_numbered_token_is_neither_in_the_text_nor_the_name_of_another_element() -> None:
    pieces = [(False, "A ", "A "), (True, "", "<m>"), (False, "word {2} ", "word {2} "), (True, "{1}", "<x/>")]
    marked = mark([*pieces, (False, " end", " end")])
    assert marked.text == "A {3}word {2} {1} end"
    assert marked.restore("B {3}wort {2} {1} Ende") == "B <m>wort {2} <x/> Ende"
