"""Placeholders and markup: what a translation keeps of its source as it is.

Nothing tells which format a text is in, so all are looked for in every text: printf, the braces of Python and ICU,
templates, shell variables, HTML and XML. What prose may hold ("100 % of", "$5", "a < b") is none of them.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum


class Kind(Enum):
    """What is compared. A difference in the kinds up to LINE_BREAK is an error, in the others a warning.

    After an error, the program that shows the text fails, shows something else, or refuses to read it. After a warning
    it works, and the translator may have had a reason.
    """

    PRINTF = "printf placeholder"  # %s, %(name)s, %1$s, %1%, %<PRIu64>, %%
    BRACES = "placeholder in braces"  # {}, {name!r:>10}, {n, plural, ...}, {{ name }}, {% tag %}, ${name}
    VARIABLE = "variable"  # $name, %NAME%
    MASK = "masked placeholder"  # [X7X], which Weblate sends for a placeholder at this offset
    TAG = "tag"  # <b>, </b>, <br/>, <a href="...">
    LINE_BREAK = "line break"  # the first or last character
    ENTITY = "entity"  # &nbsp;
    ACCELERATOR = "accelerator"  # &File, _File
    URL = "URL"
    EMAIL = "e-mail address"
    NUMBER = "number"
    SPACE = "white space"  # at the ends
    PUNCTUATION = "final punctuation"

    @property
    def is_error(self) -> bool:
        return self in _ERRORS


_ERRORS = (Kind.PRINTF, Kind.BRACES, Kind.VARIABLE, Kind.MASK, Kind.TAG, Kind.LINE_BREAK)
# How often something occurs in a text that its translation has to have as often.
_Tokens = Counter[tuple[Kind, str]]

# All quantifiers are bounded or possessive, so that time grows in proportion to the length of a text.
_LATIN = r"[A-Za-zÀ-ɏ]"
_SPECIAL = re.compile(r"[%{}<$\[]")
_FIELD = r"[$-]?+(?:[\w.\-]|\[[^\[\]{}\s]{0,50}\]){1,100}+"
_FORMAT = (
    r":(?:[^{}\s]|\{\w{0,50}\}){0,100}+|:[^{}%]{0,20}+%[^{}]{0,100}+"
    r"|,\s*+(?:number|date|time|spellout|ordinal|duration|list)\b[^{}]{0,100}+|,\s*+-?\d{1,4}+(?::[^{}\s]{0,100}+)?+"
)
_VALUE = r"""\s*+=\s*+(?:"[^"<]*+"|'[^'<]*+'|[^\s"'<>=]++)"""
_ATTRIBUTE = rf"[A-Za-z_:@][\w:.\-@]{{0,50}}+{_VALUE}"
_FLAG = rf"(?:checked|disabled|hidden|multiple|open|readonly|required|selected)\b(?!{_VALUE})"
_C99 = "<PRI[diouxX](?:(?:LEAST|FAST)?+(?:8|16|32|64)|MAX|PTR)>"
_CONVERSION = rf"(?:[dsuxXfF@]|[ioeEgGcrap](?!{_LATIN})|{_C99})"
_PATTERNS = {
    "variable": r"(?a:(?<![\w$\\])\$_{0,3}+(?:[a-z]\w{0,100}+|[A-Z]\w{1,100}+)|(?<!\w)%[A-Za-z_]\w{2,100}+%(?!\w))",
    "named": r"%\([^()%]{1,100}+\)[-+#0]*+\d{0,4}+(?:\.\d{1,4}+)?+[diouxXeEfFgGcrsa]",
    "printf": (
        r"%(?P<number>\d{1,3}\$)?+(?:[+#0]|-(?=[\d*]))*+(?:\d{1,4}+|\*)?+(?:\.(?:\d{1,4}+|\*))?+"
        rf"(?:hh?+|ll?+|I(?:32|64)|[Lqjzt])?+{_CONVERSION}"
        # With a space for the sign; not in "100 % d'accord".
        r"|(?<!\d)(?<!\d\s)% \d{0,4}+(?:\.\d{1,4}+)?+l{0,2}+[df](?![\w'’])"
    ),
    "boost": r"(?<!\w)%[1-9]\d?+%(?!\w)",
    "mask": r"\[X\d{1,6}+X\s*+\]",
    "icu": r"\{\s*+(?P<argument>[\w.\-]{1,100}+)\s*+,\s*+(?P<type>plural|select|selectordinal)\s*+,",
    "triple": r"\{\{\{[^{}]{1,200}+\}\}\}",
    "double": r"\{\{[^{}]{1,200}+\}\}",
    "statement": r"\{[%#][^{}]{1,200}+(?<=[%#])\}",
    "shell": r"\$\{[^{}]{1,100}+\}",
    "braces": rf"[%#]?+\{{\s*+(?P<field>{_FIELD})?+(?:![rsa])?+\s*+(?:{_FORMAT})?\s*+\}}",
    "tag": (
        r"<(?P<close>/?+)(?P<name>[A-Za-z0-9][\w:.\-]{0,50}+)"
        rf"(?P<attributes>(?:\s++(?:{_ATTRIBUTE}|{_FLAG}))*+)\s*+(?P<empty>/?+)>"
    ),
    "escape": r"%%|\{\{|\}\}",
    "lone": r"%|(?<!')[{}]|[{}](?!')",
}
_TOKEN = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _PATTERNS.items()))
# A number and a word, as in German "100%ige".
_PERCENT = re.compile(rf"\d%{_LATIN}{{2}}")
_NUMBERED = re.compile(r"(%)\d+\$|(\{)\d+")
_NAME_AND_VALUE = re.compile(rf"([\w:.\-@]++)({_VALUE})?+")
_BRANCH = re.compile(r"\s*+(?:offset:\s*+\d++\s*+)?+(?P<selector>=?+[\w\-]{1,100}+)\s*+\{")
# Branches of a plural that a language has or has not; `other` must be there, and nothing else may.
_PLURAL_SELECTOR = re.compile("zero|one|two|few|many|=[0-9]+")
# Levels of plurals in plurals that are looked into.
_MAX_DEPTH = 20
# Attributes that are translated, say which language something is in, or how a link opens.
_TEXT_ATTRIBUTE = re.compile(
    r"title|alt|placeholder|aria-label|label|summary|content|lang|xml:lang|hreflang|dir|translate|target|rel",
    re.IGNORECASE,
)
# Values of attributes that are compared as something else: those with placeholders, and URLs.
_OTHER_VALUE = re.compile(r"[%{$]|://|^mailto:")
_HTML = re.compile(
    r"a|abbr|acronym|address|article|aside|b|big|blockquote|body|button|caption|center|cite|code|dd|del|details|dfn|div|dl"
    r"|dt|em|fieldset|figcaption|figure|font|footer|form|h[1-6]|head|header|html|i|iframe|ins|kbd|label|legend|li|main"
    r"|mark|nav|ol|optgroup|option|p|pre|q|s|samp|script|section|select|small|span|strike|strong|style|sub|summary|sup"
    r"|table|tbody|td|textarea|tfoot|th|thead|tr|tt|u|ul|var|video",
    re.IGNORECASE,
)
_EMPTY = re.compile(r"br|col|hr|img|input|wbr", re.IGNORECASE)
_ENCODED = re.compile(r"%(?=[0-9A-Fa-f]{2})")
_URL = re.compile(r"""\b(?:https?|ftp)://[\w\[][^\s<>"'{}|\\^`“”„‘’«»]*(?<![.,:;!?…)。，、])""")
_LITERALS = {
    Kind.URL: _URL,
    Kind.EMAIL: re.compile(r"(?<![\w.+\-])[\w.+\-]{1,64}+@[\w\-]{1,63}+(?:\.[\w\-]{1,63}+){1,8}+"),
    Kind.ENTITY: re.compile(r"&(?:#\d{1,7}+|#x[0-9A-Fa-f]{1,6}+|[A-Za-z][A-Za-z0-9]{1,31}+);"),
}
_ACCELERATORS = {
    "&": re.compile(r"(?<![&\w])&(?=\w)|(?<=[^\W\d_])&(?=[a-z])"),
    # Not in words_of_lowercase, which are names of something.
    "_": re.compile(r"(?<![^\W])_(?=[^\W_])|\b(?![_a-z])\w{1,30}?_(?=[^\W_])"),
}
_NUMBER = re.compile(r"(?<!\d)\d{1,3}(?:[.,'’٬\u00a0\u2009\u202f ]\d{3}(?!\d))++(?:[.,٫]\d++)?+|\d++(?:[.,٫]\d++)?+")
# Numbers that may be spelled out on one side.
_SPELLED = re.compile("1?[0-9]|20")
_CLOSING = " \t\r\n\u00a0\u202f\"'`*_)]}»«”’“›」』）】"
_FINAL = {".": ".。．।۔։።။។", ":": ":：", "?": "?？؟՞;", "!": "!！՜", "…": "…"}
_GREEK = re.compile("[\u0370-\u03ff]")
_NO_FULL_STOP = re.compile("[\u0e00-\u0eff]")  # Thai and Lao
_NOT_NESTED = "order of tags"
# What a source need not have: an extra one is an error where the source is a format, a missing one is none.
_ONLY_EXTRA = ((Kind.PRINTF, "%"), (Kind.BRACES, "{"), (Kind.BRACES, "}"), (Kind.TAG, _NOT_NESTED))


