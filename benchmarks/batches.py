"""Batches for `benchmarks.tokens`: real lines in real tokenizers, as generation would deliver them.

Shapes: B rows, N positions of a hypothesis, M of a target.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import row_baselines, zoo
from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.runtime.seeding import permuted_index
from roundtrip.tokens.compatibility import BuildOptions, build_row_builder, host_row_builder
from roundtrip.tokens.prompt_segments import build_segments
from roundtrip.tokens.prompt_template import PromptTemplate, TokenRow
from roundtrip.tokens.row_builder import RowBuilder, pad_rows

CHAT = TemplateRecipe(kind="chat")
LANGUAGES = ("en", "es")


@dataclass(frozen=True)
class Kit:
    """Templates and row builders of one tokenizer, from English into Spanish.

    Attributes:
        reverse, forward: chat templates of the direction that generates and of the one that is trained.
        row_builder, host: for the chat template, with the checker on the device and on the host.
        plain_reverse, plain_forward, plain_builder: the same for the separator of the prior art.
        seconds: what it took to build `row_builder` and `plain_builder`.
    """

    reverse: PromptTemplate
    forward: PromptTemplate
    row_builder: RowBuilder
    host: RowBuilder
    plain_reverse: PromptTemplate
    plain_forward: PromptTemplate
    plain_builder: RowBuilder
    seconds: dict[str, float]


@dataclass(frozen=True)
class Case:
    """One batch: hypotheses as generation delivers them, and their targets.

    Attributes:
        new_BN: int64, each row a hypothesis and end tokens behind it.
        hypotheses: their ids, without the end token.
        texts, targets: the hypotheses as text, and the real lines.
        target_BM, target_size_B: ids of the targets, encoded before.
        expected: the rows of the text path.
        generated: the same texts in the format of the prior art.
    """

    new_BN: torch.Tensor
    hypotheses: list[list[int]]
    texts: list[str]
    targets: list[str]
    target_BM: torch.Tensor
    target_size_B: torch.Tensor
    expected: list[TokenRow]
    generated: row_baselines.Generated


def kit(tokenizer: Any, pairs: Sequence[tuple[str, str]], device: torch.device) -> Kit:
    """Build the row builders of a tokenizer; one without a chat template gets ChatML.

    Args:
        pairs: sample lines for the compatibility check.
    """
    with_chat = tokenizer if tokenizer.chat_template else zoo.dress(tokenizer, "chatml")[0]
    reverse, forward = templates(with_chat, CHAT)
    start = time.perf_counter()
    options = BuildOptions(device=device, num_attacks=0)
    row_builder, _ = build_row_builder(reverse, forward, pairs[:64], options)
    middle = time.perf_counter()
    plain_reverse, plain_forward = templates(tokenizer, row_baselines.PLAIN)
    checker = row_builder.checker if with_chat is tokenizer else None
    options = BuildOptions(device=device, shared_checker=checker, num_attacks=0)
    plain_builder, _ = build_row_builder(plain_reverse, plain_forward, pairs[:64], options)
    seconds = {"chat template": middle - start, "plain template": time.perf_counter() - middle}
    host = host_row_builder(reverse, forward, device)
    return Kit(reverse, forward, row_builder, host, plain_reverse, plain_forward, plain_builder, seconds)


def templates(tokenizer: Any, text: TemplateRecipe) -> tuple[PromptTemplate, PromptTemplate]:
    """Return the templates of the direction that generates sources and of the one that is trained on them."""
    source, target = LANGUAGES
    return (
        PromptTemplate(tokenizer, build_segments(tokenizer, text, target, source, ())),
        PromptTemplate(tokenizer, build_segments(tokenizer, text, source, target, ())),
    )


def joined(tokenizer: Any, texts: Sequence[str], number: int, size: int, seed: int) -> list[str]:
    """Return texts of about `size` tokens: real lines joined by spaces, in a new order each time they are used up."""
    sizes = [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    usable = [i for i, length in enumerate(sizes) if length <= max(size // 2, min(sizes))]
    joined_texts: list[str] = []
    at = 0
    while len(joined_texts) < number:
        pieces, length = [], 0
        while length < 0.9 * size:
            i = usable[permuted_index(at % len(usable), len(usable), seed, at // len(usable))]
            pieces.append(texts[i])
            length, at = length + sizes[i], at + 1
        joined_texts.append(" ".join(pieces))
    return joined_texts


def case(kit: Kit, pairs: Sequence[tuple[str, str]], device: torch.device) -> Case:
    """Make a batch of (source, target) pairs."""
    texts, targets = (list(side) for side in zip(*pairs, strict=True))
    hypotheses = kit.reverse.rows([(target, text) for text, target in pairs])
    end = kit.reverse.segments.end_id
    new = pad_rows([TokenRow(row.ids[row.start :], 0) for row in hypotheses], device, end)
    target = pad_rows([TokenRow(ids or [], 0) for ids in kit.forward.targets(targets)], device)
    return Case(
        new.ids_BT,
        [row.ids[row.start : -1] for row in hypotheses],
        texts,
        targets,
        target.ids_BT,
        target.size_B,
        kit.forward.rows(pairs),
        row_baselines.generated(kit.plain_reverse, pairs, kit.plain_reverse.segments.end_id, device),
    )
