"""How a source and a target become one text, and that text token ids: the string road.

One template serves generation, training and translation. It is three texts around two slots:

    head SOURCE mid TARGET end-token

A prompt is `head SOURCE mid`; a training row is the same text with the target behind it, encoded in one piece,
and labels start at the first token that holds a character of the target. White space at the end of `mid` belongs
to the first token of the target (` Hola` is one token in most vocabularies), so prompts end before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import langcodes

from roundtrip.errors import TemplateError
from roundtrip.recipe import TemplateText

# Private-use characters that no cleaned text of ours holds; they mark the slots while a chat template is rendered.
_SOURCE, _TARGET = "\ue0a0SOURCE\ue0a0", "\ue0a1TARGET\ue0a1"
_PROBES = ("Ein Haus am See.", "{x} <b>100 %</b> «ok»", "línea — 家")


@dataclass(frozen=True)
class Segments:
    """The fixed parts of one direction's template: plain values, kept in the run.

    Attributes:
        head: text before the source, special tokens spelled out.
        mid: text between source and target.
        bos_id: id to put first where the tokenizer wants one and `head` does not spell it; else None.
        end_id: id that closes a target; always the last label of a row.
        stop_ids: ids that end a hypothesis and say nothing.
        break_ids: of a plain template, ids whose text holds a line break: they end a hypothesis too (a base model
            has no other wall), and what stands before the break is its last text. Empty for a chat template.
    """

    head: str
    mid: str
    bos_id: int | None
    end_id: int
    stop_ids: tuple[int, ...]
    break_ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Segments:
        """Return what `to_dict` gave, also after a way through JSON."""
        lists = {key: tuple(values[key]) for key in ("stop_ids", "break_ids")}
        return cls(**(values | lists))


@dataclass(frozen=True)
class Row:
    """One training row: `ids[start:]` are the labels (the target and its end token)."""

    ids: list[int]
    start: int


class Template:
    """Turns texts into prompts and rows, and hypotheses back into texts, for one direction.

    Args:
        tokenizer: a transformers tokenizer with a `tokenizers` backend (offsets are needed).
        segments: from `build_segments`.
    """

    def __init__(self, tokenizer: Any, segments: Segments) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise TemplateError(
                f"{type(tokenizer).__name__} gives no character offsets, which labels are found by",
                cure="load the fast tokenizer of this model (a tokenizer.json)",
            )
        self.tokenizer, self.segments = tokenizer, segments
        # Spaces before a target belong to its first token; line breaks of a chat template do not.
        self._prompt_end = segments.mid.rstrip(" ")
        # Some special tokens (<repo_name> and its like) have no role and stand in this table only.
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        specials = sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, specials))) if specials else None
        # How many tokens of a prompt are the template's own.
        self.num_fixed = len(self.prompts([""])[0])

    def prompt_text(self, source: str) -> str:
        """Return what the model reads before it writes a target."""
        return self.segments.head + source + self._prompt_end

    def prompts(self, sources: Sequence[str]) -> list[list[int]]:
        """Return the prompt ids of each source."""
        texts = [self.prompt_text(source) for source in sources]
        encoded = self._encode(texts, [len(self.segments.head)] * len(texts), [len(source) for source in sources], None)
        return [ids for ids, _ in encoded]

    def rows(self, pairs: Sequence[tuple[str, str]]) -> list[Row]:
        """Return the training row of each (source, target)."""
        head, mid = self.segments.head, self.segments.mid
        texts = [head + source + mid + target for source, target in pairs]
        boundaries = [len(head) + len(source) + len(self._prompt_end) for source, _ in pairs]
        encoded = self._encode(
            texts,
            [len(head)] * len(texts),
            [len(source) for source, _ in pairs],
            [len(target) for _, target in pairs],
        )
        rows = []
        for (ids, ends), boundary in zip(encoded, boundaries, strict=True):
            start = next((i for i, end in enumerate(ends) if end > boundary), len(ids))
            rows.append(Row([*ids, self.segments.end_id], start))
        return rows

    def hypothesis_text(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids: no special tokens, one line where the template is plain, stripped."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = text.strip()
        return text.split("\n", 1)[0].strip() if self.segments.break_ids else text

    def seam_holds(self, pair: tuple[str, str]) -> bool:
        """Return whether the row of a pair starts with exactly the ids of its prompt, as generation will see them."""
        row = self.rows([pair])[0]
        return row.ids[: row.start] == self.prompts([pair[0]])[0]

    def _encode(
        self,
        texts: list[str],
        source_starts: list[int],
        source_sizes: list[int],
        target_sizes: list[int] | None,
    ) -> list[tuple[list[int], list[int]]]:
        """Return ids and the end offset of each token, the BOS included; special tokens in user text stay text."""
        if not texts:
            return []
        encoding = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        rows = []
        for number, text in enumerate(texts):
            user = [(source_starts[number], source_starts[number] + source_sizes[number])]
            if target_sizes is not None:
                user.append((len(text) - target_sizes[number], len(text)))
            if self._special and any(self._special.search(text, start, end) for start, end in user):
                ids, ends = self._encode_around(text, user)
            else:
                ids = encoding["input_ids"][number]
                ends = [end for _, end in encoding["offset_mapping"][number]]
            if self.segments.bos_id is not None:
                ids, ends = [self.segments.bos_id, *ids], [0, *ends]
            rows.append((ids, ends))
        return rows

    def _encode_around(self, text: str, user: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """Encode a text in which the user spells special tokens: only the template's own become special ids."""
        assert self._special is not None
        ids: list[int] = []
        ends: list[int] = []

        def plain(start: int, end: int) -> None:
            piece = self.tokenizer(
                text[start:end],
                add_special_tokens=False,
                split_special_tokens=True,
                return_offsets_mapping=True,
            )
            ids.extend(piece["input_ids"])
            ends.extend(start + offset for _, offset in piece["offset_mapping"])

        at = 0
        for match in self._special.finditer(text):
            if any(match.start() < end and start < match.end() for start, end in user):
                continue
            plain(at, match.start())
            ids.append(self.tokenizer.convert_tokens_to_ids(match.group()))
            ends.append(match.end())
            at = match.end()
        plain(at, len(text))
        return ids, ends