@dataclass(frozen=True)
class Difference:
    """What a translation lacks of one kind, and what it has beyond its source."""

    kind: Kind
    missing: tuple[str, ...]
    extra: tuple[str, ...]

    def __str__(self) -> str:
        parts = {"missing": self.missing, "extra": self.extra}
        return f"{self.kind.value}: " + ", ".join(f"{word} {' '.join(parts[word])}" for word in parts if parts[word])


def differences(source: str, target: str) -> list[Difference]:
    """Return all differences between a text and its translation, errors first."""
    parsed, translated = _Parsed.of(source), _Parsed.of(target)
    return _compare(parsed, translated) + _warnings(parsed, translated)


def errors(source: str, target: str) -> list[Difference]:
    """Return the differences that are errors, in much less time than `differences`."""
    return _compare(_Parsed.of(source), _Parsed.of(target))


def has_placeholders(text: str) -> bool:
    """Return whether a text has placeholders or tags."""
    tokens = _Parsed.of(text).tokens
    return any(token not in _ONLY_EXTRA and token[0] is not Kind.LINE_BREAK for token in tokens)


def first_intact(source: str, candidates: Sequence[str]) -> int | None:
    """Return the index of the first candidate without errors against its source, None where there is none.

    Example:
        >>> first_intact("Delete %(name)s?", ["¿Eliminar %(nombre)s?", "¿Eliminar %(name)s?"])
        1
    """
    parsed = _Parsed.of(source)
    return next((i for i, text in enumerate(candidates) if not _compare(parsed, _Parsed.of(text))), None)


