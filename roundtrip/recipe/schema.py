"""What the user says: one frozen, typed value that holds a whole experiment.

Every key is commented where it stands in `recipes/quickstart.toml`. Finding, reading and judging recipe
files is the business of `cookbook.py`; nothing here touches a disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
TextFormat = Literal["auto", "lines", "moses", "tsv", "csv", "jsonl", "parquet", "datasets", "po", "tmx", "xliff"]

BleuTokenizer = Literal[
    "13a", "intl", "char", "none", "zh", "ja-mecab", "ko-mecab", "spm", "flores101", "flores200", "spBLEU-1K"
]


class Section(BaseModel):
    """One table of the recipe: no unknown keys, no guessed types, no changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TextSource(Section):
    """One place that text comes from. In a recipe a bare string stands for `{ path = "..." }`.

    Attributes:
        path: a file, a glob, `pypi:NAME==VERSION/PATH#sha256=HASH` or `hf:DATASET`; two for a Moses pair.
        format: how to read it; `auto` goes by the ending.
        columns: for tsv, csv, jsonl, parquet and datasets: one name (monolingual) or two, in the order of the
            recipe's languages; integers count columns from 0; dots reach into nested records.
        header: the first line of a tsv or csv names the columns (implied where `columns` are names).
        subset: configuration of a `datasets` id.
        split: split of a `datasets` id.
        limit: read at most so many lines or pairs of it.
    """

    path: str | tuple[str, str]
    format: TextFormat = "auto"
    columns: tuple[str | int, ...] | None = None
    header: bool = False
    subset: str | None = None
    split: str = "train"
    limit: Positive | None = None


def _as_source(value: object) -> object:
    if isinstance(value, dict):
        # Behind a validator of ours pydantic no longer knows that the value came from a file of arrays.
        return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    return {"path": value} if isinstance(value, str) else value


def _as_sources(value: object) -> object:
    return (value,) if isinstance(value, str | dict) else tuple(value) if isinstance(value, list) else value


Sources = Annotated[
    tuple[Annotated[TextSource, BeforeValidator(_as_source)], ...],
    BeforeValidator(_as_sources),
]


class FromScratch(Section):
    """A Llama with random weights and a tokenizer trained on the recipe's own text, where there is no base.

    With `model.shared` both directions begin with the same weights, and plain text is learnt once for both.
    """

    vocab_size: Annotated[int, Field(ge=300)] = 8000
    num_layers: Positive = 6
    hidden_size: Positive = 384
    num_heads: Positive = 6
    max_positions: Positive = 512


class Model(Section):
    """The base of one direction. `auto` stands for what is fastest on the machine: see `models/base.py`."""

    path: str | None = None
    revision: str | None = None
    from_scratch: FromScratch | None = None
    shared: bool = True
    merged_copy: bool = True
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Literal["none", "8bit", "4bit"] = "none"
    device: str = "auto"
    attention: Literal["auto", "varlen", "eager", "sdpa", "flash_attention_2"] = "auto"
    use_liger_kernel: bool = False
    gradient_checkpointing: bool = False

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return "a model from scratch" if self.from_scratch else str(self.path).partition("#")[0]


class TemplateRecipe(Section):
    """How a source and a target become one text."""

    kind: Literal["plain", "chat"] = "chat"
    synthetic_tag: str = ""
    text: str = "{source_language}: {source}\n{target_language}: {target}"
    instruction: str = "Translate from {source_language} to {target_language}.\n{source}"
    system: str | None = None


class Split(Section):
    """One parallel corpus cut into disjoint parts, for experiments; what is left becomes monolingual.

    Attributes:
        dev, test: 0 where `data.dev` or `data.test` names a file.
        seed: of the cut; the recipe's where None. Seeds are compared on one cut.
    """

    corpus: Sources
    train: Count
    dev: Count
    test: Count
    seed: Count | None = None


class LineFilter(Section):
    """Which lines of the text are used at all; sizes in words (split at white space) and characters."""

    min_words: Count = 1
    max_words: Positive | None = None
    max_chars: Positive = 2000
    max_length_ratio: Annotated[float, Field(ge=1.0)] = 4.0


class Data(Section):
    """Where the text comes from: either `cut`, or `train`, `dev`, `test` and `mono`; dev and test go with both."""

    split: Split | None = None
    train: Sources = ()
    dev: Sources = ()
    test: Sources = ()
    mono: dict[str, Sources] = Field(default_factory=dict)
    filter: LineFilter = LineFilter()


class Adapter(Section):
    """How one direction's weights learn: through an adapter, or all of them (`full`)."""

    method: Literal["lora", "rslora", "dora", "rsdora", "pissa", "olora", "full"] = "lora"
    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    layers: tuple[Count, ...] | None = None
    init: str | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    loraplus_lr_ratio: Annotated[float, Field(ge=1.0)] = 1.0
    ephemeral_gpu_offload: bool = False
    dtype: Literal["base", "float32"] = "base"


