"""How others make training rows: chat templates row by row, and the index arithmetic of an earlier library.

The second (`prior art` in the results) is our own code after a description of its algorithm, for comparison only. It
makes `synthetic separator real` out of a generated batch `real separator synthetic` by moving ids, and assumes that
the separator is a token of its own at the end of every prompt, that only padding is special in front of the text, and
that id 0 is not the BOS. The first assumption fails where a sentence ends in punctuation that merges with the
separator.

Shapes: B rows, P positions of a prompt, T of prompt and hypothesis.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.tokens.prompt_template import PromptTemplate, TokenRow
from roundtrip.tokens.splice.splicing import IGNORE

SEPARATOR = "\n\n"
# The separator as a template of ours, whose text path is the reference here too.
PLAIN = TemplateRecipe(kind="plain", prompt="{source}" + SEPARATOR + "{target}")

Padded = dict[str, torch.Tensor]


def usual(tokenizer: Any, instruction: str, new_BN: torch.Tensor, targets: Sequence[str]) -> Padded:
    """Make rows in the common way: decode, `apply_chat_template` and mask, one row after the other.

    The rows keep what a chat template puts behind the end token, so that they differ from ours at the end.

    Args:
        instruction: the message of the user, around `{source}`.
        new_BN: int64, generated ids; behind an end token there are only special tokens.
        targets: one real line for each.
    """
    rows, sizes = [], []
    for ids, target in zip(new_BN, targets, strict=True):
        source = tokenizer.decode(ids, skip_special_tokens=True).strip()
        messages = [{"role": "user", "content": instruction.replace("{source}", source)}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        messages.append({"role": "assistant", "content": target})
        rows.append(torch.tensor(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)))
        sizes.append((len(prompt), len(rows[-1])))
    ids_BT = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id or 0)
    start_B1, size_B1 = torch.tensor(sizes)[:, :, None].unbind(1)
    position_T = torch.arange(ids_BT.shape[1])
    labels_BT = ids_BT.masked_fill((position_T < start_B1) | (position_T >= size_B1), IGNORE)
    padded = {"input_ids": ids_BT, "attention_mask": (position_T < size_B1).long(), "labels": labels_BT}
    return {name: tensor.to(new_BN.device) for name, tensor in padded.items()}


@dataclass(frozen=True)
class Generated:
    """A batch as `generate` of transformers gives it: left-padded prompts, hypotheses filled up with the end token.

    Attributes:
        whole_BT: int64, prompts and hypotheses.
        num_prompt: P.
    """

    whole_BT: torch.Tensor
    num_prompt: int


def generated(
    template: PromptTemplate, pairs: Sequence[tuple[str, str]], pad_id: int, device: torch.device
) -> Generated:
    """Return what a model would generate for the source of each (source, target) in canonical tokens.

    Args:
        template: of PLAIN, from the target language into the source language.
    """
    end = template.segments.end_id
    prompts = template.tokenizer([target + SEPARATOR for _, target in pairs])["input_ids"]
    written = [row.ids[row.start :] for row in template.rows([(target, source) for source, target in pairs])]
    num_prompt, num_new = max(map(len, prompts)), max(map(len, written))
    rows = [
        [*(num_prompt - len(prompt)) * [pad_id], *prompt, *new, *(num_new - len(new)) * [end]]
        for prompt, new in zip(prompts, written, strict=True)
    ]
    return Generated(torch.tensor(rows, device=device), num_prompt)


def pad_ids(tokenizer: Any) -> dict[str, int]:
    """Return the tokenizer's own pad id (or the end token), and the end token, which the library assumes to pad."""
    end = tokenizer.eos_token_id
    return {"own pad token": end if tokenizer.pad_token_id is None else tokenizer.pad_token_id, "end token pads": end}


class Skip:
    """The index arithmetic, for one tokenizer.

    Args:
        collect: collect garbage after each batch, as the earlier library does.
    """

    def __init__(self, tokenizer: Any, pad_id: int, *, collect: bool = False) -> None:
        self.collect, self.end_id, self.pad_id = collect, tokenizer.eos_token_id, pad_id
        self.num_separator = len(tokenizer(SEPARATOR, add_special_tokens=False)["input_ids"])
        self.moved_for_bos = bool(tokenizer.bos_token_id)  # False for a BOS of id 0, too
        named = {self.end_id, self.pad_id, tokenizer.bos_token_id} - {None}
        self.special_ids = torch.tensor(sorted(named))

    def rows(self, batch: Generated) -> Padded:
        """Move hypotheses in front of the separator and prompts behind it, within their rows."""
        whole_BT, width = batch.whole_BT, batch.whole_BT.shape[1]
        position_T = torch.arange(width, device=whole_BT.device)
        self.special_ids = self.special_ids.to(whole_BT.device)
        text_BT = ~torch.isin(whole_BT, self.special_ids)
        separator_at = batch.num_prompt - self.num_separator
        in_real_T, in_new_T = position_T < separator_at, position_T >= batch.num_prompt
        num_real_B1 = (text_BT & in_real_T).sum(1, keepdim=True)
        num_new_B1 = (text_BT & in_new_T).sum(1, keepdim=True)
        move_BT = torch.where(in_real_T, num_new_B1 + self.num_separator, num_new_B1 - num_real_B1)
        move_BT = torch.where(in_new_T, -(num_real_B1 + self.num_separator), move_BT)
        first_B1 = text_BT.long().argmax(1, keepdim=True)
        to_BT = (position_T + torch.where(text_BT, move_BT, 0) - first_B1 + self.moved_for_bos) % width
        ids_BT = torch.zeros_like(whole_BT).scatter(1, to_BT, whole_BT)
        labelled_BT = text_BT & in_real_T
        labels_BT = torch.full_like(whole_BT, IGNORE).scatter(
            1, torch.where(labelled_BT, to_BT, 0), torch.where(labelled_BT, whole_BT, IGNORE)
        )
        labels_BT[:, 0] = IGNORE
        live_BT = ids_BT != self.pad_id
        if self.pad_id == self.end_id:
            # The end token looks like padding: the position behind the text is taken for it, modulo the width.
            end_B1 = (num_real_B1 + num_new_B1 + self.num_separator + self.moved_for_bos) % width
            ends_BT = (position_T == end_B1) & (ids_BT == self.pad_id)
        else:
            ends_BT = whole_BT == self.end_id
        labels_BT = torch.where(ends_BT, self.end_id, labels_BT)
        if self.collect:
            gc.collect()
        return {"input_ids": ids_BT, "attention_mask": (live_BT | ends_BT).long(), "labels": labels_BT}


def right(padded: Padded, expected: Sequence[TokenRow]) -> tuple[list[bool], list[bool]]:
    """Compare rows with those of the text path.

    Returns:
        For each row whether its labels are the target and one end token, and nothing else; and whether the whole row
        is right, token by token.
    """
    targets, whole = [], []
    columns = (padded[name].tolist() for name in ("input_ids", "attention_mask", "labels"))
    for ids, mask, labels, row in zip(*columns, expected, strict=True):
        targets.append([label for label in labels if label != IGNORE] == row.ids[row.start :])
        actual = [(token, label) for token, live, label in zip(ids, mask, labels, strict=True) if live]
        wanted = [(token, token if i >= row.start else IGNORE) for i, token in enumerate(row.ids)]
        whole.append(
            actual == wanted and all(live or label == IGNORE for live, label in zip(mask, labels, strict=True))
        )
    return targets, whole