def count_intact(sources: Sequence[str], translations: Sequence[str]) -> tuple[int, int]:
    """Return how many translations have no errors, and how many there are, of sources with placeholders or tags."""
    with_any = [(each, text) for each, text in zip(sources, translations, strict=True) if has_placeholders(each)]
    return sum(not errors(*pair) for pair in with_any), len(with_any)


@dataclass(frozen=True)
class _Parsed:
    """A text, what must be kept of it, and where that is."""

    text: str
    scanned: str  # as long, without what is percent-encoded in URLs
    tokens: _Tokens = field(default_factory=Counter)
    spans: list[tuple[int, int]] = field(default_factory=list)
    closing_braces: dict[int, int] = field(default_factory=dict)  # index of each by that of its opening one
    closed_tags: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, text: str) -> "_Parsed":
        scanned = _URL.sub(lambda url: _ENCODED.sub("_", url.group()), text) if "://" in text else text
        parsed = cls(text, scanned)
        if _SPECIAL.search(text):
            parsed._match_braces()
            parsed.closed_tags.update(re.findall(r"</([\w:.\-]{1,51}+)", text))
            tokens, spans = parsed._scan(0, len(text))
            parsed.tokens.update(tokens)
            parsed.spans.extend(spans)
        parsed.tokens.update((Kind.LINE_BREAK, end) for end, space in _spaces(text).items() if "\n" in space)
        return parsed

    def rest(self) -> str:
        """Return the text with U+FFFC for each placeholder and a space for each tag."""
        parts, position = [], 0
        for start, end in self.spans:
            parts += [self.text[position:start], " " if self.text[start] == "<" else " \ufffc "]
            position = max(position, end)
        return "".join([*parts, self.text[position:]])

    def _match_braces(self) -> None:
        opening: list[int] = []
        for match in re.finditer(r"(?<!')[{}]|[{}](?!')", self.scanned):  # ICU quotes '{'
            if match.group() == "{":
                opening.append(match.start())
            elif opening:
                self.closing_braces[opening.pop()] = match.start()

    def _scan(self, position: int, end: int, depth: int = 0) -> tuple[_Tokens, list[tuple[int, int]]]:
        """Return the tokens in a part of the text, and where they are, in order.

        Placeholders without number or name are numbered, so that `%s %d` is `%1$s %2$d`.
        """
        tokens: _Tokens = Counter()
        spans, open_tags, num_printf, num_braces = list[tuple[int, int]](), list[str](), 0, 0
        while match := _TOKEN.search(self.scanned, position, end):
            key, position = "".join(match.group().split()), match.end()
            span = match.span()
            kind = Kind.PRINTF if key[0] == "%" and key[1:2] != "{" else Kind.BRACES
            if match["tag"]:
                position = match.end("name")  # attributes may hold placeholders
                if not self._is_tag(match):
                    continue
                kind, key = Kind.TAG, _tag_key(match)
                if not (match["empty"] or _EMPTY.fullmatch(match["name"])):
                    if not match["close"]:
                        open_tags.append(match["name"])
                    elif not open_tags or open_tags.pop() != match["name"]:
                        tokens[kind, _NOT_NESTED] = 1
            elif match["variable"]:
                kind = Kind.VARIABLE
            elif match["mask"]:
                kind = Kind.MASK
            elif match["printf"]:
                key = match["printf"]  # a space in it is a flag
                if _PERCENT.match(self.scanned, max(0, span[0] - 1), position + 1):
                    key, position = "%", span[0] + 1
                elif not match["number"]:
                    num_printf += 1
                    key = f"%{num_printf}${key[1:]}"
            elif match["icu"] and self.closing_braces.get(span[0], end) < end:
                key, inner = self._icu(match, depth)
                tokens.update(inner)
                position = self.closing_braces[span[0]] + 1
                span = span[0], position
            elif match["braces"] and not match["field"]:
                key, num_braces = key.replace("{", f"{{{num_braces}", 1), num_braces + 1
            tokens[kind, key] += 1
            spans.append(span)
        return tokens, spans

    def _is_tag(self, match: re.Match[str]) -> bool:
        """Return whether something in angle brackets is a tag, not a word such as <none>."""
        name = match["name"]
        is_marked = match["close"] or match["attributes"] or match["empty"] or ":" in name
        return bool(is_marked or name in self.closed_tags or _HTML.fullmatch(name) or _EMPTY.fullmatch(name))

    def _icu(self, head: re.Match[str], depth: int) -> tuple[str, _Tokens]:
        """Return what stands for a plural or select argument, and the tokens of its branches.

        A language may have more or fewer branches of a plural; those of a select are the same in all.
        """
        start, close, position = head.start(), self.closing_braces[head.start()], head.end()
        tokens: _Tokens = Counter()
        selectors = []
        while depth < _MAX_DEPTH and (branch := _BRANCH.match(self.scanned, position, close)):
            position = self.closing_braces[branch.end() - 1]
            in_branch, _ = self._scan(branch.end(), position, depth + 1)
            if self.scanned.find("#", branch.end(), position) >= 0:
                in_branch[Kind.BRACES, "#"] = 1
            tokens |= in_branch
            selectors.append(branch["selector"])
            position += 1
        if self.scanned[position:close].strip():
            return "".join(self.scanned[start : close + 1].split()), Counter()
        is_select = head["type"] == "select"
        kept = [name for name in sorted(selectors) if is_select or not _PLURAL_SELECTOR.fullmatch(name)]
        return f"{{{head['argument']},{head['type']},{' '.join(kept)}}}", tokens