def build_segments(tokenizer: Any, recipe: TemplateText, source: str, target: str, stop_ids: Sequence[int]) -> Segments:
    """Find the fixed parts of the template of one direction.

    Args:
        tokenizer: of the model that will read and write.
        source, target: language codes.
        stop_ids: what the model's generation config ends at, besides the tokenizer's own end token.

    Raises:
        TemplateError: no end token, no chat template, or a template that changes what is put into it.
    """
    names = {"source_language": language_name(source), "target_language": language_name(target)}
    stops = {int(stop) for stop in stop_ids}
    if tokenizer.eos_token_id is not None:
        stops.add(int(tokenizer.eos_token_id))
    if recipe.kind == "plain":
        if tokenizer.eos_token_id is None:
            raise TemplateError("the tokenizer has no end token", cure="set eos_token in its tokenizer_config.json")
        text = _fill(recipe.text, **names, source=_SOURCE, target=_TARGET)
        head, rest = text.split(_SOURCE)
        bos_id = _bos(tokenizer)
        if bos_id is not None and head.startswith(tokenizer.bos_token):
            bos_id = None
        breaks = _line_breaks(tokenizer) - stops
        return Segments(
            head,
            rest.split(_TARGET)[0],
            bos_id,
            int(tokenizer.eos_token_id),
            tuple(sorted(stops)),
            tuple(sorted(breaks)),
        )
    return _chat_segments(tokenizer, recipe, names, stops)


def language_name(code: str) -> str:
    """Return the English name of a language code, such as `Portuguese (Brazil)` for `pt-BR`."""
    return str(langcodes.Language.get(code).display_name("en"))


def _chat_segments(tokenizer: Any, recipe: TemplateText, names: dict[str, str], stops: set[int]) -> Segments:
    if not tokenizer.chat_template:
        raise TemplateError(
            "this tokenizer has no chat template", place="template.kind", cure='use template.kind = "plain"'
        )
    prompt = _render(tokenizer, recipe, names, _SOURCE, None)
    if prompt.count(_SOURCE) != 1:
        raise TemplateError(f"the chat template shows the source {prompt.count(_SOURCE)} times", place="template")
    head, mid = prompt.split(_SOURCE)
    for probe in _PROBES:
        if _render(tokenizer, recipe, names, probe, None) != head + probe + mid:
            raise TemplateError(
                f"the chat template changes the text put into it ({probe!r} does not come out whole)",
                place="template",
                cure='use template.kind = "plain"',
            )
    whole = _render(tokenizer, recipe, names, _SOURCE, _TARGET)
    tail = whole.rpartition(_TARGET)[2]
    tail_ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    specials = set(tokenizer.all_special_ids) | stops
    end_id = next((i for i in tail_ids if i in specials), tokenizer.eos_token_id)
    if end_id is None:
        raise TemplateError("neither the chat template nor the tokenizer has an end token", place="template")
    return Segments(head, mid, None, int(end_id), tuple(sorted(stops | {int(end_id)})), ())


def _render(tokenizer: Any, recipe: TemplateText, names: dict[str, str], source: str, target: str | None) -> str:
    messages = [{"role": "user", "content": _fill(recipe.instruction, **names, source=source)}]
    if recipe.system is not None:
        messages.insert(0, {"role": "system", "content": _fill(recipe.system, **names)})
    if target is not None:
        messages.append({"role": "assistant", "content": target})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=target is None)
    except Exception as error:  # a chat template is a program of the model's author and may raise anything
        raise TemplateError(
            f"the chat template failed: {error}",
            place="template",
            cure='try without template.system, or kind = "plain"',
        ) from error
    return str(text)


def _fill(text: str, **fields: str) -> str:
    """Put fields into a text; unlike `str.format` it minds no other braces. The last field may hold any text."""
    for name, value in fields.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _bos(tokenizer: Any) -> int | None:
    """Return the BOS id where the tokenizer puts one in front by itself; defining one is not enough."""
    ids = tokenizer("a")["input_ids"]
    wants = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return int(tokenizer.bos_token_id) if wants else None


def _line_breaks(tokenizer: Any) -> set[int]:
    """Return every id whose text holds a line break."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    return {i for i, text in enumerate(texts) if "\n" in text}
