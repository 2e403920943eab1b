"""Back-translation for causal language models: two translation directions that generate training data for each other.

Every public name is imported when it is first used, so that `import roundtrip` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from roundtrip.backtranslation.export import export
    from roundtrip.backtranslation.filtering import Candidate, filter_candidates, round_trip_chrf, select_candidates
    from roundtrip.backtranslation.session import train
    from roundtrip.backtranslation.trained_models import load_trained
    from roundtrip.engine.request import BeamSearch
    from roundtrip.engine.train_step import StepSettings, train_step
    from roundtrip.engine.translator import Translations, Translator, load_translators
    from roundtrip.evaluation.metrics import corpus_scores, paired_bootstrap
    from roundtrip.models.optimizer import Optimizer
    from roundtrip.recipe.loader import load_recipe
    from roundtrip.recipe.schema import CandidateFilter, Generate, Recipe, TemplateRecipe
    from roundtrip.report.page import write_report
    from roundtrip.runtime.errors import RoundtripError
    from roundtrip.tokens.batching import TokenDataset
    from roundtrip.tokens.compatibility import BuildOptions, CompatibilityReport, build_row_builder, check_tokenizers
    from roundtrip.tokens.prompt_segments import build_segments
    from roundtrip.tokens.prompt_template import PromptTemplate
    from roundtrip.tokens.row_builder import RowBuilder

_MODULES = {
    "backtranslation.export": ("export",),
    "backtranslation.filtering": ("Candidate", "filter_candidates", "round_trip_chrf", "select_candidates"),
    "backtranslation.session": ("train",),
    "backtranslation.trained_models": ("load_trained",),
    "engine.request": ("BeamSearch",),
    "engine.train_step": ("StepSettings", "train_step"),
    "engine.translator": ("Translations", "Translator", "load_translators"),
    "evaluation.metrics": ("corpus_scores", "paired_bootstrap"),
    "models.optimizer": ("Optimizer",),
    "recipe.loader": ("load_recipe",),
    "recipe.schema": ("CandidateFilter", "Generate", "Recipe", "TemplateRecipe"),
    "report.page": ("write_report",),
    "runtime.errors": ("RoundtripError",),
    "tokens.batching": ("TokenDataset",),
    "tokens.compatibility": ("BuildOptions", "CompatibilityReport", "build_row_builder", "check_tokenizers"),
    "tokens.prompt_segments": ("build_segments",),
    "tokens.prompt_template": ("PromptTemplate",),
    "tokens.row_builder": ("RowBuilder",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BeamSearch", "BuildOptions", "Candidate", "CandidateFilter", "CompatibilityReport", "Generate", "Optimizer",
    "PromptTemplate", "Recipe", "RoundtripError", "RowBuilder", "StepSettings", "TemplateRecipe", "TokenDataset",
    "Translations", "Translator", "build_row_builder", "build_segments", "check_tokenizers", "corpus_scores", "export",
    "filter_candidates", "load_recipe", "load_trained", "load_translators", "paired_bootstrap", "round_trip_chrf",
    "select_candidates", "train", "train_step", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'roundtrip' has no attribute '{name}'")
    return getattr(importlib.import_module(f"roundtrip.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
