"""Are two tokenizers the same? Their content is compared, not their names or identities."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from roundtrip.tokens.prompt_segments import special_ids
from roundtrip.tokens.splice.vocabulary import tokenizer_document


@dataclass(frozen=True)
class Difference:
    """One part in which two tokenizers differ.

    Attributes:
        part: such as `vocabulary` or `merges`.
        what: the first difference, in words.
        matters: ids of ordinary text differ, so that no id of one may be shown to the other. Special tokens, the
            post-processor and the chat template do not matter: rows are framed by the reader's own.
    """

    part: str
    what: str
    matters: bool


def tokenizer_differences(a: Any, b: Any) -> list[Difference]:
    """Compare two transformers tokenizers part by part.

    Returns:
        Nothing where they are equal; else one entry for each part that differs, those that matter first.
    """
    for name, tokenizer in (("first", a), ("second", b)):
        if not getattr(tokenizer, "is_fast", False):
            what = f"the {name} is a Python tokenizer ({type(tokenizer).__name__}), whose content cannot be read"
            return [Difference("kind", what, True)]
    if a is b:
        return []
    one, other = tokenizer_document(a), tokenizer_document(b)
    found = [*_models(one["model"], other["model"])]
    for part, key in (("normalizer", "normalizer"), ("pre-tokenizer", "pre_tokenizer"), ("decoder", "decoder")):
        if one[key] != other[key]:
            found.append(Difference(part, f"{_short(one[key])} against {_short(other[key])}", True))
    found += _added(a, b, one, other)
    if one["post_processor"] != other["post_processor"]:
        what = f"{_short(one['post_processor'])} against {_short(other['post_processor'])}"
        found.append(Difference("post-processor", what, False))
    roles = [{k: str(v) for k, v in t.special_tokens_map.items()} for t in (a, b)]
    if roles[0] != roles[1]:
        key = next(k for k in sorted(roles[0].keys() | roles[1].keys()) if roles[0].get(k) != roles[1].get(k))
        what = f"{key} is {roles[0].get(key)!r} against {roles[1].get(key)!r}"
        found.append(Difference("special tokens", what, False))
    if a.chat_template != b.chat_template:
        found.append(Difference("chat template", "their texts differ", False))
    return sorted(found, key=lambda difference: not difference.matters)


def _models(one: dict[str, Any], other: dict[str, Any]) -> list[Difference]:
    if one["type"] != other["type"]:
        return [Difference("model", f"{one['type']} against {other['type']}", True)]
    found = []
    vocabularies = [_vocabulary(model["vocab"]) for model in (one, other)]
    if vocabularies[0] != vocabularies[1]:
        found.append(Difference("vocabulary", _first_token(*vocabularies), True))
    merges = [model.get("merges") or [] for model in (one, other)]
    if merges[0] != merges[1]:
        at = next((i for i, (x, y) in enumerate(zip(*merges, strict=False)) if x != y), min(map(len, merges)))
        shown = [repr(m[at]) if at < len(m) else "none" for m in merges]
        found.append(Difference("merges", f"merge {at + 1} is {shown[0]} against {shown[1]}", True))
    settings = sorted((one.keys() | other.keys()) - {"vocab", "merges", "type"})
    for key in settings:
        if (one.get(key) or None) != (other.get(key) or None):
            found.append(Difference("model", f"{key} is {one.get(key)!r} against {other.get(key)!r}", True))
    return found


def _vocabulary(vocab: Any) -> dict[str, int]:
    """Return token to id; a Unigram model has a list of tokens and scores."""
    if isinstance(vocab, dict):
        return vocab
    return {f"{token} {score}": number for number, (token, score) in enumerate(vocab)}


def _first_token(one: dict[str, int], other: dict[str, int]) -> str:
    tokens = [{number: token for token, number in vocab.items()} for vocab in (one, other)]
    at = next(i for i in range(max(max(tokens[0]), max(tokens[1])) + 1) if tokens[0].get(i) != tokens[1].get(i))
    sizes = f"{len(one):,} and {len(other):,} tokens" if len(one) != len(other) else f"{len(one):,} tokens each"
    return f"id {at} is {tokens[0].get(at)!r} against {tokens[1].get(at)!r} ({sizes})"


def _added(a: Any, b: Any, one: dict[str, Any], other: dict[str, Any]) -> list[Difference]:
    """Compare added tokens: ordinary ones matter, special ones only where they stand on each other's ids."""
    tables = [
        {token["content"]: token for token in content["added_tokens"] if token["id"] not in special_ids(tokenizer)}
        for content, tokenizer in ((one, a), (other, b))
    ]
    found = []
    if tables[0] != tables[1]:
        text = next(t for t in sorted(tables[0].keys() | tables[1].keys()) if tables[0].get(t) != tables[1].get(t))
        found.append(Difference("added tokens", f"{text!r} is not the same in both", True))
    specials = [{i: t.convert_ids_to_tokens(i) for i in special_ids(t)} for t in (a, b)]
    if specials[0] != specials[1]:
        at = next(
            i for i in sorted(specials[0].keys() | specials[1].keys()) if specials[0].get(i) != specials[1].get(i)
        )
        what = f"id {at} is {specials[0].get(at)!r} against {specials[1].get(at)!r}"
        found.append(Difference("special tokens", what, False))
    return found


def _short(part: object) -> str:
    text = json.dumps(part, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
