"""Chat templates are programs of a stranger: each is accepted or refused, in limited time and memory."""

from __future__ import annotations

import copy
import resource
import time
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.runtime.errors import TemplateError
from roundtrip.tokens import prompt_segments
from roundtrip.tokens.prompt_segments import build_segments
from tests.conftest import CHATML
from tests.tools.attack_inputs import hostile_chat_templates

CHAT = TemplateRecipe(kind="chat")


def with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> Any:
    changed = copy.copy(tokenizer)
    changed.chat_template = template
    return changed


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% set x = 'a' * 4000000000 %}{{ messages[0]['content'] }}", "too much memory"),
        ("{{ 'a' * 1000000000 }}", "too much memory|a prompt of|more than 1 seconds"),
        ("{{ messages[0]['content'] }}{{ 'a' * 200000 }}", "a prompt of 200,"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 1 seconds"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion|nested too deeply"),
        ("{{ 1" + " + 1" * 200_000 + " }}", "more than 1 seconds|nested too deeply"),
        ("{{ raise_exception('a' * 10000000) }}", "failed: aaa"),
    ],
)
def test_a_template_that_grows_or_does_not_end_is_refused(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, template: str, words: str
) -> None:
    monkeypatch.setattr(prompt_segments, "TEMPLATE_SECONDS", 1.0)
    start = time.monotonic()
    with pytest.raises(TemplateError, match=words) as caught:
        build_segments(with_template(tokenizer, template), CHAT, "en", "es", ())
    assert time.monotonic() - start < 5 and len(str(caught.value)) < 7000
    assert caught.value.cure


def test_forms_of_messages_after_the_first_that_fits_are_not_tried(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template may fail, or have no end, on forms that are not used."""
    monkeypatch.setattr(prompt_segments, "TEMPLATE_SECONDS", 1.0)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = "{% if messages[0]['content'] is not string %}" + endless + "{% endif %}" + CHATML
    expected = build_segments(with_template(tokenizer, CHATML), CHAT, "en", "es", ())
    assert build_segments(with_template(tokenizer, template), CHAT, "en", "es", ()) == expected


def test_of_several_templates_the_default_one_is_taken(tokenizer: PreTrainedTokenizerFast) -> None:
    expected = build_segments(with_template(tokenizer, CHATML), CHAT, "en", "es", ())
    several: Any = {"rag": "{{ raise_exception('not this one') }}", "default": CHATML, "tool_use": "x"}
    assert build_segments(with_template(tokenizer, several), CHAT, "en", "es", ()) == expected
    del several["default"]
    with pytest.raises(TemplateError, match="multiple chat templates with no default"):
        build_segments(with_template(tokenizer, several), CHAT, "en", "es", ())


def test_any_template_is_accepted_or_refused(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_segments, "TEMPLATE_SECONDS", 0.3)
    accepted = refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, template in hostile_chat_templates(3, 40):
        start = time.monotonic()
        try:
            build_segments(with_template(tokenizer, template), CHAT, "en", "es", ())
            accepted += 1
        except TemplateError:
            refused += 1
        assert time.monotonic() - start < 10, name
    assert accepted and refused
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10


def test_all_renderings_of_a_template_take_one_process(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []
    call_limited = prompt_segments.call_limited
    monkeypatch.setattr(prompt_segments, "call_limited", lambda *a: calls.append(a[1]) or call_limited(*a))
    segments = build_segments(with_template(tokenizer, CHATML), CHAT, "en", "es", ())
    assert calls == [prompt_segments.TEMPLATE_SECONDS]
    assert segments.head.startswith("<|im_start|>user\n") and segments.mid.endswith("<|im_start|>assistant\n")
