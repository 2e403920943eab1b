"""What each token of a vocabulary says: its bytes inside a text, and what follows from them.

Only byte-pair encodings are read here, the two kinds that language models use: byte-level (GPT-2, Llama 3, Qwen)
and SentencePiece-like (▁ for a space, bytes for what the vocabulary lacks). For any other tokenizer `read` says why
not; its rows are proved by the host instead.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roundtrip.tokens.prompt_segments import num_ids, special_ids

# Tokens that begin and end between characters together.
TokenGroup = tuple[int, ...]

_SPACE_TO_MARK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}

# Flags of a token.
SPACE = 1  # nothing but white space, as str.strip understands it
BAD = 2  # special, unused, or not to be written by the tokenizer: a row that holds it goes by strings
GLUE_LEFT = 4  # its first character begins in the token before, or may be composed with one there
GLUE_RIGHT = 8  # its last character ends in the token behind
BLANK_LEFT = 64  # begins with white space, or with bytes that may become some


@dataclass(frozen=True)
class TokenVocabulary:
    """The vocabulary as bytes.

    Attributes:
        texts: UTF-8 bytes of each id in the middle of a text, None for special and unused ids; whole characters or not.
        flags_V: uint8, the flags above.
        added: texts of the added tokens that are not special.
        growing: every proper prefix (of two characters and more) of an added token that text may grow into.
    """

    texts: tuple[bytes | None, ...]
    flags_V: NDArray[np.uint8]
    added: tuple[str, ...]
    growing: frozenset[str]

    def forbid(self, token: int) -> None:
        """Let no row with this token pass."""
        if token < len(self.flags_V):
            self.flags_V[token] |= BAD

    def text(self, ids: Iterable[int]) -> str | None:
        """Return the text of a run of tokens, None where it is not whole characters or a token says nothing."""
        pieces = [self.texts[i] for i in ids]
        if any(piece is None for piece in pieces):
            return None
        try:
            return b"".join(piece for piece in pieces if piece is not None).decode("utf-8")
        except UnicodeDecodeError:
            return None

    def groups(self, ids: Sequence[int]) -> list[TokenGroup]:
        """Cut a row into units: the shortest runs of tokens that begin and end between characters."""
        found: list[list[int]] = []
        for place, token in enumerate(ids):
            glued = place and (self.flags_V[token] & GLUE_LEFT or self.flags_V[ids[place - 1]] & GLUE_RIGHT)
            if glued:
                found[-1].append(token)
            else:
                found.append([token])
        return [tuple(group) for group in found]


def tokenizer_document(tokenizer: Any) -> dict[str, Any]:
    """Return the content of a fast tokenizer without what a call leaves behind (truncation and padding)."""
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in found.items() if key not in {"truncation", "padding"}}


def fingerprint(tokenizer: Any, *more: str) -> str:
    """Return a hash of a fast tokenizer's content and of further texts, such as a template's."""
    text = json.dumps(tokenizer_document(tokenizer), sort_keys=True)
    return hashlib.sha256("\0".join([text, *more]).encode("utf-8")).hexdigest()


def unsupported_reason(tokenizer: Any) -> str | None:
    """Return the reason why the rules of pairs do not cover a tokenizer, None where they do."""
    if not getattr(tokenizer, "is_fast", False):
        return f"{type(tokenizer).__name__} is a Python tokenizer, whose rules cannot be read"
    content = tokenizer_document(tokenizer)
    model = content["model"]
    if model["type"] != "BPE":
        return f"its model is {model['type']}, not a byte-pair encoding"
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            return f"its byte-pair encoding has a {key}"
    kinds = _kinds(content["normalizer"])
    if not _byte_level(content) and not _sentencepiece(content):
        return "it is neither byte-level nor SentencePiece-like"
    if unknown := [kind for kind in kinds if kind not in {"NFC", "Prepend", "Replace"}]:
        return f"its normalizer {unknown[0]} changes text in ways that pairs of tokens do not show"
    if any(part != _SPACE_TO_MARK for part in _parts(content["normalizer"]) if part["type"] == "Replace"):
        return "its normalizer replaces text in ways that pairs of tokens do not show"
    return None


def read_vocabulary(tokenizer: Any) -> TokenVocabulary:
    """Read the vocabulary of a tokenizer that `why_not` has nothing against."""
    content = tokenizer_document(tokenizer)
    assert unsupported_reason(tokenizer) is None
    spell = _byte_spelling if _byte_level(content) else _sentencepiece_spelling
    added = {token["id"]: token for token in content["added_tokens"]}
    specials = special_ids(tokenizer)
    size = num_ids(tokenizer)
    texts: list[bytes | None] = [None] * size
    for token, number in tokenizer.get_vocab().items():
        if number in specials:
            continue
        texts[number] = added[number]["content"].encode("utf-8") if number in added else spell(token)
    plain = tuple(token["content"] for number, token in added.items() if number not in specials)
    growing = {content[:end] for content in plain for end in range(2, len(content))}
    composing = "NFC" in _kinds(content["normalizer"])
    flags_V = np.array([_flags(text, composing) for text in texts], dtype=np.uint8)
    flags_V[_spelt_otherwise(tokenizer, texts, flags_V)] |= BAD
    return TokenVocabulary(tuple(texts), flags_V, plain, frozenset(growing))


def _kinds(part: dict[str, Any] | None) -> list[str]:
    return [one["type"] for one in _parts(part)]


def _parts(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the parts of a normalizer, pre-tokenizer or decoder, sequences unfolded."""
    if part is None:
        return []
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in part:
            return [one for inner in part[key] for one in _parts(inner)]
    return [part]


