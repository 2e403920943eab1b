"""Templates in the manner of well-known models, and a way to put one on any tokenizer."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from benchmarks.zoo_small import CHATML
from roundtrip.recipe.schema import TemplateRecipe

# For a tokenizer that has a chat template of its own.
OWN = TemplateRecipe(kind="chat")


@dataclass(frozen=True)
class Form:
    """What makes a template.

    Attributes:
        text: the recipe's part of it.
        jinja: the tokenizer's part; None for plain templates.
        tokens: what the tokenizer has to know as tokens.
        end: the end token; None leaves the tokenizer's own.
    """

    text: TemplateRecipe
    jinja: str | None = None
    tokens: tuple[AddedToken, ...] = ()
    end: str | None = None


def _tokens(*texts: str, special: bool = True, rstrip: bool = False) -> tuple[AddedToken, ...]:
    return tuple(AddedToken(text, special=special, normalized=False, rstrip=rstrip) for text in texts)


def _jinja(turn: str, opening: str = "", start: str = "") -> str:
    loop = f"{start}{{% for m in messages %}}{turn}{{% endfor %}}"
    return f"{loop}{{% if add_generation_prompt %}}{opening}{{% endif %}}"


_CHATML_TOKENS = _tokens("<|im_start|>", "<|im_end|>")
TEMPLATES: dict[str, Form] = {
    "plain": Form(TemplateRecipe(kind="plain", prompt="{source_language}: {source}\n{target_language}: {target}")),
    "plain-space": Form(TemplateRecipe(kind="plain", prompt="{source_language}: {source} {target_language}: {target}")),
    "plain-bare": Form(TemplateRecipe(kind="plain", prompt="{source}\n{target}")),
    "chatml": Form(OWN, CHATML, _CHATML_TOKENS, "<|im_end|>"),
    "chatml-system": Form(
        TemplateRecipe(kind="chat", system="You are a careful translator.", prompt="{source}\nIn {target_language}:"),
        CHATML,
        _CHATML_TOKENS,
        "<|im_end|>",
    ),
    # As Qwen 3 with thinking turned off; its think tokens are not special.
    "chatml-think": Form(
        OWN,
        CHATML.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n"),
        _CHATML_TOKENS + _tokens("<think>", "</think>", special=False),
        "<|im_end|>",
    ),
    "llama3": Form(
        OWN,
        _jinja(
            "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "{{ bos_token }}",
        ),
        _tokens("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    "mistral": Form(
        OWN,
        _jinja(
            "{% if m['role'] == 'assistant' %}{{ m['content'] }}</s>"
            "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}",
            start="{{ bos_token }}",
        ),
        _tokens("[INST]", "[/INST]", "</s>"),
        "</s>",
    ),
    "gemma": Form(
        OWN,
        _jinja(
            "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
            "{{ m['content'] | trim }}<end_of_turn>\n",
            "<start_of_turn>model\n",
            "{{ bos_token }}",
        ),
        _tokens("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
    ),
    # As Zephyr: roles are plain text, and a line break follows the end token.
    "zephyr": Form(
        OWN,
        _jinja("<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n", "<|assistant|>\n"),
        _tokens("</s>"),
        "</s>",
    ),
    # As Phi 3: its tokens swallow the white space behind them.
    "phi": Form(
        OWN,
        _jinja("<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n", "<|assistant|>\n"),
        _tokens("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", rstrip=True),
        "<|end|>",
    ),
}


def dress(tokenizer: PreTrainedTokenizerFast, name: str) -> tuple[PreTrainedTokenizerFast, TemplateRecipe]:
    """Return a copy of a tokenizer that wears a template of `TEMPLATES`, and the recipe's part of that template."""
    form = TEMPLATES[name]
    dressed = copy.deepcopy(tokenizer)
    dressed.add_tokens([token for token in form.tokens if not token.special])
    dressed.add_tokens([token for token in form.tokens if token.special], special_tokens=True)
    if form.jinja is not None:
        dressed.chat_template = form.jinja
    if form.end is not None:
        dressed.eos_token = form.end
    return dressed, form.text
