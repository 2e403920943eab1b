"""What a server translates with: both directions of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roundtrip.engine.checked_translation import CheckedTranslation, translate_checked
from roundtrip.engine.document_translation import join_translations, needed_texts
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
        needed = needed_texts(texts)
        results = translate_checked(self.translators[direction], needed, self.settings, callbacks=callbacks)
        known = dict(zip(needed, results, strict=True))
        return [join_translations(text, known) for text in texts]


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
