"""Hostile parquet and GGUF files by seed: each is read whole, or refused, in limited time and memory."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from roundtrip.data.parquet_files import read_parquet
from roundtrip.models import gguf
from tests.tools.attack_limits import attack

COLUMNS = (None, ("en", "es"), ("translation.en", "translation.es"), ("a.b.c", "es"), (0, 1), ("", "\0"))
# Of a number in a header that is overwritten: 32 and 64 bits, and the number of bytes that says the most.
NUMBERS = (0, 1, 7, 1 << 16, 10**8, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 10**12, (1 << 63) - 1, (1 << 64) - 1)


def _changed(content: bytes, start: int, end: int, chance: random.Random) -> tuple[str, bytes]:
    """Change bytes of a file between two positions, or cut it; return also what was done."""
    changed, at = bytearray(content), chance.randrange(start, max(start + 1, end))
    kind = chance.choice(("flip", "flip", "flips", "number", "number", "cut", "insert", "repeat"))
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else 8):
            changed[chance.randrange(start, max(start + 1, end))] ^= 1 << chance.randrange(8)
    elif kind == "number":
        size = chance.choice((1, 4, 8))
        changed[at : at + size] = (chance.choice(NUMBERS) % (1 << 8 * size)).to_bytes(size, "little")
    elif kind == "cut":
        del changed[at:]
    elif kind == "insert":
        changed[at:at] = chance.choice((chance.randbytes(5), b"\xff" * 9 + b"\x01", b"\x7f" * 4))
    else:
        changed[at:at] = changed[at : at + 1000]
    return f"{kind} at {at} of {len(content)}", bytes(changed)


def _nested(depth: int, chance: random.Random) -> tuple[Any, Any]:
    """Return a type of some depth, and a value of it."""
    kind, value = pyarrow.string(), "text"
    for _ in range(depth):
        wrap = chance.choice(("list", "struct", "map"))
        if wrap == "list":
            kind, value = pyarrow.list_(kind), [value, value][: chance.randint(0, 2)]
        elif wrap == "struct":
            name = chance.choice(("en", "b", "", "list", "a.b"))
            kind, value = pyarrow.struct([(name, kind)]), {name: value}
        else:
            kind, value = pyarrow.map_(pyarrow.string(), kind), [("k", value)]
    return kind, value


def _table(chance: random.Random) -> tuple[str, Any]:
    """Return a table that a stranger might write, and its name."""
    rows, text = chance.choice((0, 1, 3, 2000)), "a" * chance.choice((1, 1, 1, 1000, 1 << 20, 9 << 20))
    repeated = ["x"] * rows
    plain = {"en": repeated, "es": repeated}
    if not rows:
        return "no rows", pyarrow.table({name: pyarrow.array([], pyarrow.string()) for name in plain})
    one_text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), [text])
    few = one_text.slice(0, max(1, (64 << 20) // len(text)))  # which is written as if it were none
    depth = chance.choice((1, 2, 3, 10, 60))
    kind, value = _nested(depth, chance)
    pair = {"en": "a", "es": "b"}
    texts: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain,
        "a dictionary": lambda: dict.fromkeys(plain, one_text),
        "long texts": lambda: dict.fromkeys(plain, [text] * min(rows, 3)),
        "records": lambda: {"translation": [pair] * rows},
        "a dictionary in records": lambda: {"translation": pyarrow.StructArray.from_arrays([few, few], list(plain))},
        "records of long texts": lambda: {"translation": [{"en": text, "es": "b"}] * min(rows, 3)},
        f"{depth} levels": lambda: {"a": pyarrow.array([value] * rows, kind), "es": repeated},
        "lists": lambda: {"list": [["a", None]] * rows, "es": repeated},
        "other types": lambda: {"en": [chance.choice((1, 1.5, b"\xff", None, True))] * rows, "es": repeated},
        "bytes that are no text": lambda: {"en": pyarrow.array([b"\xff\0"] * rows), "es": repeated},
        "large strings": lambda: dict.fromkeys(plain, pyarrow.array(repeated, pyarrow.large_string())),
        "many columns": lambda: {str(number): [""] for number in range(chance.choice((100, 2001, 5000)))},
        "odd names": lambda: {name: repeated for name in ("", "\0", "a.b", "x" * 100_000, "en", "es")},
    }
    name = chance.choice(list(texts))
    return name, pyarrow.table(texts[name]())


def hostile_parquet(path: Path, seed: int, number: int) -> Iterator[str]:
    """Write hostile parquet files to a path, one after the other, and yield their names."""
    chance = random.Random(seed)
    for _ in range(number):
        name, table = _table(chance)
        if chance.random() < 0.3:
            size = chance.choice((10, 10**5, 3 * 10**6))
            key = chance.choice((b"ARROW:schema", b"pandas", b"x"))
            table = table.replace_schema_metadata({key: b"/" * size})
        settings: dict[str, Any] = {
            "compression": chance.choice(("none", "snappy", "gzip", "zstd")),
            "use_dictionary": chance.random() < 0.7 or name == "a dictionary",
            "dictionary_pagesize_limit": 1 << 28,
            "data_page_version": chance.choice(("1.0", "2.0")),
            "row_group_size": 1 if table.num_rows < 4 else 1000,
            "store_schema": chance.random() < 0.7,
            "write_page_index": chance.random() < 0.3,
        }
        pyarrow.parquet.write_table(table, path, **settings)
        if chance.random() < 0.5:
            content = path.read_bytes()
            footer = max(4, len(content) - 8 - int.from_bytes(content[-8:-4], "little"))
            start, end = chance.choice(((4, footer), (footer, len(content) - 8), (len(content) - 8, len(content))))
            what, changed = _changed(content, start, end, chance)
            path.write_bytes(changed)
            name = f"{name}, {what}"
        yield name


def hostile_gguf(base: Path, path: Path, seed: int, number: int) -> Iterator[str]:
    """Write changed copies of a small GGUF file to a path, one after the other, and yield their names."""
    content, chance = base.read_bytes(), random.Random(seed)
    # The keys, with the tokens, and the table of the tensors behind them come before the weights.
    keys = content.index(b"token_embd.weight")
    named = [b"general.architecture", b"tokenizer.ggml.model", b"tokenizer.ggml.tokens", b"tokenizer.ggml.merges"]
    named += [b"llama.block_count", b"llama.vocab_size", b"llama.rope.freq_base", b"tokenizer.chat_template"]
    for _ in range(number):
        if chance.random() < 0.4:  # the type, the count or the first values of a key
            key = chance.choice(named)
            start = content.index(key) + len(key)
            where, span = key.decode(), (start, start + 24)
        else:
            where = chance.choice(("header", "keys", "tensors", "all"))
            span = {"header": (0, 24), "keys": (24, keys), "tensors": (keys, keys + 2000)}.get(where, (0, len(content)))
        what, changed = _changed(content, *span, chance)
        path.write_bytes(changed)
        yield f"{where}: {what}"


def attack_parquet(seed: int, number: int, work: Path) -> dict[str, Any]:
    """Read hostile parquet files, and return counts by outcome; see `attack_limits.attack`."""
    chance, path = random.Random(seed), work / "a.parquet"

    def use(columns: Any) -> None:
        for row in read_parquet(path, ("en", "es"), columns):
            assert all(isinstance(text, str) for text in row)

    def inputs() -> Iterator[tuple[str, Callable[[], object]]]:
        for name in hostile_parquet(path, seed, number):
            columns = chance.choice((None, None, None, *COLUMNS))
            yield f"{name}, columns {columns}", partial(use, columns)

    return attack(inputs())


def attack_gguf(seed: int, number: int, work: Path) -> dict[str, Any]:
    """Convert hostile GGUF files, and return counts by outcome; see `attack_limits.attack`."""
    from transformers.utils import logging

    from tests.models.test_gguf import tiny_llama, write_gguf

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    base, path = write_gguf(work / "base.gguf", tiny_llama()), work / "a.gguf"
    gguf.convert(base, work / "cache")  # so that libraries are loaded

    def use() -> None:
        shutil.rmtree(work / "cache", ignore_errors=True)
        gguf.convert(path, work / "cache")

    def inputs() -> Iterator[tuple[str, Callable[[], object]]]:
        for name in hostile_gguf(base, path, seed, number):
            yield name, use

    return attack(inputs())
