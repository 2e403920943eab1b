"""The text of each token of a vocabulary as bytes, and the flags that follow from it.

Two kinds of byte-pair encoding are supported: byte-level (GPT-2, Llama 3, Qwen) and SentencePiece-like (▁ for a space).
"""

import functools
import hashlib
import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roundtrip.tokens.prompt_segments import num_ids, special_ids

_SPACE_TO_MARK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}

# Flags of a token.
SPACE = 1  # nothing but white space, as str.strip understands it
BAD = 2  # special, unused, or never produced by the tokenizer: a row that holds it takes the text path
PARTIAL = 4  # holds part of a character, or begins with one that Unicode may compose with the character before it
LEADING_SPACE = 64  # begins with white space


@dataclass(frozen=True)
class TokenVocabulary:
    """The vocabulary as bytes."""

    # UTF-8 bytes of each id in the middle of a text, whole characters or not; None for special and unused ids.
    texts: tuple[bytes | None, ...]
    flags_V: NDArray[np.uint8]
    # Added tokens that are not special, and every proper prefix of at least two characters of one.
    added: tuple[str, ...]
    added_prefixes: frozenset[str]

    def text(self, ids: Iterable[int]) -> str | None:
        """Return the text of tokens, None where it is not whole characters or a token has no text."""
        with suppress(TypeError, UnicodeDecodeError):
            return b"".join(self.texts[i] for i in ids).decode("utf-8")  # type: ignore[misc]
        return None


def tokenizer_document(tokenizer: Any) -> dict[str, Any]:
    """Return the content of a fast tokenizer without the settings that a call changes (truncation, padding)."""
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in document.items() if key not in {"truncation", "padding"}}


def fingerprint(tokenizer: Any, *more: str) -> str:
    """Return a hash of a fast tokenizer's content and of further texts, such as those of a template."""
    text = json.dumps(tokenizer_document(tokenizer), sort_keys=True)
    return hashlib.sha256("\0".join([text, *more]).encode("utf-8")).hexdigest()


def unsupported_reason(tokenizer: Any) -> str | None:
    """Return why `PairRules` does not cover a tokenizer, None where it does."""
    if not getattr(tokenizer, "is_fast", False):
        return f"{type(tokenizer).__name__} is a Python tokenizer, whose content cannot be read"
    content = tokenizer_document(tokenizer)
    model, normalizers = content["model"], _parts(content["normalizer"])
    if model["type"] != "BPE":
        return f"its model is {model['type']}, not a byte-pair encoding"
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            return f"its byte-pair encoding has a {key}"
    if not _byte_level(content) and not _sentencepiece(content):
        return "it is neither byte-level nor SentencePiece-like"
    for part in normalizers:
        if part["type"] not in {"NFC", "Prepend", "Replace"}:
            return f"its normalizer {part['type']} changes text in ways that no pair of tokens shows"
        if part["type"] == "Replace" and part != _SPACE_TO_MARK:
            return "its normalizer replaces text in ways that no pair of tokens shows"
    return None


def read_vocabulary(tokenizer: Any) -> TokenVocabulary:
    """Read the vocabulary of a tokenizer; `unsupported_reason` must have returned None for it."""
    content = tokenizer_document(tokenizer)
    assert unsupported_reason(tokenizer) is None
    to_bytes = _byte_level_bytes if _byte_level(content) else _sentencepiece_bytes
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    specials = special_ids(tokenizer)
    texts: list[bytes | None] = [None] * num_ids(tokenizer)
    for token, number in tokenizer.get_vocab().items():
        if number not in specials:
            texts[number] = added[number].encode("utf-8") if number in added else to_bytes(token)
    plain = tuple(text for number, text in added.items() if number not in specials)
    prefixes = frozenset(text[:end] for text in plain for end in range(2, len(text)))
    composing = "NFC" in _kinds(content["normalizer"])
    flags_V = np.array([_flags(text, composing) for text in texts], dtype=np.uint8)
    flags_V[_decoded_otherwise(tokenizer, texts, flags_V)] |= BAD
    return TokenVocabulary(tuple(texts), flags_V, plain, prefixes)


def _parts(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the parts of a normalizer, pre-tokenizer or decoder, sequences unfolded."""
    for key in ("normalizers", "pretokenizers", "decoders"):
        if part is not None and key in part:
            return [leaf for inner in part[key] for leaf in _parts(inner)]
    return [] if part is None else [part]


def _kinds(part: dict[str, Any] | None) -> set[str]:
    return {inner["type"] for inner in _parts(part)}


def _decoded_otherwise(tokenizer: Any, texts: Sequence[bytes | None], flags_V: NDArray[np.uint8]) -> list[int]:
    """Return the tokens whose decoded text is not their own; byte-level decoders rewrite added tokens."""
    backend = tokenizer.backend_tokenizer
    anchor = backend.encode("\na", add_special_tokens=False).ids[-1]
    whole = [i for i, text in enumerate(texts) if text is not None and not flags_V[i] & PARTIAL]
    front, *decoded = backend.decode_batch([[anchor], *([anchor, i] for i in whole)], skip_special_tokens=False)
    return [i for i, text in zip(whole, decoded, strict=True) if text.encode("utf-8") != front.encode() + texts[i]]


def _byte_level(content: dict[str, Any]) -> bool:
    return "ByteLevel" in _kinds(content["pre_tokenizer"]) and "ByteLevel" in _kinds(content["decoder"])


def _sentencepiece(content: dict[str, Any]) -> bool:
    marks = "Metaspace" in _kinds(content["pre_tokenizer"]) or "Replace" in _kinds(content["normalizer"])
    return marks and bool(content["model"].get("byte_fallback"))


def _byte_level_bytes(token: str) -> bytes | None:
    with suppress(KeyError):
        return bytes(_byte_of_character()[character] for character in token)
    return None


@functools.cache
def _byte_of_character() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: number for number, character in bytes_to_unicode().items()}


def _sentencepiece_bytes(token: str) -> bytes | None:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode("utf-8")


def _flags(text: bytes | None, composing: bool) -> int:
    if not text:
        return BAD
    readable = text.decode("utf-8", errors="ignore")
    flags = LEADING_SPACE if readable[:1].isspace() else 0
    if readable.encode("utf-8") != text or (composing and readable[0] in _composing_characters()):
        return flags | PARTIAL
    return flags | SPACE if readable.isspace() else flags


@functools.cache
def _composing_characters() -> frozenset[str]:
    """Return every character that NFC may move or join to one before it (Unicode Standard Annex 15, section 9)."""
    characters = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}  # Hangul vowels and finals
    for code in range(sys.maxunicode + 1):
        if unicodedata.combining(chr(code)):
            characters.add(chr(code))
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            characters.add(chr(int(parts[1], 16)))
    return frozenset(characters)
