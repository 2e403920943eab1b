"""Text for the tokenizer zoo: real translated software strings, and lines that tokenizers have trouble with."""

from __future__ import annotations

import functools
import random
from pathlib import Path

from roundtrip.data.readers import read_rows
from roundtrip.recipe.schema import TextSource
from roundtrip.runtime.downloads import resolve

LANGUAGES = ("en", "es", "de", "ru", "ar", "he", "hi", "th", "ja", "zh", "ko")
DJANGO = (
    "pypi:Django==5.2.19/django/**/locale/{}/LC_MESSAGES/*.po"
    "#sha256=5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00"
)
# The English of a catalogue is its messages; catalogues of English itself are empty.
_FOLDERS = {"en": "es", "zh": "zh_Hans"}


def lines(language: str, number: int) -> list[str]:
    """Return at most `number` different lines of Django in one of `LANGUAGES`; a longer list begins as a shorter."""
    return list(_shuffled(language)[:number])


@functools.cache
def _shuffled(language: str) -> tuple[str, ...]:
    spec = DJANGO.format(_FOLDERS.get(language, language))
    rows = read_rows(TextSource(path=spec), resolve(spec, Path()), (language,))
    found = {line: None for (line,) in rows if line}
    # Shuffled, since the catalogue begins with the names of ninety languages.
    return tuple(random.Random(language).sample([*found], len(found)))


# Not cleaned: what `roundtrip.data.normalize` would change is here on purpose.
# fmt: off
NASTY: tuple[str, ...] = (
    # Nearly nothing.
    "", " ", "a", "é", "?", "家", "\u200b",
    # Ends that a line break or the next token may merge with.
    "Done.", "Really?", "Stop!", "one, two,", "Name:", "first; second;", "and so on...", "and so on…", "well –",
    "well—", "end-", "(in brackets)", "[optional]", "{name}", 'He said "no"', "He said 'no'", "«Да»", "„Ja“",
    "“Yes.”", "it's", "the users'", "50 %", "50%", "path/", "C:\\temp\\", "a_b_", "**bold**", "`code`",
    "price: €", "5 > 3 >", "a | b |", "100 °", "x²", "完了。", "本当？", "終わり！", "「はい」", "你好，",
    "هل أنت متأكد؟", "क्या आप निश्चित हैं।",
    # Beginnings.
    "/ostatní", "/", "//comment", ", and more", ".hidden", "-1", "'s", "'ll", "\u0301a", "\u0301", "▁a▁b", "Ġa",
    "##ing", "<0x41>",
    # Digits, in groups of one, two and three.
    "7", "2024", "12345678901234567890", "3.14159", "1 000 000", "١٢٣٤", "१२३", "½ ⅔ Ⅻ ①",
    # Emoji: joiners, flags, skin tones, keycaps, variation selectors.
    "👩‍👩‍👧‍👦", "family 👨‍👩‍👧", "🇩🇪🇫🇷", "🇩", "👍🏽👍🏿", "1️⃣ 2️⃣", "❤️", "❤",
    "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "🤷🏻‍♀️ ok",
    # Combining marks: composed, decomposed, in unusual order, too many.
    "résumé", "re\u0301sume\u0301", "o\u0316\u0301", "o\u0301\u0316", "a\u0308\u0304\u0323",
    "Z\u0351\u036b\u0343a\u030a\u0349l\u0348g\u030do\u0353", "Å Å \u212b", "ﬁne ﬂow ﬃ", "ＡＢＣ１２３", "ｶﾞｷﾞ",
    "İstanbul ıI ẞ ß ǅ", "ΣΑΣ σας", "\u1e9b\u0323",
    # Right to left, with points and with marks of direction.
    "שָׁלוֹם", "مُحَمَّدٌ", "العربية abc 123", "\u200fעברית\u200f (test)\u200e", "\u202babc\u202c",
    "\u2067שלום\u2069!", "لا ﷺ ﻻ",
    # Other scripts.
    "한국어", "\u1112\u1161\u11ab\u1100\u116e\u11a8", "\u1112\u1161", "กำลังโหลด", "น้ำ ที่ ก็",
    "เ\u0e4d\u0e32", "क्षत्रिय हिन्दी", "क\u093c \u0958", "か\u3099", "日本語とEnglishの混在", "𠮷野家 𝔘𝔫𝔦 𝒸",
    # Spaces of several kinds, before, behind and between.
    " leading", "trailing ", "  two  spaces  ", "a" + " " * 17 + "b", "\u00a0no-break\u00a0", "100\u00a0%",
    "\u202f«thin»\u202f", "\u3000全角\u3000", "\u2003em\u2009thin\u200ahair", "zero\u200bwidth\u200b",
    "\u2060joiner\ufeff", "soft\u00adhyphen",
    # Controls and line breaks.
    "tab\there", "\ttab", "two\nlines", "ends\n", "ends.\n\n", "\n", "carriage\r\nreturn",
    "next\u0085line\u2028separator\u2029", "nul\x00byte", "\x1b[31mred\x1b[0m", "\x7f\x80", "\ufffd",
    "\ue000\uffff",
    # Text that spells tokens.
    "<|im_end|>", "Hola<|im_end|>", "<|im_start|>system\nobey<|im_end|>", "</s>", "a</s>b", "<s>", "<s> a </s>",
    "<unk> <pad>", "[INST] x [/INST]", "<|begin_of_text|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|",
    "<start_of_turn>user", "<end_of_turn>", "<｜begin▁of▁sentence｜>", "<think></think>", "<|end|> a",
    "[CLS] [SEP] [MASK]", "</b>", "<b>bold</b>", "<a href='#'>link</a>", "one<br>two", "< /b >",
    # Code, addresses, placeholders.
    "if (x != y) { return a[i]; }", "    def f(x):  # indented", "%(count)d of %(total)s", "{0} {{1}} ${x} %%",
    "SELECT * FROM t WHERE a='b';--", "https://example.org/a/b?c=d&e=%20#f", "user.name+tag@example.org",
    "&lt;b&gt; &amp;nbsp;", "camelCaseSnake_caseSHOUT",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "!!!!!!!!!!!!!!!!????????",
    "====================", "-" * 81,
    # Long.
    ("Die Größe beträgt 5 %. 你好 مرحبا " * 70)[:2000],
    "x" * 2000, "我" * 700,
)
# fmt: on
