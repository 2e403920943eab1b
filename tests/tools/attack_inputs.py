"""Hostile chat templates, tokenizers and recipes by seed: each is accepted or refused in limited time and memory."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from roundtrip.models import base_model
from roundtrip.recipe import loader
from roundtrip.recipe.schema import Model, TemplateRecipe
from roundtrip.tokens.prompt_segments import build_segments
from tests.tools.attack_limits import attack

# Expressions and statements that take long, grow, or nest; `{n}` and `{s}` are a number and a string.
_SIZES = (10, 10**4, 10**7, 4 * 10**9, 10**18)
_EXPRESSIONS = (
    "'{s}'*{n}",
    "('{s}'*{n})|upper|length",
    "'%{n}d'|format(1)",
    "'{{:>{n}}}'.format(1)",
    "'{s}'.center({n})",
    "range({n})|list|length",
    "9**9**9**9",
    "2**{n}",
    "('a'*99999)|wordwrap(1)",
    "[[]]*{n}",
    "('a,'*{n}).split(',')|length",
    "('{s}'*9999).replace('', '{s}'*9999)",
    "messages|tojson(indent={n})",
    "'a'|indent({n})",
    "range(99999)|batch({n})|list|length",
    "'x'.join(range(99999)|map('string'))*9999",
    "messages[0]['content']*{n}",
    "(range(99999)|list|string)*{n}",
    "lipsum(n={n})",
    "raise_exception('{s}'*10000000)",
    "strftime_now('%Y'*1000000)",
    "cycler(*range(99999)).next()",
    "'\\ud800'",
    "dict.fromkeys(range(99999)|list)|string|length",
    "messages[0].__class__.__mro__",
    "{n}|string|int",
    "10**{n}",
    "messages[0]['content']|urlize",
    "('<'*{n})|striptags",
    "('a'*{n})|e|length",
)
_STATEMENTS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=3) %}{% for i in range(64) %}{% set ns.x = ns.x ** ns.x %}{% endfor %}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% for m in messages %}{{ 'text' }}{% endfor %}{% generation %}{% endgeneration %}",
    "{% set x = namespace() %}{% set x.x = x %}{{ x }}",
    "{% set a = [] %}{% for i in range(9999) %}{% set a = [a, a] %}{% endfor %}{{ a }}",
    "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "{% include 'x' %}{% import 'y' as z %}",
    "{% while true %}{% endwhile %}",
)


def _nested(depth: int, generator: random.Random) -> str:
    """Return a template that is nested, or one long chain."""
    kind = generator.randrange(6)
    if kind == 0:
        return "{% if 1 %}" * depth + "x" + "{% endif %}" * depth
    if kind == 1:
        return "{{ " + "(" * depth + "1" + ")" * depth + " }}"
    if kind == 2:
        return "{{ " + "-" * depth + "1 }}"
    if kind == 3:
        return "{{ 'a'" + "|upper" * depth + " }}"
    if kind == 4:
        return "{{ " + " + ".join(["1"] * depth) + " }}"
    return "{{ " + "[" * depth + "]" * depth + " }}"


def hostile_chat_templates(seed: int, number: int) -> Iterator[tuple[str, str]]:
    """Yield chat templates, each with what it does, that must be accepted or refused in limited time and memory."""
    generator = random.Random(f"chat templates {seed}")
    for _ in range(number):
        size, text = generator.choice(_SIZES), generator.choice(("a", "ab ", "\U0001f600", "{{ x }}"))
        kind = generator.randrange(5)
        expression = generator.choice(_EXPRESSIONS).replace("{n}", str(size)).replace("{s}", text)
        if kind == 0:
            yield f"expression {expression}", "{{ " + expression + " }}"
        elif kind == 1:
            yield f"variable {expression}", "{% set x = " + expression + " %}{{ messages[0]['content'] }}"
        elif kind == 2:
            statement = generator.choice(_STATEMENTS)
            yield f"statement {statement}", statement + "{{ messages[0]['content'] }}"
        elif kind == 3:
            depth = generator.choice((50, 1000, 30_000, 1_000_000))
            template = _nested(depth, generator)
            yield f"nested {depth} {template[:20]}", template
        else:
            piece = generator.choice(("{{", "{%", "{#", "{{ x }}", "{% if x %}", "'", "\x00", "x", "{{ messages }}"))
            yield f"repeated {piece!r}", piece * generator.choice((1, 1000, 1_000_000))


_PATTERNS = (
    *(r"(a+)+$", r"(a|a)*$", r"(x+x+)+y", r"(.*)*z", r"(?:a?){40}a{40}", r"((a{1,1000}){1,1000}){1,1000}", r"(\s*)*$"),
    *(r"(?:[^!]+)+!", r"(\p{L}+\s?)+$", r"(?=(a+))a*b\1", r"\g<0>a", "(" * 9000 + ")" * 9000, "a|" * 100_000, "[", ""),
    *(
        r"(?<=a{1,1000})b",
        r"(?i)(" + "ss|" * 5000 + "x)+$",
        r"\p{L}+| ?\p{N}+|\s+(?!\S)|\s+",
        "\x00",
        r"(?:a|ab|abc)*$",
    ),
)


def _normalizer(generator: random.Random) -> dict[str, Any]:
    """Return a normalizer that may expand a text."""
    text = generator.choice((" ", "a", "e", "", "ab"))
    content = generator.choice(("", "a", " a ", "aa" * generator.choice((1, 100, 10**6))))
    pattern = {"Regex": generator.choice(_PATTERNS)} if generator.randrange(3) == 0 else {"String": text}
    return generator.choice(
        [{"type": "Replace", "pattern": pattern, "content": content}] * 3
        + [{"type": "Prepend", "prepend": content}, {"type": "NFKD"}, {"type": "Lowercase"}]
        + [{"type": "Precompiled", "precompiled_charsmap": generator.choice(("", "AAAA", "/////w==", "A" * 4096))}]
    )


def _change_tokenizer(document: dict[str, Any], generator: random.Random) -> str:
    """Change a tokenizer.json to a hostile one, and return how."""
    kind = generator.choice(
        ("normalizer", "pattern", "nested", "added", "long token", "post", "padding", "model", "type")
    )
    size = generator.choice((3, 200, 20_000))
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    steps = [_normalizer(generator) for _ in range(generator.choice((1, 3, 30)))]
    split = {
        "type": "Split",
        "pattern": {"Regex": generator.choice(_PATTERNS)},
        "behavior": "Isolated",
        "invert": False,
    }
    if kind == "normalizer":
        document["normalizer"] = {"type": "Sequence", "normalizers": steps}
    elif kind == "pattern":
        document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, document["pre_tokenizer"]]}
    elif kind == "nested":
        part = {"type": "Lowercase"}
        for _ in range(min(size, 300)):
            part = {"type": "Sequence", "normalizers": [part] * generator.choice((1, 1, 1, 2 if size < 20 else 1))}
        document["normalizer"] = part
    elif kind == "added":
        first = 10**6 if generator.randrange(2) else 4 * 10**9
        document["added_tokens"] += [{"id": first + i, "content": f"<{i}>" * 50, **added} for i in range(size)]
    elif kind == "long token":
        document["added_tokens"].append({"id": 10**6, "content": "a" * size * 1000, **added})
    elif kind == "post":
        token = {"SpecialToken": {"id": "x", "type_id": 0}}
        document["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [token] * size + [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"x": {"id": "x", "ids": [0] * generator.choice((1, 1000)), "tokens": ["x"] * 1000}},
        }
    elif kind == "padding":
        document["padding"] = {"strategy": {"Fixed": 10**10}, "direction": "Right", "pad_to_multiple_of": size} | {
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        }
    elif kind == "model":
        key = generator.choice(("continuing_subword_prefix", "end_of_word_suffix", "unk_token", "dropout"))
        document["model"][key] = generator.choice(("a" * size * 100, 1.0, -1, 10**400, None))
    else:
        key = generator.choice(list(document))
        document[key] = generator.choice((None, [], {}, 1, "a", [[]] * size, {"type": "x"}))
    return f"{kind} {size}"


def hostile_tokenizers(base: Path, target: Path, seed: int, number: int) -> Iterator[tuple[str, Path]]:
    """Yield model folders, each with what was done to the tokenizer.json of `base`, a folder with a byte-level BPE.

    They are copies in `target`, and are removed when the next one is asked for.
    """
    generator = random.Random(f"tokenizers {seed}")
    for index in range(number):
        folder = target / f"tokenizer-{index}"
        shutil.copytree(base, folder)
        document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        name = _change_tokenizer(document, generator)
        if generator.randrange(4) == 0:
            name += " and " + _change_tokenizer(document, generator)
        (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
        yield name, folder
        shutil.rmtree(folder)


_KEYS = (
    "train.lr",
    "seed",
    "rounds.count",
    "languages",
    "model",
    "model.path",
    "adapter",
    "data",
    "data.mono",
    "template",
)
_VALUES = (
    *(
        "inf",
        "-inf",
        "nan",
        "1e999",
        "9" * 5000,
        "9" * 400,
        "-" + "9" * 30,
        "0x" + "f" * 90_000,
        "true",
        "''",
        "[]",
        "{}",
    ),
    *(
        "[" * 10_000 + "]" * 10_000,
        "[" * 100 + "]" * 100,
        "{a = " * 500 + "1" + "}" * 500,
        "1979-05-27",
        "07:32:00",
        "'",
    ),
    *("'" + "a" * 200_000 + "'", "[" + "'a'," * 50_000 + "]", '"\\u0000"', '"/dev/zero"', '"/proc/self/mem"', "\ud800"),
    *('"**/**/**/**/**/x"', '"' + "*a" * 2000 + '"', '"~nobody/x"', '"' + "a/" * 3000 + '"', "[[[]]]", "[1, 'a', {}]"),
)


def hostile_recipes(seed: int, number: int, valid: str) -> Iterator[tuple[str, bytes, list[str]]]:
    """Yield a name, the bytes of a recipe file, and `--set` texts; most are made from a valid recipe."""
    generator = random.Random(f"recipes {seed}")
    for _ in range(number):
        key, value = generator.choice(_KEYS), generator.choice(_VALUES)
        content = valid.encode()
        overrides: list[str] = []
        kind = generator.choice(("set", "deep set", "value", "deep table", "keys", "size", "bytes"))
        if kind == "set":
            overrides = [f"{key}={value}"]
        elif kind == "deep set":
            overrides = [".".join([key] + ["x"] * generator.choice((1, 40, 2000, 20_000))) + f"={value}"]
        elif kind == "value":
            content = f"{key} = {value}\n".encode("utf-8", "surrogatepass") + content
        elif kind == "deep table":
            content += ("\n[" + ".".join(["x"] * generator.choice((40, 900, 20_000))) + "]\n").encode()
        elif kind == "keys":
            content += b"\n" + b"".join(b"k%d = 1\n" % i for i in range(generator.choice((10, 20_000, 100_000))))
        elif kind == "size":
            content += b"#" * generator.choice((1 << 17, 1 << 24))
        else:
            position = generator.randrange(len(content))
            content = content[:position] + generator.randbytes(8) + content[position:]
        yield f"{kind} {key} {value[:40]}", content, overrides


def attack_templates(seed: int, number: int, work: Path) -> dict[str, Any]:
    """Find the segments of hostile chat templates, and return counts by outcome; see `attack_limits.attack`."""
    from tests.conftest import save_model

    save_model(work / "base")
    tokenizer, _ = base_model.load_tokenizer(Model(path=str(work / "base")), work)

    def use(template: str) -> None:
        tokenizer.chat_template = template
        build_segments(tokenizer, TemplateRecipe(kind="chat"), "en", "es", ())

    return attack((name, partial(use, template)) for name, template in hostile_chat_templates(seed, number))


def attack_tokenizers(seed: int, number: int, work: Path) -> dict[str, Any]:
    """Load hostile tokenizers, and return counts by outcome; see `attack_limits.attack`."""
    from tests.conftest import save_model

    save_model(work / "base")
    base_model.load_tokenizer(Model(path=str(work / "base")), work)

    def inputs() -> Iterator[tuple[str, Callable[[], object]]]:
        for name, folder in hostile_tokenizers(work / "base", work, seed, number):
            yield name, partial(base_model.load_tokenizer, Model(path=str(folder)), work)

    return attack(inputs())


def attack_recipes(seed: int, number: int, work: Path) -> dict[str, Any]:
    """Load hostile recipes, and return counts by outcome; see `attack_limits.attack`."""

    def inputs() -> Iterator[tuple[str, Callable[[], object]]]:
        valid = loader.find("quickstart").read_text(encoding="utf-8")
        for name, content, overrides in hostile_recipes(seed, number, valid):
            (work / "a.toml").write_bytes(content)
            yield name, partial(loader.load_recipe, str(work / "a.toml"), overrides)

    return attack(inputs())
