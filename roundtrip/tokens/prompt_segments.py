"""The fixed parts of a template around a source and a target: found once, kept with the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from roundtrip.recipe.language_codes import language_name
from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.runtime.errors import TemplateError

# Private-use characters that no cleaned text of ours holds; they mark the slots while a chat template is rendered.
_SOURCE, _TARGET = "\ue0a0SOURCE\ue0a0", "\ue0a1TARGET\ue0a1"
_PROBES = ("Ein Haus am See.", "{x} <b>100 %</b> «ok»", "línea — 家")
_SET_END = "set eos_token in its tokenizer_config.json"
_USE_PLAIN = 'set template.kind = "plain"'


@dataclass(frozen=True)
class Segments:
    """The fixed parts of one direction's template: plain values, kept in the run."""

    head: str  # text before the source, special tokens spelled out
    mid: str  # text between source and target
    bos_id: int | None  # id to put first where the tokenizer wants one and `head` does not spell it
    end_id: int  # closes a target; always the last label of a row
    stop_ids: tuple[int, ...]  # end a hypothesis and are no part of it
    # Of a plain template, ids whose text holds a line break: they end a hypothesis too (a base model has no other end),
    # and the text before the break belongs to it.
    break_ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Segments:
        """Return what `to_dict` gave, also after a way through JSON."""
        lists = {key: tuple(values[key]) for key in ("stop_ids", "break_ids")}
        return cls(**(values | lists))


def build_segments(
    tokenizer: Any, recipe: TemplateRecipe, source: str, target: str, stop_ids: Sequence[int]
) -> Segments:
    """Find the fixed parts of the template of one direction.

    Args:
        tokenizer: of the model that reads the prompt and generates.
        source, target: language codes.
        stop_ids: what the model's generation config ends at, besides the tokenizer's own end token.

    Raises:
        TemplateError: no end token, no chat template, or a template that changes what is put into it.

    Example:
        >>> segments = build_segments(tokenizer, TemplateRecipe(kind="plain"), "en", "es", stop_ids=())
        >>> segments.head
        'English: '
    """
    codes = {"source_language": source, "target_language": target}
    names = {field: language_name(code, recipe.names) for field, code in codes.items()}
    end_id = tokenizer.eos_token_id
    stops = {int(stop) for stop in stop_ids} | ({int(end_id)} if end_id is not None else set())
    if recipe.kind != "plain":
        return _chat_segments(tokenizer, recipe, names, stops)
    if end_id is None:
        raise TemplateError("the tokenizer has no end token", cure=_SET_END)
    head, rest = _fill(recipe.prompt_text, **names, source=_SOURCE, target=_TARGET).split(_SOURCE)
    # The BOS, where the tokenizer puts one in front by itself (defining one is not enough) and the text has none.
    bos_id = tokenizer.bos_token_id
    if bos_id is None or tokenizer("a")["input_ids"][:1] != [bos_id] or head.startswith(tokenizer.bos_token):
        bos_id = None
    breaks = {i for i, text in enumerate(token_texts(tokenizer)) if "\n" in text} - stops
    return Segments(head, rest.split(_TARGET)[0], bos_id, int(end_id), tuple(sorted(stops)), tuple(sorted(breaks)))


def token_texts(tokenizer: Any) -> list[str]:
    """Return the text of each id by itself."""
    return list(tokenizer.batch_decode([[i] for i in range(num_ids(tokenizer))], clean_up_tokenization_spaces=False))


def num_ids(tokenizer: Any) -> int:
    """Return one more than the highest id; a vocabulary may have holes."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))


def special_ids(tokenizer: Any) -> set[int]:
    """Return every id that decoding skips; tokens without a role stand in the table of added tokens only."""
    added = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | {int(i) for i in tokenizer.all_special_ids}


def _chat_segments(tokenizer: Any, recipe: TemplateRecipe, names: dict[str, str], stops: set[int]) -> Segments:
    if not tokenizer.chat_template:
        raise TemplateError("this tokenizer has no chat template", place="template.kind", cure=_USE_PLAIN)
    prompt = _render(tokenizer, recipe, names, _SOURCE, None)
    if prompt.count(_SOURCE) != 1:
        problem = f"the chat template shows the source {prompt.count(_SOURCE)} times"
        raise TemplateError(problem, place="template", cure=_USE_PLAIN)
    head, mid = prompt.split(_SOURCE)
    for probe in _PROBES:
        if _render(tokenizer, recipe, names, probe, None) != head + probe + mid:
            problem = f"the chat template changes the text put into it ({probe!r} does not come out whole)"
            raise TemplateError(problem, place="template", cure=_USE_PLAIN)
    whole = _render(tokenizer, recipe, names, _SOURCE, _TARGET)
    before, _, tail = whole.rpartition(_TARGET)
    if before.startswith(prompt) and not before[len(prompt) :].strip(" "):
        # Spaces in front of the assistant's words belong to their first token, as in Llama 2.
        mid += before[len(prompt) :]
    tail_ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    specials = special_ids(tokenizer) | stops
    end_id = next((i for i in tail_ids if i in specials), tokenizer.eos_token_id)
    if end_id is None:
        problem = "neither the chat template nor the tokenizer has an end token"
        raise TemplateError(problem, place="template", cure=_SET_END)
    return Segments(head, mid, None, int(end_id), tuple(sorted(stops | {int(end_id)})), ())


def _render(tokenizer: Any, recipe: TemplateRecipe, names: dict[str, str], source: str, target: str | None) -> str:
    messages = [{"role": "user", "content": _fill(recipe.prompt_text, **names, source=source)}]
    if recipe.system is not None:
        messages.insert(0, {"role": "system", "content": _fill(recipe.system, **names)})
    if target is not None:
        messages.append({"role": "assistant", "content": target})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=target is None)
    except Exception as error:  # a chat template is a program of the model's author and may raise anything
        cure = 'try without template.system, or kind = "plain"'
        raise TemplateError(f"the chat template failed: {error}", place="template", cure=cure) from error
    return str(text)


def _fill(text: str, **fields: str) -> str:
    """Put fields into a text; unlike `str.format` it ignores other braces. The last field may hold any text."""
    for name, value in fields.items():
        text = text.replace(f"{{{name}}}", value)
    return text
