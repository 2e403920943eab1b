"""Models of real shapes with random weights, made on the device, and a tokenizer trained on generated text.

No file and no network is needed. `1.5b` and `3b` are Qwen2.5-1.5B and Qwen2.5-3B; `tiny` tries everything on a CPU.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from roundtrip.models.base_model import choose_dtype
from roundtrip.tokens.batching import TokenDataset
from roundtrip.tokens.prompt_template import TokenRow

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
ONSETS = ("b", "br", "c", "ch", "d", "f", "g", "gr", "l", "m", "n", "p", "pl", "r", "s", "st", "t", "tr", "v", "z")
VOWELS = ("a", "e", "i", "o", "u", "á", "é", "ia", "ue", "ou")
CODAS = ("", "", "", "n", "r", "s", "l", "nt")


@dataclass(frozen=True)
class Sizes:
    """What is measured on a shape.

    Attributes:
        row_lengths: mean tokens of a training row; a row has half of it at least and one and a half at most.
        tokens, tokens_per_forward: of a training pass, and of each forward pass in it.
        batches, prompt, new: rows, prompt tokens and new tokens of generation.
        row_batches: rows that are made at a time.
        round_lines: rows of a round.
        vocab_size, num_lines: of the tokenizer, and of its text.
        compiled_layers: of the model that torch.compile is tried on.
    """

    row_lengths: tuple[int, ...] = (64, 256)
    tokens: int = 32_768
    tokens_per_forward: int = 16_384
    batches: tuple[int, ...] = (8, 64, 512)
    prompt: int = 64
    new: int = 32
    row_batches: tuple[int, ...] = (32, 128, 512, 1024, 4096)
    round_lines: int = 1024
    vocab_size: int = 16_000
    num_lines: int = 8192
    compiled_layers: int = 4


SMALL_SIZES = Sizes((8, 16), 128, 64, (2, 4), 6, 4, (2, 4), 8, 400, 200, 1)


@dataclass(frozen=True)
class Shape:
    """Of a model as Qwen2: weights of the output layer are those of the embedding."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_key_value_heads: int
    vocab_size: int
    sizes: Sizes = Sizes()

    @property
    def head_weights(self) -> int:
        """Weights of the output layer."""
        return self.vocab_size * self.hidden_size

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values of one token, two for each number."""
        return 4 * self.num_layers * self.num_key_value_heads * (self.hidden_size // self.num_heads)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 2, 32, 64, 4, 2, 600, SMALL_SIZES),
        Shape("1.5b", 28, 1536, 8960, 12, 2, 151_936),
        Shape("3b", 36, 2048, 11_008, 16, 2, 151_936),
    )
}


def dtype_of(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device multiplies it, else float32."""
    return choose_dtype("auto", device)


def build_model(shape: Shape, device: torch.device, **changes: Any) -> Any:
    """Return a causal LM with random weights on the device, where nothing requires a gradient.

    Args:
        changes: of its configuration.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config

    settings = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            Qwen2Config(**(settings | changes)), dtype=dtype_of(device), attn_implementation="sdpa"
        )
    model.generation_config = GenerationConfig()
    return model.requires_grad_(False).eval()


def num_weights(model: Any) -> int:
    """Return the number of weights without adapters; an embedding that is the output layer too counts once."""
    return sum(value.numel() for name, value in model.named_parameters() if ".lora_" not in name)


def random_rows(shape: Shape, length: int, device: torch.device) -> TokenDataset:
    """Return training rows of random tokens, of `sizes.tokens` in all, half of each row labels."""
    chance = random.Random(1)
    rows: list[TokenRow] = []
    left = shape.sizes.tokens
    while left > 0:
        size = chance.randint(length // 2, length + length // 2)
        rows.append(TokenRow([chance.randrange(5, shape.vocab_size) for _ in range(size)], size // 2))
        left -= size
    return TokenDataset.of(rows, device)


def random_prompts(shape: Shape, number: int) -> list[list[int]]:
    """Return prompts of random tokens."""
    chance = random.Random(2)
    return [[chance.randrange(5, shape.vocab_size) for _ in range(shape.sizes.prompt)] for _ in range(number)]


# Text.


@cache
def words(seed: int, number: int) -> tuple[str, ...]:
    """Return invented words, the shorter ones first, as the more frequent ones are."""
    chance = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < number:
        syllables = 1 + len(found) * 4 // number + chance.randrange(2)
        parts = (chance.choice(ONSETS) + chance.choice(VOWELS) + chance.choice(CODAS) for _ in range(syllables))
        found["".join(parts)] = None
    return tuple(found)


@cache
def pairs(number: int, num_words: int = 4000, shortest: int = 6, longest: int = 30) -> tuple[tuple[str, str], ...]:
    """Return different pairs of sentences, word by word each other's translation.

    Args:
        num_words: of the vocabulary.
        shortest, longest: words of a sentence.
    """
    chance = random.Random(3)
    sources, targets = words(1, num_words), words(2, num_words)
    made: dict[tuple[str, str], None] = {}
    while len(made) < number:
        # Frequent words are a few, as in real text.
        chosen = [int(num_words ** chance.random()) - 1 for _ in range(chance.randint(shortest, longest))]
        end = chance.choice((".", ".", ".", "?", "!"))
        source, target = (" ".join(side[i] for i in chosen).capitalize() + end for side in (sources, targets))
        made[source, target] = None
    return tuple(made)


def train_tokenizer(lines: Sequence[tuple[str, str]], vocab_size: int) -> Any:
    """Train a byte-level BPE with a chat template on both sides of pairs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((text for pair in lines for text in pair), trainer)
    _, _, end, pad = SPECIALS
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, pad_token=pad, chat_template=CHATML)


def lines_of(shape: Shape) -> Sequence[tuple[str, str]]:
    """Return the pairs of a shape's text."""
    return pairs(shape.sizes.num_lines)


@cache
def tokenizer_of(shape: Shape) -> Any:
    """Return the tokenizer of a shape's text."""
    return train_tokenizer(lines_of(shape), shape.sizes.vocab_size)
