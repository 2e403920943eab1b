"""Small tokenizers, trained in a few seconds, one for each property of real ones that matters here."""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.zoo_lines import LANGUAGES, lines

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 2500
# Pre-tokenization of Llama 3; Qwen's takes digits one by one.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_BYTES = [f"<0x{number:02X}>" for number in range(256)]
_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@functools.cache
def small() -> dict[str, PreTrainedTokenizerFast]:
    """Return all of them by name; take a copy (`zoo.dress`) before changing one."""
    chatml: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    sentencepiece: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    turns = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    dsml = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
    return {
        # The pad token is the end token, as on SmolLM2.
        "gpt2": _wrap(_byte_level(None, _CHATML_TOKENS), **(chatml | {"pad_token": "<|im_end|>"})),
        # No pad token, a BOS that the post-processor adds, whole words of the vocabulary before any merge.
        "llama3": _wrap(
            _framed(_byte_level((LLAMA3,), turns, ignore_merges=True), "<|begin_of_text|>"),
            bos_token="<|begin_of_text|>",
            eos_token="<|eot_id|>",
        ),
        "qwen": _wrap(_byte_level((QWEN,), _CHATML_TOKENS, normalizers.NFC()), **chatml),
        "nfkc": _wrap(_byte_level((QWEN,), _CHATML_TOKENS, normalizers.NFKC()), **chatml),
        "lowercase": _wrap(_byte_level((LLAMA3,), _CHATML_TOKENS, normalizers.Lowercase()), **chatml),
        # BOS is token 0.
        "deepseek": _wrap(
            _framed(_byte_level(DEEPSEEK, dsml), dsml[0]), bos_token=dsml[0], eos_token=dsml[1], pad_token=dsml[1]
        ),
        "unigram": _wrap(_unigram(), **sentencepiece, pad_token="<pad>"),
        "sentencepiece": _wrap(_framed(_sentencepiece(), "<s>"), **sentencepiece, pad_token="<pad>"),
        "gemma": _wrap(
            _framed(_gemma(), "<bos>"), bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
        ),
        "wordpiece": _wrap(
            _wordpiece(),
            bos_token="[CLS]",
            eos_token="[SEP]",
            pad_token="[PAD]",
            unk_token="[UNK]",
            mask_token="[MASK]",
        ),
    }


@functools.cache
def _text() -> tuple[str, ...]:
    """Return a few hundred lines in several scripts, as a template would join them: a line break in each."""
    return tuple(f"{line}\n{line}" for language in LANGUAGES for line in lines(language, 60))


def _wrap(tokenizer: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **settings)


def _framed(tokenizer: Tokenizer, bos: str, eos: str = "") -> Tokenizer:
    tokens = [token for token in (bos, eos) if token]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}".strip(), special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens]
    )
    return tokenizer


def _byte_level(
    patterns: Sequence[str] | None, specials: Sequence[str], normalizer: Any = None, *, ignore_merges: bool = False
) -> Tokenizer:
    """Train a byte-level BPE; None takes the pattern of GPT-2."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns or ()]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=patterns is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, last])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(_text(), _bpe_trainer(specials, initial_alphabet=alphabet))
    return tokenizer


def _bpe_trainer(specials: Sequence[str], **settings: Any) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[*specials], show_progress=False, min_frequency=2, **settings
    )


def _byte_fallback(specials: Sequence[str]) -> Tokenizer:
    """Train a BPE on words with ▁ for a space in which bytes are tokens, ordinary ones as in a real model."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    # Without line breaks, which no SentencePiece vocabulary holds.
    text = [line for pair in _text() for line in pair.split("\n")]
    # Rare characters are left to the bytes; the trainer alone would choose among equally rare ones by chance.
    alphabet = _letters("".join(text).replace(" ", "▁"))
    trainer = _bpe_trainer([*specials, *_BYTES], initial_alphabet=alphabet, limit_alphabet=len(alphabet))
    tokenizer.train_from_iterator(text, trainer)
    # The trainer takes bytes only as special tokens.
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] not in _BYTES]
    document["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(document))


def _sentencepiece() -> Tokenizer:
    """As Llama 2: one space is put in front of every piece between special tokens, and taken off the text."""
    tokenizer = _byte_fallback(("<unk>", "<s>", "</s>", "<pad>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _gemma() -> Tokenizer:
    """As Gemma: nothing is put in front; runs of spaces and line breaks and HTML tags are tokens, and not special."""
    tokenizer = _byte_fallback(("<pad>", "<eos>", "<bos>", "<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    plain = ["\n", "\n\n", "▁▁", "▁▁▁", "</b>", "<b>", "</a>", "<br>", "[multimodal]"]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])
    return tokenizer


def _unigram() -> Tokenizer:
    """As XLM-R or T5: a BOS and an end token around every text; rare characters and kinds of space are lost."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = _pieces(["▁" + word for line in _text() for word in line.split()], VOCABULARY)
    total = sum(pieces.values())
    vocabulary = [(token, 0.0) for token in specials]
    vocabulary += [(piece, math.log(count / total)) for piece, count in pieces.items()]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.add_special_tokens(specials)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _framed(tokenizer, "<s>", "</s>")


def _wordpiece() -> Tokenizer:
    """As cased BERT: no line break or run of spaces survives."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [word for line in _text() for word in re.findall(r"\w+|[^\w\s]", line)]
    inside = ["##" + piece for piece in _pieces([word[1:] for word in words], VOCABULARY // 2)]
    tokens = dict.fromkeys([*specials, *_pieces(words, VOCABULARY // 2), *inside])
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(specials)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _framed(tokenizer, "[CLS]", "[SEP]")


def _pieces(words: Sequence[str], number: int) -> dict[str, int]:
    """Return the letters and the pieces of words that cover most of the text, and how often each occurs.

    The trainers of Unigram and WordPiece are not used: they make another vocabulary in each process.
    """
    found = Counter(
        word[i:j] for word in words for i in range(len(word)) for j in range(i + 1, min(len(word), i + 8) + 1)
    )
    ranked = sorted(found, key=lambda piece: (-found[piece] * len(piece), piece))
    return {piece: found[piece] or 1 for piece in dict.fromkeys([*_letters("".join(words)), *ranked[:number]])}


def _letters(text: str) -> list[str]:
    """Return what is not rare in a text, and all of ASCII that is printed."""
    often = {character for character, count in Counter(text).items() if count > 4}
    return sorted(often | {chr(number) for number in range(33, 127)})