def _tag_key(match: re.Match[str]) -> str:
    """Return a tag without what may differ: white space, order and quotes of attributes, texts and addresses."""
    attributes = {}
    for name, value in _NAME_AND_VALUE.findall(match["attributes"]):
        if not _TEXT_ATTRIBUTE.fullmatch(name):
            bare = value.strip(" =\"'")
            attributes[name] = "" if _OTHER_VALUE.search(bare) else f'="{bare}"'
    shown = "".join(f" {name}{value}" for name, value in sorted(attributes.items()))
    end = "/" if match["empty"] and not _EMPTY.fullmatch(match["name"]) else ""
    return f"<{match['close']}{match['name']}{shown}{end}>"


def _compare(source: "_Parsed", target: "_Parsed") -> list[Difference]:
    """Return the differences in tokens by kind, in the order of kinds."""
    formats = {kind for kind, key in source.tokens if (kind, key) not in _ONLY_EXTRA}
    missing, extra = source.tokens - target.tokens, target.tokens - source.tokens
    for token in _ONLY_EXTRA:
        del missing[token]
        if token[0] not in formats:
            del extra[token]
    kinds = {kind for kind, _ in (*missing, *extra)}
    return [
        Difference(kind, _shown(missing, kind, source.text), _shown(extra, kind, target.text))
        for kind in Kind
        if kind in kinds
    ]


