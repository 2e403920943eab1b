"""The fixed parts of a template around a source and a target: found once, kept with the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from roundtrip.recipe.language_codes import language_name
from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.runtime.errors import TemplateError
from roundtrip.runtime.limits import LimitedCallError, call_limited, describe_error

# Private-use characters that no cleaned text of ours holds; they mark the slots while a chat template is rendered.
_SOURCE, _TARGET = "\ue0a0SOURCE\ue0a0", "\ue0a1TARGET\ue0a1"
_PROBES = ("Ein Haus am See.", "{x} <b>100 %</b> «ok»", "línea — 家")
# A source and a target of each rendered chat; without a target it asks for one.
_CONTENTS = ((_SOURCE, None), (_SOURCE, _TARGET), *((probe, None) for probe in _PROBES))
# For all renderings of a template together, and the longest one.
TEMPLATE_SECONDS = 10.0
TEMPLATE_CHARS = 100_000
_SET_END = "set eos_token in its tokenizer_config.json"
_USE_PLAIN = 'set template.kind = "plain"'


@dataclass(frozen=True)
class Segments:
    """The fixed parts of one direction's template: plain values, kept in the run."""

    head: str  # text before the source, special tokens spelled out
    mid: str  # text between source and target
    prefix_ids: tuple[
        int, ...
    ]  # what the tokenizer puts in front of every text (a BOS), where `head` does not spell it
    end_id: int  # closes a target; always the last label of a row
    stop_ids: tuple[int, ...]  # end a hypothesis and are no part of it
    # Of a plain template, ids whose text holds a line break: they end a hypothesis too (a base model has no other end),
    # and the text before the break belongs to it.
    break_ids: tuple[int, ...]


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
        return _chat_segments(tokenizer, recipe, names, (source, target), stops)
    if end_id is None:
        raise TemplateError("the tokenizer has no end token", cure=_SET_END)
    head, rest = _fill(recipe.prompt_text, **names, source=_SOURCE, target=_TARGET).split(_SOURCE)
    breaks = {i for i, text in enumerate(token_texts(tokenizer)) if "\n" in text} - stops
    fixed = (rest.split(_TARGET)[0], _prefix_ids(tokenizer, head), int(end_id))
    return Segments(head, *fixed, tuple(sorted(stops)), tuple(sorted(breaks)))


def _prefix_ids(tokenizer: Any, head: str) -> tuple[int, ...]:
    """Return the special ids that a tokenizer puts in front of a text by itself, none where `head` spells them.

    Mostly that is its BOS, if it adds one (defining one is not enough); XGLM and BioGPT put their end token there.
    """
    text, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    size = next((i for i in range(len(whole)) if text and whole[i : i + len(text)] == text), 0)
    prefix = tuple(whole[:size])
    spelled = "".join(tokenizer.convert_ids_to_tokens(list(prefix)))
    return () if spelled and head.startswith(spelled) else prefix


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


def _chat_segments(
    tokenizer: Any, recipe: TemplateRecipe, names: dict[str, str], codes: tuple[str, str], stops: set[int]
) -> Segments:
    if not tokenizer.chat_template:
        raise TemplateError("this tokenizer has no chat template", place="template.kind", cure=_USE_PLAIN)
    prompt, whole, *probes = _usable_texts(tokenizer, _chats(recipe, names, codes))
    head, mid = prompt.split(_SOURCE)
    for probe, text in zip(_PROBES, probes, strict=True):
        if text != head + probe + mid:
            problem = f"the chat template changes the text put into it ({probe!r} does not come out whole)"
            raise TemplateError(problem, place="template", cure=_USE_PLAIN)
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
    return Segments(head, mid, (), int(end_id), tuple(sorted(stops | {int(end_id)})), ())