class Train(Section):
    """How each direction learns; every direction has its own optimizer and schedule."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    lr_warmup_steps: Count = 10
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Positive = 16
    max_tokens_per_microbatch: Positive = 2048
    packing: Literal["auto", "always", "never"] = "auto"
    max_length: Positive = 512
    pretrain_lines: Count = 0
    parallel_epochs: Count = 3
    final_epochs: Count = 0
    patience: Count = 0
    synthetic_weight: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    kl_weight: Annotated[float, Field(ge=0.0)] = 0.0
    max_nonfinite_steps: Count = 10


class Rounds(Section):
    """The round trip itself."""

    count: Count = 2
    monolingual_lines: Positive = 1000
    parallel_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.4
    replay_examples: Count = 0
    denoising_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    patience: Count = 0
    require_better_than_copy: bool = True


class Override(Section):
    """What is other in `[generate]` from a round on, for both directions or one; None stays as it is."""

    round: Positive = 1
    direction: str | None = None
    num_candidates: Positive | None = None
    candidate_selection: Literal["reverse_likelihood", "likelihood", "all"] | None = None
    temperature: Annotated[float, Field(ge=0.0)] | Literal["auto"] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: Count | None = None
    min_p: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None


class Generate(Section):
    """How synthetic sources are written.

    Temperature 0 is greedy search. `auto` is greedy while the dev chrF++ of the generating direction is below
    `sampling_min_chrf`, then samples at `sampling_temperature`; see `sampling_schedule.py`.
    """

    engine: Literal["native", "transformers", "continuous"] = "native"
    cuda_graphs: bool = False
    num_candidates: Positive = 1
    candidate_selection: Literal["reverse_likelihood", "likelihood", "all"] = "reverse_likelihood"
    temperature: Annotated[float, Field(ge=0.0)] | Literal["auto"] = "auto"
    sampling_min_chrf: Annotated[float, Field(ge=0.0, le=100.0)] = 40.0
    sampling_temperature: Annotated[float, Field(gt=0.0)] = 0.7
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Count = 0
    min_p: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=1.0)] = 1.0
    max_length_ratio: Annotated[float, Field(gt=0)] = 1.5
    max_length_offset: Count = 10
    max_tokens_per_batch: Positive = 8192
    overrides: tuple[Override, ...] = ()

    @property
    def heat(self) -> float:
        """The temperature; what nobody has told to be warm is greedy."""
        return 0.0 if self.temperature == "auto" else self.temperature


class Tokens(Section):
    """How generated ids become training rows."""

    mode: Literal["auto", "splice", "text"] = "auto"
    audit: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01


class CandidateFilter(Section):
    """Which synthetic sources are thrown away; each rejection is counted by its reason."""

    max_length_ratio: Annotated[float, Field(ge=1.0)] = 1.5
    max_copy_chrf: Annotated[float, Field(gt=0, le=100.0)] = 80.0
    max_repeats: Annotated[int, Field(ge=2)] = 4
    language: bool = False
    min_round_trip_chrf: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0


class Evaluation(Section):
    """How translations are scored; sacreBLEU tokenizers by target language, `13a` where none is named."""

    bleu_tokenize: dict[str, BleuTokenizer] = Field(default_factory=dict)
    round_trip_lines: Positive = 200
    bootstrap_samples: Positive = 1000


class Checkpoint(Section):
    """What is kept for `--resume`, and what to do where there is no room for it."""

    every_steps: Positive = 50
    keep: Positive = 2
    full_disk: Literal["end", "wait"] = "end"


class Recipe(Section):
    """The whole experiment.

    Attributes:
        languages: two codes (BCP 47); `("en", "es")` gives the directions `en-es` and `es-en`.
        model, adapter: by direction; a file says what both have in common, and may add a table for one of them.
    """

    languages: tuple[str, str]
    seed: Count = 1
    model: dict[str, Model]
    template: TemplateRecipe = TemplateRecipe()
    data: Data
    adapter: dict[str, Adapter]
    train: Train = Train()
    rounds: Rounds = Rounds()
    generate: Generate = Generate()
    tokens: Tokens = Tokens()
    filter: CandidateFilter = CandidateFilter()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()

    @property
    def needs_mono(self) -> bool:
        """Whether monolingual text is read."""
        merged_copy = any(model.from_scratch is not None for model in self.model.values())
        given = self.data.split is not None or all(self.data.mono.get(code) for code in self.languages)
        return bool(self.rounds.count or self.train.pretrain_lines) or (merged_copy and given)

    @property
    def blind(self) -> bool:
        """Whether there are no parallel dev pairs: stages are chosen by how monolingual lines come back."""
        return self.data.split is None and not self.data.dev

    @property
    def one_start(self) -> bool:
        """Whether both directions are models of their own that begin with the same weights, made from nothing."""
        first, second = (model.model_copy(update={"path": None}) for model in self.model.values())
        return first.from_scratch is not None and first.shared and first == second

    @property
    def one_base(self) -> bool:
        """Whether both directions learn through adapters on one frozen base; else each has a model of its own."""
        first, second = self.model.values()
        return first == second and first.shared and all(one.method != "full" for one in self.adapter.values())

    def sources(self) -> Iterator[tuple[str, TextSource, int]]:
        """Yield every text source with its key and how many languages it holds (1 or 2)."""
        data = self.data
        tables = {"data.train": data.train, "data.dev": data.dev, "data.test": data.test}
        if data.split is not None:
            tables["data.split.corpus"] = data.split.corpus
        for key, sources in tables.items():
            yield from ((key, source, 2) for source in sources)
        for language, sources in data.mono.items():
            yield from ((f"data.mono.{language}", source, 1) for source in sources)
