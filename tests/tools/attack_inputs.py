"""Hostile chat templates, tokenizers and recipes by seed, for tests and campaigns."""

from __future__ import annotations

import random
from collections.abc import Iterator

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
