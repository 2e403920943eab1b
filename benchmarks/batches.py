"""Batches that token roads are timed on: real lines in real tokenizers, as generation would deliver them.

Shapes: B rows, N positions of a hypothesis, M of a target.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import prior_art, zoo
from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.runtime.seeding import permuted_index
from roundtrip.tokens import compatibility
from roundtrip.tokens.prompt_segments import build_segments
from roundtrip.tokens.prompt_template import PromptTemplate, TokenRow
from roundtrip.tokens.row_builder import RowBuilder, padded

CHAT = TemplateRecipe(kind="chat")
LANGUAGES = ("en", "es")


@dataclass(frozen=True)
class Kit:
    """Templates and roads of one tokenizer, from English into Spanish.

    Attributes:
        road, host: behind a chat template, with the guard on the device and on the host.
        plain_writer, plain_learner, plain_road: behind the separator of the prior art.
        seconds: what it took to find `row_builder` and `plain_road`.
    """

    writer: PromptTemplate
    learner: PromptTemplate
    row_builder: RowBuilder
    host: RowBuilder
    plain_writer: PromptTemplate
    plain_learner: PromptTemplate
    plain_road: RowBuilder
    seconds: dict[str, float]


@dataclass(frozen=True)
class Case:
    """One batch: hypotheses as generation delivers them, and their targets.

    Attributes:
        new_BN: int64, each row a hypothesis and end tokens behind it.
        hypotheses: their ids, without the end token.
        texts, targets: what they say.
        target_BM, target_size_B: the targets in their slot, encoded before.
        expected: the rows of the string road.
        generated: the same texts as the prior art needs them.
    """

    new_BN: torch.Tensor
    hypotheses: list[list[int]]
    texts: list[str]
    targets: list[str]
    target_BM: torch.Tensor
    target_size_B: torch.Tensor
    expected: list[TokenRow]
    generated: prior_art.Generated


def kit(tokenizer: Any, pairs: Sequence[tuple[str, str]], device: torch.device) -> Kit:
    """Find the roads of a tokenizer, and say how long that took; one without a chat template is dressed in ChatML.

    Args:
        pairs: sample lines for the verdict.
    """
    dressed = tokenizer if tokenizer.chat_template else zoo.dress(tokenizer, "chatml")[0]
    writer, learner = templates(dressed, CHAT)
    start = time.perf_counter()
    options = compatibility.BuildOptions(device=device, num_attacks=0)
    row_builder, _ = compatibility.build_row_builder(writer, learner, pairs[:64], options)
    both = time.perf_counter()
    plain_writer, plain_learner = templates(tokenizer, prior_art.PLAIN)
    known = row_builder.guard if dressed is tokenizer else None
    plain_road, _ = compatibility.build_row_builder(
        plain_writer, plain_learner, pairs[:64], replace(options, checker=known)
    )
    seconds = {"chat template": both - start, "plain template": time.perf_counter() - both}
    host = compatibility.host_row_builder(writer, learner, device)
    return Kit(writer, learner, row_builder, host, plain_writer, plain_learner, plain_road, seconds)


def templates(tokenizer: Any, text: TemplateRecipe) -> tuple[PromptTemplate, PromptTemplate]:
    """Return the templates of the direction that writes sources and of the one that learns from them."""
    source, target = LANGUAGES
    return (
        PromptTemplate(tokenizer, build_segments(tokenizer, text, target, source, ())),
        PromptTemplate(tokenizer, build_segments(tokenizer, text, source, target, ())),
    )


def joined(tokenizer: Any, texts: Sequence[str], number: int, size: int, seed: int) -> list[str]:
    """Return texts of about `size` tokens: real lines, one behind the other, over and over in another order."""
    sizes = [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    usable = [i for i, length in enumerate(sizes) if length <= max(size // 2, min(sizes))]
    found: list[str] = []
    at = 0
    while len(found) < number:
        pieces, length = [], 0
        while length < 0.9 * size:
            i = usable[permuted_index(at % len(usable), len(usable), seed, at // len(usable))]
            pieces.append(texts[i])
            length, at = length + sizes[i], at + 1
        found.append(" ".join(pieces))
    return found


def case(kit: Kit, pairs: Sequence[tuple[str, str]], device: torch.device) -> Case:
    """Make a batch of (source, target) pairs."""
    texts, targets = (list(side) for side in zip(*pairs, strict=True))
    written = kit.writer.rows([(target, text) for text, target in pairs])
    end = kit.writer.segments.end_id
    new = padded([TokenRow(row.ids[row.start :], 0) for row in written], device, end)
    known = padded([TokenRow(ids or [], 0) for ids in kit.learner.targets(targets)], device)
    return Case(
        new.ids_BT,
        [row.ids[row.start : -1] for row in written],
        texts,
        targets,
        known.ids_BT,
        known.size_B,
        kit.learner.rows(pairs),
        prior_art.generated(kit.plain_writer, pairs, kit.plain_writer.segments.end_id, device),
    )
