"""A model from scratch: a tokenizer trained on the recipe's own text, and a Llama with random weights."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from roundtrip.recipe.schema import FromScratch
from roundtrip.runtime.atomic_io import atomic_path
from roundtrip.runtime.errors import ModelError

_SPACE = "▁"
_SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")
_NUM_BYTES = 256
# SentencePiece keeps its sample in memory; this is plenty for a vocabulary.
_MAX_LINES = 1_000_000
_HEAD_SIZE = 64
# Least number of positions; rotary ones have no weights.
_MIN_POSITIONS = 512


def create_model(settings: FromScratch, lines: Iterable[str], folder: Path, seed: int, max_length: int) -> None:
    """Make a model folder that `from_pretrained` reads, for rows of `max_length` tokens, unless it exists."""
    if folder.is_dir():
        return
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(lines, settings.vocab_size)
    num_heads = max(1, settings.hidden_size // _HEAD_SIZE)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        # Two thirds of the usual four, since there are three matrices (https://arxiv.org/abs/2002.05202).
        intermediate_size=(8 * settings.hidden_size // 3 + 63) // 64 * 64,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=max(_MIN_POSITIONS, max_length),
        tie_word_embeddings=True,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def train_sentencepiece(lines: Iterable[str], size: int) -> bytes:
    """Train the vocabulary and return SentencePiece's own model; an error says that the text does not suffice."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            byte_fallback=True,
            character_coverage=0.9999,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            pad_id=len(_SPECIALS) - 1,
            num_threads=1,
            input_sentence_size=_MAX_LINES,
            shuffle_input_sentence=False,
            minloglevel=2,
        )
    except RuntimeError as error:
        message = str(error).rpartition(") ")[2].strip()
        problem = f"a tokenizer of {size} tokens cannot be trained on this text: {message}"
        too_small = "smaller than required" in message
        cure = "raise it: each character and byte is a token" if too_small else "lower it, or give more text"
        raise ModelError(problem, place="model.from_scratch.vocab_size", cure=cure) from error
    return model.getvalue()


def train_tokenizer(lines: Iterable[str], size: int) -> Any:
    """Train a lossless byte-pair encoding (https://arxiv.org/abs/1808.06226) and make it a fast tokenizer."""
    import sentencepiece
    from transformers import PreTrainedTokenizerFast

    trained = sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece(lines, size))
    vocab = {trained.id_to_piece(number): number for number in range(trained.get_piece_size())}
    # SentencePiece joins the two neighbours whose joint piece was learned first, wherever it is divided.
    merges = [
        (piece[:cut], piece[cut:])
        for piece in list(vocab)[len(_SPECIALS) + _NUM_BYTES :]
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    unknown, begin, end, pad = _SPECIALS
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIALS])
    names = {"unk_token": unknown, "bos_token": begin, "eos_token": end, "pad_token": pad}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
