"""Text with markup in it: pieces of markup become tokens that a translation has to keep."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from roundtrip.runtime.errors import TextError


@dataclass(frozen=True)
class MarkedText:
    """A text in which markup is replaced by tokens such as `{1}`, and what stands around it.

    Attributes:
        before, after: markup and white space at both ends, which stay where they are.
        markup: each token with its markup, in order.
        escape: writes text as the format needs it.
    """

    text: str
    before: str
    after: str
    markup: list[tuple[str, str]]
    escape: Callable[[str], str] = str

    def restore(self, translation: str) -> str:
        """Return a translation with the markup in place of its tokens.

        Raises:
            TextError: a token is missing, or the order has changed: elements would be nested in another way.
        """
        if not self.markup:
            return self.before + self.escape(translation) + self.after
        tokens = "|".join(re.escape(token) for token, _ in self.markup)
        parts = re.split(f"({tokens})", translation)
        if parts[1::2] != [token for token, _ in self.markup]:
            raise TextError("its translation has inline elements missing or in another order")
        texts = [self.escape(part) for part in parts[::2]]
        markup = [raw for _, raw in self.markup] + [""]
        return self.before + "".join(map("".join, zip(texts, markup, strict=True))) + self.after


def mark(pieces: Sequence[tuple[bool, str, str]], escape: Callable[[str], str] = str) -> MarkedText:
    """Return the text of pieces in order: whether each is markup, its text or the name of its token, as it is written.

    Markup without a name stays outside at the ends; elsewhere its token has the next number that is not in the text.
    """
    with_text = [i for i, (_, text, _) in enumerate(pieces) if text.strip()]
    first, last = (with_text[0], with_text[-1] + 1) if with_text else (len(pieces), len(pieces))
    inner = pieces[first:last]
    plain = "".join(text for is_markup, text, _ in inner if not is_markup)
    names = [text for is_markup, text, _ in inner if is_markup]
    parts, markup, number = [], [], 0
    for is_markup, text, raw in inner:
        token = text
        if is_markup and (not text or text in plain or names.count(text) > 1):
            numbers = range(number + 1, number + len(plain) + len(names) + 2)
            number = next(n for n in numbers if f"{{{n}}}" not in plain and f"{{{n}}}" not in names)
            token = f"{{{number}}}"
        parts.append(token)
        if is_markup:
            markup.append((token, raw))
    before, after = ("".join(raw for _, _, raw in outer) for outer in (pieces[:first], pieces[last:]))
    return MarkedText("".join(parts), before, after, markup, escape)