def _shown(tokens: _Tokens, kind: Kind, text: str) -> tuple[str, ...]:
    """Return the tokens of a kind as a text has them: with numbers where it has any."""
    keys = (key for each, key in tokens.elements() if each is kind)
    return tuple(keys if _NUMBERED.search(text) else (_NUMBERED.sub(r"\1\2", key, count=1) for key in keys))


def _warnings(source: _Parsed, target: _Parsed) -> list[Difference]:
    """Return the differences that are warnings."""
    (tokens, rest), (in_target, rest_of_target) = _plain_tokens(source), _plain_tokens(target)
    for marker in "&_":
        # Where there are more, or none, they are part of the text.
        expected, found = (len(_ACCELERATORS[marker].findall(text)) for text in (rest, rest_of_target))
        if expected == 1 or (expected, found) == (0, 1):
            tokens[Kind.ACCELERATOR, marker], in_target[Kind.ACCELERATOR, marker] = expected, found
    changes = tokens - in_target, in_target - tokens
    missing, extra = ({token for token in change if token[0] is Kind.NUMBER} for change in changes)
    if not (missing and extra) and all(_SPELLED.fullmatch(number) for _, number in missing | extra):
        for token in missing | extra:
            del tokens[token], in_target[token]
    if _NO_FULL_STOP.search(source.text) or _NO_FULL_STOP.search(target.text):
        del tokens[Kind.PUNCTUATION, "."], in_target[Kind.PUNCTUATION, "."]
    return _compare(replace(source, tokens=tokens), replace(target, tokens=in_target))


def _plain_tokens(parsed: _Parsed) -> tuple[_Tokens, str]:
    """Return what is compared of a text outside of placeholders and tags, and the text without it."""
    text, rest = parsed.text, parsed.rest()
    tokens: _Tokens = Counter()
    for kind, pattern in _LITERALS.items():
        # Addresses are also in attributes of tags.
        found = pattern.findall(rest if kind is Kind.ENTITY else text)
        tokens.update((kind, match) for match in found)
        rest = pattern.sub(" ", rest)
    tokens.update((Kind.NUMBER, _number(match)) for match in _NUMBER.findall(rest))
    for end, space in _spaces(text).items():
        if space := re.sub(r"[\r\n]", "", space):
            tokens[Kind.SPACE, f"{space!r} at the {end}"] = 1
    if final := _final_punctuation(rest):
        tokens[Kind.PUNCTUATION, final] = 1
    return tokens, rest


def _spaces(text: str) -> dict[str, str]:
    """Return the white space at the start and at the end of a text."""
    start = text[: len(text) - len(text.lstrip())]
    return {"start": start, "end": text[max(len(start), len(text.rstrip())) :]}


def _number(text: str) -> str:
    """Return a number with a point before its decimals and without grouping, whatever the locale and the digits."""
    groups = re.split(r"\D", "".join(str(unicodedata.decimal(char, ".")) for char in text))
    decimals = "." + groups.pop() if len(groups) > 1 and len(groups[-1]) != 3 else ""
    return "".join(groups) + decimals


def _final_punctuation(text: str) -> str:
    """Return the mark that ends a text, as in English; quotes and brackets after it do not count."""
    text = text.rstrip(_CLOSING)
    if text.endswith("..."):
        return "…"
    if text.endswith(";") and _GREEK.search(text):
        return "?"
    return next((mark for mark, forms in _FINAL.items() if text.endswith(tuple(forms))), "")
