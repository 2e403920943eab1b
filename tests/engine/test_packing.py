"""Packed rows have the loss and gradients of padded ones, and no row sees its neighbour."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from roundtrip.engine import train_step as stepping
from roundtrip.engine.train_step import loss_sum
from roundtrip.models import adapters, attention
from roundtrip.models.direction_model import DirectionModel
from roundtrip.recipe.schema import Adapter
from roundtrip.tokens.batching import TokenDataset, collate, pack, token_budget_batches
from roundtrip.tokens.prompt_template import TokenRow
from roundtrip.tokens.splice.splicing import IGNORE
from tests.conftest import WriteRecipe
from tests.engine.test_decoding import ALL, model_of
from tests.engine.test_train_step import rows
from tests.models.test_adapters import fresh
from tests.runs import go

MADE = [TokenRow(row.ids, max(1, row.start)) for row in rows(7, seed=5)]


def test_a_packed_batch_has_every_token_once_and_its_bounds() -> None:
    table = TokenDataset.of(MADE)
    batch = pack(table, [4, 0, 6])
    sizes = [table.sizes[i] for i in (4, 0, 6)]
    assert batch.ids_BT.tolist() == [[*MADE[4].ids, *MADE[0].ids, *MADE[6].ids]]
    assert batch.inputs["position_ids"].tolist() == [[place for size in sizes for place in range(size)]]
    assert batch.inputs["cu_seq_lens_q"].tolist() == [0, sizes[0], sizes[0] + sizes[1], sum(sizes)]
    assert batch.inputs["cu_seq_lens_q"].dtype == torch.int32 and batch.inputs["max_length_k"] == max(sizes)
    wanted = [label for i in (4, 0, 6) for label in [IGNORE] * MADE[i].start + MADE[i].ids[MADE[i].start :]]
    assert batch.labels_BT.tolist() == [wanted]


def test_packed_groups_are_counted_by_their_tokens() -> None:
    lengths = [10, 3, 3, 3]
    assert list(token_budget_batches(range(4), lengths, 20)) == [[0, 1], [2, 3]]
    assert list(token_budget_batches(range(4), lengths, 20, packed=True)) == [[0, 1, 2, 3]]
    assert list(token_budget_batches(range(4), lengths, 15, packed=True)) == [[0, 1], [2, 3]]


def gradients(model: Any, batch: Any) -> tuple[float, list[torch.Tensor]]:
    own = adapters.parameters(model, "en-es").values()
    loss = loss_sum(model, batch)
    loss.backward()
    found = [parameter.grad for parameter in own]
    for parameter in own:
        parameter.grad = None
    return float(loss.detach()), [grad for grad in found if grad is not None]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("how", ["eager", "sdpa", "varlen"])
def test_packed_is_padded_in_loss_and_gradients(kind: str, how: str) -> None:
    model = model_of(kind)
    attention.choose(model, how)
    targets = ("c_attn",) if "learned" in kind else ("q_proj", "v_proj", "up_proj")
    model = adapters.add_adapters(model, {"en-es": Adapter(rank=4, targets=targets)}, 1)
    for parameter in adapters.parameters(model, "en-es").values():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    adapters.activate(model, "en-es", train=True)
    table = TokenDataset.of(MADE)
    packed, found = gradients(model, pack(table, range(7)))
    attention.choose(model, "eager")
    padded, expected = gradients(model, collate(table, range(7), 0))
    assert packed == pytest.approx(padded, rel=1e-5)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()
        assert (one - other).abs().mean() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("how", ["sdpa", "varlen"])
def test_neighbours_do_not_see_each_other(kind: str, how: str) -> None:
    """Another first row changes nothing in the logits of the second; without places and bounds it would."""
    model = model_of(kind)
    attention.choose(model, how)
    other = TokenRow([token + 1 for token in MADE[0].ids], MADE[0].start)
    size = len(MADE[0].ids)
    found = []
    for first in (MADE[0], other):
        batch = pack(TokenDataset.of([first, MADE[1]]), [0, 1])
        for inputs in (batch.inputs, {}):
            with torch.no_grad():
                found.append(model(input_ids=batch.ids_BT, use_cache=False, **inputs).logits[0, size:])
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[1], found[3], atol=1e-2)


def test_a_run_with_packed_rows_learns_what_padded_rows_teach(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(
        ("dropout = 0.1", "dropout = 0.0"),
        ("count = 1", "count = 0"),
        ("parallel_epochs = 1", "parallel_epochs = 4\nlr_warmup_steps = 0"),
    )
    made: list[int] = []
    original = stepping.pack
    choose = DirectionModel._choose_attention

    def spy(table: TokenDataset, indices: Any) -> Any:
        made.append(len(indices))
        return original(table, indices)

    monkeypatch.setattr(stepping, "pack", spy)
    losses = {}
    for how in ("padded", "packed"):
        monkeypatch.setattr(DirectionModel, "_choose_attention", choose if how == "packed" else lambda *_: False)
        go(path, tmp_path / how)
        events = map(json.loads, (tmp_path / how / "events.jsonl").read_text().splitlines())
        losses[how] = [event["loss"] for event in events if event["event"] == "step"]
        assert bool(made) == (how == "packed")
    assert losses["packed"] == pytest.approx(losses["padded"], rel=1e-4)
    assert losses["padded"][-1] < 0.9 * losses["padded"][0]


def test_a_model_whose_rows_see_each_other_is_not_packed(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some models ignore positions without an error; two rows are tried before any are packed."""
    forward = LlamaForCausalLM.forward

    def blind(self: Any, *arguments: Any, position_ids: Any = None, **settings: Any) -> Any:
        return forward(self, *arguments, **settings)

    monkeypatch.setattr(LlamaForCausalLM, "forward", blind)
    monkeypatch.setattr(DirectionModel, "_keeps_rows_apart", lambda self, alone: False)
    shown = go(write_recipe(), tmp_path / "run", overrides=("rounds.count=0",))
    assert "rows are padded: attention 'varlen' is not used: in this model packed rows would see each other" in shown


@pytest.mark.gpu
def test_flash_attention_keeps_packed_rows_apart(model_folder: Path) -> None:
    pytest.importorskip("flash_attn")
    table = TokenDataset.of(MADE, "cuda")
    found = []
    for how in ("sdpa", "flash_attention_2"):
        model = fresh(model_folder).to("cuda", torch.bfloat16)
        model.set_attn_implementation(how)
        model = adapters.add_adapters(model, {"en-es": Adapter(rank=4)}, 1)
        for parameter in adapters.parameters(model, "en-es").values():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator("cuda").manual_seed(1))
        adapters.activate(model, "en-es", train=True)
        batch = pack(table, range(7)) if how != "sdpa" else collate(table, range(7), 3)
        found.append(gradients(model, batch))
    (plain, grads), (flash, others) = found
    assert flash == pytest.approx(plain, rel=2e-2)
    for grad, other in zip(grads, others, strict=True):
        assert (grad - other).abs().mean() <= 2e-2 * grad.abs().max()
