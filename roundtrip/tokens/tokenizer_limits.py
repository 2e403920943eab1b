"""Loading a tokenizer of a stranger: one that takes too long, fills the memory, or expands text is refused."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from roundtrip.runtime.downloads import cache_dir
from roundtrip.runtime.errors import ModelError
from roundtrip.runtime.integrity import file_hash
from roundtrip.runtime.limits import LimitedCallError, call_limited

# For loading and all probes; the tokenizer of Gemma 3, with 262,144 tokens, loads in about one second.
TRIAL_SECONDS = 9.0
MAX_STEPS = 1000  # of its normalizer, pre-tokenizer, post-processor or decoder
MAX_GROWTH = 1000  # of a text in characters, by all steps together
MAX_STEP_CHARS = 20_000  # of a pattern, or other text of a step
MAX_FIXED_TOKENS = 1000  # around each text
# A character is four bytes at most, and some normalizers replace one by eighteen.
MAX_TOKENS_PER_CHAR = 100
_CURE = "no published tokenizer does this; take the files of the model from its author"
# Lookaround, anchors, and what may repeat not at all; most expressions of normalizers have none.
_MAY_BE_EMPTY = re.compile(r"\(\?|\\[bBAzZGKmMyY]|[\^$*?|]|\{0?,")
_PIECES = (
    *("a", "A", "1", "!", "'s", "ab", "a b", "<|", " ", "\n", "\t ", "\u200b"),
    *("é", "e\u0301", "漢字", "\U0001f600"),
)
_PROBES = tuple(piece * (256 // len(piece)) + end for piece in _PIECES for end in ("", "\ue000"))


def load_within_limits(folder: Path, config: Any, place: str) -> Any:
    """Load the tokenizer of a folder, with the configuration of its model.

    Args:
        place: where the files in the folder are from, for errors.

    Raises:
        ModelError: it exceeds a limit.
        Exception: whatever transformers raises for damaged files.
    """
    from transformers import AutoTokenizer

    def load() -> Any:
        return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)

    _try(load, folder, place)
    return load()


def _try(load: Callable[[], Any], folder: Path, place: str) -> None:
    """Load and use a tokenizer in a limited call; files that have passed are known by their hash in the cache."""
    versions = [metadata.version(name) for name in ("tokenizers", "transformers")]
    digest = hashlib.sha256(" ".join(versions).encode())
    for path in sorted(path for path in folder.rglob("*") if path.suffix != ".safetensors" and path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + bytes.fromhex(file_hash(path)))
    passed = cache_dir() / "tokenizers" / digest.hexdigest()[:32]
    if passed.exists():
        return

    def problem_within_limits() -> str | None:
        try:
            return problem_of(load())
        except MemoryError:
            raise
        except Exception:
            return None  # left to who loads it

    try:
        problem = call_limited(problem_within_limits, TRIAL_SECONDS)
    except LimitedCallError as error:
        problem = str(error)
    if problem is not None:
        raise ModelError(f"the tokenizer cannot be used: {problem}", place=place, cure=_CURE)
    # Without a cache that can be written, the next process tries it again.
    with suppress(OSError):
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()


def problem_of(tokenizer: Any) -> str | None:
    """Return in what a tokenizer exceeds the limits; call it in a limited call, since it encodes probes.

    A pattern of a tokenizer that goes back too often raises an error by itself.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        component = getattr(backend, part, None)
        if component is not None and (problem := _problem_of_steps(json.loads(component.__getstate__()))):
            return f"its {part} {problem}"
    if len(tokenizer("")["input_ids"]) > MAX_FIXED_TOKENS:
        return f"more than {MAX_FIXED_TOKENS:,} tokens for an empty text"
    if any(len(tokenizer(probe)["input_ids"]) > MAX_TOKENS_PER_CHAR * len(probe) for probe in _PROBES):
        return f"more than {MAX_TOKENS_PER_CHAR} tokens for a character"
    return None


def _problem_of_steps(document: Any) -> str | None:
    growth = 1
    for number, step in enumerate(_steps(document)):
        growth *= _growth(step)
        if number > MAX_STEPS:
            return f"has more than {MAX_STEPS:,} steps"
        if growth > MAX_GROWTH:
            return f"may expand a text more than {MAX_GROWTH:,} times"
        if any(len(text) > MAX_STEP_CHARS for text in _texts(step)):
            return f"has a pattern or text of more than {MAX_STEP_CHARS:,} characters"
    return None


def _steps(document: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects in a component; the tokenizers library loads none that is nested more than 128 deep."""
    if isinstance(document, dict):
        yield document
    for value in document.values() if isinstance(document, dict) else document if isinstance(document, list) else ():
        yield from _steps(value)


def _texts(step: dict[str, Any]) -> Iterator[str]:
    return (value for key, value in step.items() if isinstance(value, str) and key != "precompiled_charsmap")


def _growth(step: dict[str, Any]) -> int:
    """Return how many times longer a step can make a text."""
    match step.get("type"):
        case "Replace":
            pattern, content = step["pattern"], str(step["content"])
            if text := pattern.get("String"):
                return max(1, -(-len(content) // len(text)))
            # An expression that matches an empty text does so between all characters, which stay.
            expression = pattern.get("Regex") or ""
            return max(1, len(content) + (not expression or bool(_MAY_BE_EMPTY.search(expression))))
        case "Prepend":
            return 1 + len(str(step["prepend"]))
        case "Precompiled":
            table = base64.b64decode(step["precompiled_charsmap"] or "")
            # The length of a tree, the tree, and the replacements of characters in UTF-8, each ended by a zero byte.
            return max(len(text) for text in table[4 + int.from_bytes(table[:4], "little") :].split(b"\0"))
    return 1
