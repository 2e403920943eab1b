"""The experiments of `benchmarks.quality`: shipped recipes, and what each arm changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roundtrip.recipe.plan import PARALLEL, PRETRAIN

ROUND_TRIP, PAIRS_ONLY = "round trip", "pairs only"
# What turns everything off that belongs to rounds.
NO_ROUNDS = ("rounds.count=0", "rounds.replay_examples=0", "rounds.denoising_ratio=0.0", "train.patience=0",
             "filter.language=false", "filter.min_round_trip_chrf=0.0", "train.final_epochs=0")  # fmt: skip


@dataclass(frozen=True)
class Start:
    """A run whose weights of one stage all arms begin with.

    Attributes:
        changes: of its recipe.
    """

    recipe: str
    changes: Sequence[str]
    stage: str


@dataclass(frozen=True)
class Experiment:
    """A recipe and the changes of each arm, by name.

    Attributes:
        common: changes of all arms.
        baseline: the arm that others are compared with.
        start: what all arms begin with; None: what the recipe names.
    """

    recipe: str
    arms: Mapping[str, Sequence[str]]
    common: Sequence[str] = ()
    seeds: Sequence[int] = (1,)
    baseline: str = PAIRS_ONLY
    start: Start | None = None


# How the kept tables of models from scratch were made: the recipe has learned since.
AS_KEPT = ("adapter.dropout=0.0", "evaluation.num_beams=1")
BOTH: dict[str, Sequence[str]] = {PAIRS_ONLY: (), ROUND_TRIP: ()}
GERMAN = (
    "languages=['en', 'de']",
    "data.split.corpus={path = ['multi30k/train.en.gz', 'multi30k/train.de.gz']}",
    "data.dev={path = ['multi30k/val.en.gz', 'multi30k/val.de.gz'], limit = 300}",
    "data.test={path = ['multi30k/test_2016_flickr.en.gz', 'multi30k/test_2016_flickr.de.gz']}",
)


def _multi30k(pairs: int, more: Sequence[str] = (), seeds: Sequence[int] = (1, 2, 3)) -> Experiment:
    split = (*more, f"data.split.train={pairs}")
    epochs = 12 if pairs < 1000 else 8 if pairs < 5000 else 5
    start = Start("multi30k-base", split, PRETRAIN)
    return Experiment("multi30k", BOTH, (*split, *AS_KEPT, f"train.parallel_epochs={epochs}"), seeds, start=start)


# What each arm of the ablation changes. Two rounds, so that there is time for all.
ABLATION: dict[str, Sequence[str]] = {
    "default": (),
    "sampling, 0.7": ("generate.temperature=0.7",),
    "sampling, 1.0": ("generate.temperature=1.0",),
    "best of 4 by reverse likelihood": (
        "generate.temperature=0.7",
        "generate.num_candidates=4",
        "generate.candidate_selection=reverse_likelihood",
    ),
    "no length filter": ("filter.max_length_ratio=100.0",),
    "wrong language": ("filter.language=true",),
    "round-trip score": ("filter.min_round_trip_chrf=25.0",),
    "no parallel pairs": ("rounds.parallel_ratio=0.0",),
    "half parallel pairs": ("rounds.parallel_ratio=0.5",),
    "rounds of 1,000": ("rounds.count=6", "rounds.monolingual_lines=1000"),
    "one round of 6,000": ("rounds.count=1", "rounds.monolingual_lines=6000"),
    "replay": ("rounds.replay_examples=6000",),
    "last stage on pairs": ("train.final_epochs=4",),
    "denoising": ("rounds.denoising_ratio=0.2",),
}

# From a weak start: rounds that begin after few epochs over the pairs, or when these bring no more, and pairs alone for
# longer than either.
_BEGIN: dict[str, Sequence[str]] = {
    "5 epochs, then rounds": ("train.parallel_epochs=5",),
    "until dev stalls, then rounds": ("train.parallel_epochs=30", "train.patience=2"),
    "11 epochs, no rounds": (*NO_ROUNDS, "train.parallel_epochs=11"),
    "30 epochs, no rounds": (*NO_ROUNDS, "train.parallel_epochs=30"),
}

EXPERIMENTS: dict[str, Experiment] = {
    "multi30k": _multi30k(1000),
    "multi30k-500": _multi30k(500),
    "multi30k-5000": _multi30k(5000),
    "multi30k-de": _multi30k(1000, GERMAN, (1,)),
    "multi30k-all": Experiment(
        "multi30k",
        {"all pairs": (*AS_KEPT, "data.split.train=28900", "rounds.count=0", "train.parallel_epochs=4")},
        start=Start("multi30k-base", ("data.split.train=1000",), PRETRAIN),
        baseline="all pairs",
    ),
    "ablation": Experiment(
        "multi30k",
        ABLATION,
        (*AS_KEPT, "rounds.count=2", "rounds.monolingual_lines=3000", "train.parallel_epochs=0"),
        baseline="default",
        start=Start("multi30k", (*AS_KEPT, "rounds.count=0"), PARALLEL),
    ),
    # Pairs alone, as many steps as a round trip takes: what dropout does for 1,000 pairs and six million weights.
    "dropout": Experiment(
        "multi30k",
        {f"dropout {rate}": (f"adapter.dropout={rate}",) for rate in (0.0, 0.1)},
        (*NO_ROUNDS, "evaluation.num_beams=1", "train.parallel_epochs=20"),
        baseline="dropout 0.0",
        start=Start("multi30k-base", ("data.split.train=1000",), PRETRAIN),
    ),
    "begin": Experiment(
        "multi30k",
        _BEGIN,
        (*GERMAN, "evaluation.num_beams=1", "rounds.count=2", "rounds.monolingual_lines=2000"),
        baseline="30 epochs, no rounds",
        start=Start("multi30k-base", (*GERMAN, "train.pretrain_lines=7000"), PRETRAIN),
    ),
    # Adapters that start from those of a run over the pairs, and stay close to the base or not.
    "kl": Experiment(
        "quickstart",
        {f"KL weight {weight}": (f"train.kl_weight={weight}",) for weight in (0.0, 0.1)},
        ("train.parallel_epochs=0", "rounds.monolingual_lines=600"),
        baseline="KL weight 0.0",
        start=Start("quickstart", ("rounds.count=0", "train.parallel_epochs=2"), PARALLEL),
    ),
    "software-es": Experiment("software-strings", BOTH, seeds=(1, 2, 3)),
    "software-fr": Experiment("software-strings-fr", BOTH),
    "software-de": Experiment("software-strings-de", BOTH),
    "multi30k-smollm2": Experiment("multi30k-smollm2", BOTH),
    # As many pairs as the models from scratch have, and half of the rows of each round real.
    "multi30k-smollm2-1000": Experiment(
        "multi30k-smollm2", BOTH, ("data.split.train=1000", "rounds.parallel_ratio=0.5")
    ),
}
