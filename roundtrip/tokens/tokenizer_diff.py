"""Are two tokenizers the same? Their content is compared, not their names or identities."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from roundtrip.tokens.prompt_segments import special_ids
from roundtrip.tokens.splice.vocabulary import tokenizer_document


@dataclass(frozen=True)
class Difference:
    """One part in which two tokenizers differ, and the first difference in words."""

    part: str
    what: str
    # Ids of ordinary text differ, so that no id of one may be shown to the other. Special tokens, post-processor and
    # chat template do not matter: a row has those of the model that trains.
    matters: bool


def tokenizer_differences(a: Any, b: Any) -> list[Difference]:
    """Return one entry for each part in which two transformers tokenizers differ, those that matter first."""
    for name, tokenizer in (("first", a), ("second", b)):
        if not getattr(tokenizer, "is_fast", False):
            what = f"the {name} is a Python tokenizer ({type(tokenizer).__name__}), whose content cannot be read"
            return [Difference("kind", what, True)]
    if a is b:
        return []
    return [
        Difference(part, _first_difference(x, y), matters)
        for (part, x, matters), (_, y, _) in zip(_parts(a), _parts(b), strict=True)
        if x != y
    ]


def _parts(tokenizer: Any) -> Iterator[tuple[str, Any, bool]]:
    """Yield name and content of each part, and whether a difference in it matters."""
    document, specials = tokenizer_document(tokenizer), special_ids(tokenizer)
    model = document["model"]
    words = model["vocab"]
    # A Unigram model has a list of tokens and scores.
    tokens = {number: token for token, number in words.items()} if isinstance(words, dict) else dict(enumerate(words))
    settings = model.keys() - {"vocab", "merges"}
    yield "model", {key: model[key] if model[key] is False else model[key] or None for key in sorted(settings)}, True
    yield "vocabulary", {f"id {number}": token for number, token in sorted(tokens.items())}, True
    yield "merges", {f"merge {at}": merge for at, merge in enumerate(model.get("merges") or [], 1)}, True
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        yield part.replace("_", "-"), json.dumps(document[part], ensure_ascii=False), True
    added = {token["content"]: token for token in document["added_tokens"] if token["id"] not in specials}
    yield "added tokens", added, True
    yield "post-processor", json.dumps(document["post_processor"], ensure_ascii=False), False
    roles = {role: str(token) for role, token in tokenizer.special_tokens_map.items()}
    yield "special tokens", roles | {f"id {i}": tokenizer.convert_ids_to_tokens(i) for i in sorted(specials)}, False
    yield "chat template", {"its text": tokenizer.chat_template}, False


def _first_difference(a: Any, b: Any) -> str:
    if not isinstance(a, dict):
        return f"{_short(a)} against {_short(b)}"
    key = next(key for key in dict.fromkeys((*a, *b)) if a.get(key) != b.get(key))
    return f"{key} is {_short(repr(a.get(key)))} against {_short(repr(b.get(key)))} (of {len(a):,} and {len(b):,})"


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
