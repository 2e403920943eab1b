"""What a server translates with: both directions of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roundtrip.data.normalize import clean
from roundtrip.engine.checked_translation import CheckedTranslation, translate_checked
from roundtrip.engine.document_translation import paragraphs
from roundtrip.engine.request import Callbacks
from roundtrip.engine.translator import Translator
from roundtrip.recipe.language_codes import match_codes, parse_code
from roundtrip.recipe.plan import Direction
from roundtrip.recipe.schema import Generate


@dataclass(frozen=True)
class ServedRun:
    """Both directions of a run, by name, and the settings of their search."""

    translators: Mapping[str, Translator]
    settings: Generate

    def translate(self, direction: str, texts: Sequence[str], callbacks: Callbacks) -> list[CheckedTranslation]:
        """Translate texts paragraph by paragraph; white space around paragraphs, and those without letters, stay."""
        forward = self.translators[direction]
        split = [paragraphs(text) for text in texts]
        needed = list(dict.fromkeys(clean(part) for parts in split for part in parts[::2] if _has_letters(part)))
        reverse = self.translators[forward.direction.reverse.name]
        results = translate_checked(forward, needed, self.settings, reverse, callbacks=callbacks)
        known = dict(zip(needed, results, strict=True))
        return [_joined(parts, known) for parts in split]


def _joined(parts: Sequence[str], known: Mapping[str, CheckedTranslation]) -> CheckedTranslation:
    """Return the translation of a text from those of its parts, with the first problem that makes it unusable, or any.

    It is empty where a part has none.
    """
    translated = [known[clean(part)] if _has_letters(part) else CheckedTranslation(part) for part in parts]
    missing = [each for part, each in zip(parts, translated, strict=True) if part and not each.text]
    problem = next((each.problem for each in [*missing, *translated] if each.problem), "")
    return CheckedTranslation("" if missing else "".join(each.text for each in translated), problem)


def _has_letters(text: str) -> bool:
    return any(map(str.isalpha, text))


def find_direction(directions: Sequence[Direction], source: str, target: str) -> Direction | None:
    """Return the direction between two languages, in any form of their codes; None where none fits, or more than one.

    The source may be `auto`.
    """
    if source == "auto":
        (position,) = match_codes([target], [each.target for each in directions])
        return None if position is None else directions[position]
    if parse_code(source) == parse_code(target):
        return None
    fitting = [each for each in directions if match_codes([source, target], [each.source, each.target]) == (0, 1)]
    return fitting[0] if len(fitting) == 1 else None
