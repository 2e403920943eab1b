"""Identification of the language of a line: offline, by py3langid, and only for lines long enough to be reliable.

It distinguishes the two languages of a recipe, to detect sources in the language of their target; a line in a third
language is classified as one of the two.
"""

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import langcodes

from roundtrip.runtime.errors import RecipeError

# On shorter lines it is unreliable (measured on software strings: 92 % right at all lengths, 99 % from this one on).
MIN_CHARS = 40
# Accuracy on dev lines below which it is not used.
MIN_RIGHT = 0.95
# Dev lines below which the accuracy is unknown.
MIN_LINES = 20
# Characters below which the language of a text is not identified among all languages, and what is enough.
MIN_TEXT_CHARS, MAX_TEXT_CHARS = 200, 10_000
_PLACE = "filter.language"
_CURE = "set filter.language = false"


class LanguageIdentifier:
    """Classifies lines as one of the two languages of a recipe, which py3langid has to distinguish.

    Args:
        normalize: compute probabilities, which `probabilities` needs.
    """

    def __init__(self, languages: tuple[str, str], *, normalize: bool = False) -> None:
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError as error:
            cure = f"pip install 'roundtrip-mt[langid]', or {_CURE}"
            raise RecipeError("it needs py3langid, which is not installed", place=_PLACE, cure=cure) from error
        self._model: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=normalize)
        self._names = {code: str(langcodes.Language.get(code).language) for code in languages}
        for code, name in self._names.items():
            if name not in self._model.labels:
                raise RecipeError(f"py3langid does not know '{code}'", place=_PLACE, cure=_CURE)
        if len(set(self._names.values())) < 2:
            raise RecipeError(f"py3langid does not distinguish {' and '.join(languages)}", place=_PLACE, cure=_CURE)
        self._model.set_languages(sorted(self._names.values()))

    def is_other(self, text: str, language: str) -> bool:
        """Return whether a line is long enough to be classified, and is not in the given language."""
        return len(text) >= MIN_CHARS and str(self._model.classify(text)[0]) != self._names[language]

    def probabilities(self, text: str) -> dict[str, float]:
        """Return the probability of each of the languages, for a text of any length."""
        ranked = dict(self._model.rank(text))
        return {code: float(ranked[name]) for code, name in self._names.items()}

    def share_right(self, lines: Sequence[str], language: str) -> tuple[float, int]:
        """Return the accuracy on lines of a language that are long enough, and the number of these."""
        classified = [line for line in lines if len(line) >= MIN_CHARS]
        right = sum(not self.is_other(line, language) for line in classified)
        return right / max(1, len(classified)), len(classified)


def identify(lines: Sequence[str]) -> str | None:
    """Return the language that lines of one text are in, of all that py3langid knows.

    None where it is not installed, or the text is too short.
    """
    text = " ".join(lines)[:MAX_TEXT_CHARS]
    if len(text) < MIN_TEXT_CHARS or importlib.util.find_spec("py3langid") is None:
        return None
    return str(_all_languages().classify(text)[0])


@lru_cache(maxsize=1)
def _all_languages() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