def _spelt_otherwise(tokenizer: Any, texts: Sequence[bytes | None], flags_V: NDArray[np.uint8]) -> list[int]:
    """Return the tokens of whole characters that decoding spells otherwise; decoders rewrite added tokens too."""
    backend = tokenizer.backend_tokenizer
    anchor = backend.encode("\na", add_special_tokens=False).ids[-1]
    whole = [i for i, text in enumerate(texts) if text is not None and not flags_V[i] & (GLUE_LEFT | GLUE_RIGHT)]
    front, *decoded = backend.decode_batch([[anchor], *([anchor, i] for i in whole)], skip_special_tokens=False)
    return [i for i, text in zip(whole, decoded, strict=True) if text.encode("utf-8") != front.encode() + texts[i]]


def _byte_level(content: dict[str, Any]) -> bool:
    return "ByteLevel" in _kinds(content["pre_tokenizer"]) and "ByteLevel" in _kinds(content["decoder"])


def _sentencepiece(content: dict[str, Any]) -> bool:
    marks = {"Metaspace"} & {*_kinds(content["pre_tokenizer"])} or {"Replace"} & {*_kinds(content["normalizer"])}
    return bool(marks) and bool(content["model"].get("byte_fallback"))


def _byte_spelling(token: str) -> bytes | None:
    table = _byte_of_character()
    try:
        return bytes(table[character] for character in token)
    except KeyError:
        return None


@functools.cache
def _byte_of_character() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: number for number, character in bytes_to_unicode().items()}


def _sentencepiece_spelling(token: str) -> bytes | None:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode("utf-8")


def _flags(text: bytes | None, composing: bool) -> int:
    if not text:
        return BAD
    flags = 0
    if 0x80 <= text[0] < 0xC0:
        flags |= GLUE_LEFT
    body = text.lstrip(bytes(range(0x80, 0xC0)))
    whole = body.decode("utf-8", errors="ignore").encode("utf-8")
    if body != whole:
        # A last character that is cut, or bytes that are no text at all: judged together with what follows.
        flags |= GLUE_RIGHT
    if composing and not flags & GLUE_LEFT:
        first = whole.decode("utf-8")[:1]
        if (first and first in _composing()) or (not first and body in _beginnings()):
            flags |= GLUE_LEFT
    if not flags and text.decode("utf-8").isspace():
        flags |= SPACE
    if not 0x80 <= text[0] < 0xC0 and (whole.decode("utf-8")[:1].isspace() or body in _blanks()):
        flags |= BLANK_LEFT
    return flags


@functools.cache
def _composing() -> frozenset[str]:
    """Return every character that NFC may move or join to one before it (Unicode Standard Annex 15, section 9)."""
    found = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}  # Hangul vowels and finals
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.combining(character):
            found.add(character)
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            found.add(chr(int(parts[1], 16)))
    return frozenset(found)


@functools.cache
def _beginnings() -> frozenset[bytes]:
    """Return the first bytes, one to three, of the characters that compose."""
    encoded = [character.encode("utf-8") for character in _composing()]
    return frozenset(text[:end] for text in encoded for end in range(1, len(text)))


@functools.cache
def _blanks() -> frozenset[bytes]:
    """Return the first bytes, one to three, of white space."""
    encoded = [chr(code).encode("utf-8") for code in range(0x10000) if chr(code).isspace()]
    return frozenset(text[:end] for text in encoded for end in range(1, len(text)))