@dataclass(frozen=True)
class _Chat:
    """The texts of a chat, and how the contents of its messages are written: `user_part` None is a string."""

    prompt: str
    system: str | None
    names: dict[str, str]
    user_part: dict[str, str] | None = None
    answer_part: dict[str, str] | None = None

    def messages(self, source: str, target: str | None) -> list[dict[str, Any]]:
        asked = _fill(self.prompt, **self.names, source=source)
        messages = [{"role": "user", "content": _content(asked, self.user_part)}]
        if self.system is not None:
            system = _content(_fill(self.system, **self.names), self.answer_part)
            messages.insert(0, {"role": "system", "content": system})
        if target is not None:
            messages.append({"role": "assistant", "content": _content(target, self.answer_part)})
        return messages


def _chats(recipe: TemplateRecipe, names: dict[str, str], codes: tuple[str, str]) -> list[_Chat]:
    """Return a chat with each kind of content that templates show.

    Most take a string, some a list of typed parts, and TranslateGemma parts with the codes of the languages, around
    which it puts a prompt of its own.
    """
    part = {"type": "text"}
    coded = part | {"source_lang_code": codes[0], "target_lang_code": codes[1]}
    as_string = _Chat(recipe.prompt_text, recipe.system, names)
    own_prompt = replace(as_string, prompt="{source}" if recipe.prompt is None else recipe.prompt, user_part=coded)
    in_parts = replace(as_string, user_part=part)
    return [
        as_string,
        *(replace(each, answer_part=answer) for each in (in_parts, own_prompt) for answer in (part, None)),
    ]


def _usable_texts(tokenizer: Any, chats: Sequence[_Chat]) -> list[str]:
    """Return the rendered `_CONTENTS` of the first chat whose source the template shows."""

    def render() -> list[list[dict[str, str]]]:
        rendered: list[list[dict[str, str]]] = []
        for chat in chats:
            rendered.append(
                [_render(tokenizer, chat.messages(*contents), contents[1] is None) for contents in _CONTENTS]
            )
            if _is_usable(rendered):
                break
        return rendered

    try:
        # A chat template is a program of the model's author: it may loop without end, and fill the memory.
        rendered = call_limited(render, TEMPLATE_SECONDS)
    except LimitedCallError as error:
        raise _failed(str(error)) from error
    # Where none is usable, the first one, which holds strings as most do, says why.
    renderings = rendered[-1] if _is_usable(rendered) else rendered[0]
    if "error" not in renderings[0] and (number := renderings[0]["text"].count(_SOURCE)) != 1:
        problem = f"the chat template shows the source {number} times"
        raise TemplateError(problem, place="template", cure=_USE_PLAIN)
    if errors := [rendering["error"] for rendering in renderings if "error" in rendering]:
        raise _failed(errors[0])
    return [rendering["text"] for rendering in renderings]


def _is_usable(rendered: list[list[dict[str, str]]]) -> bool:
    """Return whether the last chat shows its source once, and, unless it is the first, its target too."""
    prompt, whole = (rendering.get("text", "") for rendering in rendered[-1][:2])
    return prompt.count(_SOURCE) == 1 and (len(rendered) == 1 or whole.count(_TARGET) == 1)


def _render(tokenizer: Any, messages: list[dict[str, Any]], ask: bool) -> dict[str, str]:
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
    except Exception as error:  # a chat template may raise anything
        return {"error": describe_error(error)}
    if len(text) > TEMPLATE_CHARS:
        return {"error": f"a prompt of {len(text):,} characters, the limit is {TEMPLATE_CHARS:,}"}
    return {"text": text}


def _failed(problem: str) -> TemplateError:
    cure = 'try without template.system, or kind = "plain"'
    return TemplateError(f"the chat template failed: {problem}", place="template", cure=cure)


def _content(text: str, part: dict[str, str] | None) -> Any:
    """Return the content of a message: a string, or a list of one part."""
    return text if part is None else [{**part, "text": text}]


def _fill(text: str, **fields: str) -> str:
    """Put fields into a text; unlike `str.format` it ignores other braces. The last field may hold any text."""
    for name, value in fields.items():
        text = text.replace(f"{{{name}}}", value)
    return text
