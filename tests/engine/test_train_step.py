"""Batches, the optimizer step and decoding, each against a simpler way to the same result."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from roundtrip.engine.decoding import sample_next
from roundtrip.engine.generate import generate, length_limit
from roundtrip.engine.request import GenerationRequest, StopRule
from roundtrip.engine.train_step import StepSettings, loss_sum, train_step
from roundtrip.models import adapters, base_model, optimizer
from roundtrip.models.optimizer import Optimizer, lr_factor
from roundtrip.recipe.schema import Adapter, Generate, Train
from roundtrip.runtime.errors import ModelError
from roundtrip.tokens.batching import Batch, TokenDataset, collate, left_pad, step_batches, token_budget_batches
from roundtrip.tokens.prompt_template import TokenRow
from roundtrip.tokens.splice.splicing import IGNORE

NAMES = ["en-es", "es-en"]
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def rows(number: int, seed: int = 0) -> list[TokenRow]:
    random = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(number):
        size = int(torch.randint(4, 20, (), generator=random))
        made.append(TokenRow(torch.randint(5, 250, (size,), generator=random).tolist(), size // 2))
    return made


def batch_of(made: list[TokenRow], pad_id: int) -> Batch:
    return collate(TokenDataset.of(made), range(len(made)), pad_id)


@pytest.fixture
def two(model_folder: Path) -> Any:
    """The small model with two adapters whose B is not zero."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    two = adapters.add_adapters(model.requires_grad_(False), dict.fromkeys(NAMES, Adapter(rank=4, dropout=0.2)), 1)
    for name in NAMES:
        for parameter in adapters.parameters(two, name).values():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return two


@given(lengths=LENGTHS, budget=st.integers(1, 200))
def test_groups_hold_every_row_once_and_keep_the_budget(lengths: list[int], budget: int) -> None:
    groups = list(token_budget_batches(range(len(lengths)), lengths, budget))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget for group in groups)


@given(lengths=LENGTHS, per_step=st.integers(1, 9), seed=st.integers(0, 99))
def test_steps_hold_every_row_once(lengths: list[int], per_step: int, seed: int) -> None:
    made = step_batches(lengths, per_step, seed)
    assert sorted(i for group in made for i in group) == list(range(len(lengths)))
    assert sum(len(group) < per_step for group in made) <= 1
    assert made == step_batches(lengths, per_step, seed)


def test_neighbours_change_from_pass_to_pass() -> None:
    lengths = [10] * 64
    assert {frozenset(g) for g in step_batches(lengths, 8, 1)}.isdisjoint(
        {frozenset(g) for g in step_batches(lengths, 8, 2)}
    )


def test_collated_rows_are_padded_on_the_right_and_labelled_from_their_start() -> None:
    batch = batch_of([TokenRow([5, 6, 7], 1), TokenRow([8, 9, 10, 11, 12], 3)], pad_id=0)
    assert batch.ids_BT.tolist() == [[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.labels_BT.tolist() == [[IGNORE, 6, 7, IGNORE, IGNORE], [IGNORE] * 3 + [11, 12]]


def test_prompts_are_padded_on_the_left() -> None:
    ids, mask = left_pad([[5], [6, 7, 8]], pad_id=2)
    assert ids.tolist() == [[2, 2, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]


def test_loss_is_that_of_transformers(two: Any) -> None:
    batch = batch_of(rows(6), pad_id=3)
    adapters.activate(two, "en-es", train=False)
    plain = two(input_ids=batch.ids_BT, attention_mask=batch.inputs["attention_mask"], labels=batch.labels_BT).loss
    num_labels = (batch.labels_BT != IGNORE).sum()
    assert torch.allclose(loss_sum(two, batch) / num_labels, plain, rtol=1e-5)


def gradients(
    two: Any, name: str, made: list[TokenRow], max_tokens_per_microbatch: int
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and the gradients as the optimizer sees them, caught on their way."""
    adapters.activate(two, name, train=True)
    for module in two.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    adam = Optimizer(adapters.parameters(two, name), Train(lr=1e-9), 10)
    caught = catch(adam)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "MAX_GRAD_NORM", 1e9)
        settings = StepSettings(3, max_tokens_per_microbatch)
        result = train_step(two, adam, TokenDataset.of(made), range(len(made)), settings, seed=5)
    assert all(master.grad is None for master in adam._masters.values()), "nothing is held between steps"
    return result.loss, caught


def catch(adam: Optimizer) -> dict[str, torch.Tensor]:
    """Return what will hold the gradients, clipped, of each step as it is taken."""
    caught: dict[str, torch.Tensor] = {}

    def look(*arguments: Any) -> None:
        caught.update({name: master.grad.clone() for name, master in adam._masters.items()})

    adam._adam.register_step_pre_hook(look)
    return caught


def test_accumulated_is_the_whole_batch(two: Any) -> None:
    made = rows(12)
    whole_loss, whole = gradients(two, "en-es", made, 10_000)
    parts_loss, parts = gradients(two, "en-es", made, 24)
    assert parts_loss == pytest.approx(whole_loss, rel=1e-6)
    for key, gradient in whole.items():
        difference = (parts[key] - gradient).abs()
        scale = gradient.abs().max()
        assert difference.max() <= 1e-5 * scale and difference.mean() <= 1e-6 * scale, key


def snapshot(two: Any, part: str) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in two.named_parameters() if part in key}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_moves_one_adapter_and_nothing_else(model_folder: Path, name: str, dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype)
    before_hash = base_model.weights_hash(model)
    two = adapters.add_adapters(model.requires_grad_(False), dict.fromkeys(NAMES, Adapter(rank=4)), 1)
    (other,) = set(NAMES) - {name}
    adam = Optimizer(adapters.parameters(two, name), Train(lr=1e-2), 10)
    for number in range(3):
        own, foreign = snapshot(two, f".{name}."), snapshot(two, f".{other}.")
        adapters.activate(two, name, train=True)
        train_step(two, adam, TokenDataset.of(rows(8, number)), range(8), StepSettings(3, 64), seed=number)
        adapters.freeze(two)
        assert any(not torch.equal(value, own[key]) for key, value in snapshot(two, f".{name}.").items())
        assert all(torch.equal(value, foreign[key]) for key, value in snapshot(two, f".{other}.").items())
    assert base_model.weights_hash(two) == before_hash
    moved = snapshot(two, f".{name}.")
    assert {str(value.dtype) for value in moved.values()} == {str(dtype)}


def test_the_hash_sees_one_changed_bit(two: Any) -> None:
    before = base_model.weights_hash(two)
    weight = next(p for n, p in two.named_parameters() if ".lora_" not in n)
    with torch.no_grad():
        weight.view(-1)[7] = torch.nextafter(weight.view(-1)[7], torch.tensor(9.0))
    assert base_model.weights_hash(two) != before


def test_first_layer_learns_under_gradient_checkpointing(model_folder: Path) -> None:
    plain: dict[str, torch.Tensor] = {}
    for checkpointing in (False, True):
        model = AutoModelForCausalLM.from_pretrained(model_folder).requires_grad_(False)
        two = adapters.add_adapters(model, dict.fromkeys(NAMES, Adapter(rank=4)), 1)
        for parameter in adapters.parameters(two, "en-es").values():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        if checkpointing:
            base_model.checkpoint_activations(two)
        _, found = gradients(two, "en-es", rows(6), 1000)
        first = {key: value for key, value in found.items() if "layers.0." in key}
        assert first and all(value.abs().max() > 0 for value in first.values())
        for key, value in found.items():
            assert torch.allclose(value, plain.get(key, value), rtol=1e-4, atol=1e-7)
        plain = found


def test_small_updates_survive_in_bfloat16() -> None:
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    adam = Optimizer({"w": weight}, Train(lr=1e-4, lr_warmup_steps=0), 10**9)
    for _ in range(60):
        weight.grad = torch.ones_like(weight)
        adam.step(0.5)
    # One such update is below half a step of bfloat16 at 1.0 and would be rounded away each time.
    assert float(weight.detach()[0]) == pytest.approx(1.0 - 60e-4, abs=4e-3)
    assert float(weight.detach()[0]) < 1.0


def test_optimizer_state_goes_on_where_it_stood() -> None:
    def fresh() -> tuple[torch.nn.Parameter, Optimizer]:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 8).to(torch.bfloat16))
        return weight, Optimizer({"w": weight}, Train(lr=1e-2, weight_decay=0.1), 20)

    def go(weight: torch.nn.Parameter, adam: Optimizer, numbers: range) -> None:
        for number in numbers:
            weight.grad = torch.full_like(weight, 0.1 * (number + 1))
            adam.step(0.5)

    whole_weight, whole = fresh()
    go(whole_weight, whole, range(9))
    first_weight, first = fresh()
    go(first_weight, first, range(4))
    saved = {key: value.clone() for key, value in first.state().items()}
    second_weight, second = fresh()
    second.restore(saved, 4)
    assert torch.equal(second_weight, first_weight)
    go(second_weight, second, range(4, 9))
    assert torch.equal(second_weight, whole_weight)
    assert all(torch.equal(value, second.state()[key]) for key, value in whole.state().items())


def test_gradients_are_clipped_and_a_broken_one_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    adam = Optimizer({"w": weight}, Train(), 10)
    weight.grad = torch.full((4,), 50.0)
    caught = catch(adam)
    assert adam.step(1.0) == pytest.approx(100.0)
    assert float(caught["w"].norm()) == pytest.approx(1.0, rel=1e-4)
    before = weight.detach().clone()
    weight.grad = torch.tensor([1.0, float("nan"), 1.0, 1.0])
    assert not math.isfinite(adam.step(1.0))
    assert torch.equal(weight, before)


def test_the_learning_rate_rises_and_falls_to_a_tenth() -> None:
    recipe = Train(lr_warmup_steps=4)
    rise = [lr_factor(recipe, number, 104) for number in range(4)]
    assert rise == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert lr_factor(recipe, 4, 104) == 1.0
    assert lr_factor(recipe, 54, 104) == pytest.approx(0.55)
    assert lr_factor(recipe, 104, 104) == lr_factor(recipe, 999, 104) == pytest.approx(0.1)


@pytest.mark.parametrize("name", NAMES)
def test_merged_scratch_is_the_adapter(two: Any, model_folder: Path, name: str) -> None:
    merged_copy = base_model.merged_copy_of(AutoModelForCausalLM.from_pretrained(model_folder), torch.device("cpu"))
    batch = batch_of(rows(5), pad_id=3)
    with torch.no_grad():
        for chosen in (name, NAMES[0], name):
            adapters.write_merged(merged_copy, two, chosen)
        adapters.activate(two, name, train=False)
        merged = merged_copy(batch.ids_BT, attention_mask=batch.inputs["attention_mask"]).logits
        through_peft = two(batch.ids_BT, attention_mask=batch.inputs["attention_mask"]).logits
        plain = AutoModelForCausalLM.from_pretrained(model_folder)(
            batch.ids_BT, attention_mask=batch.inputs["attention_mask"]
        ).logits
        assert torch.allclose(merged, through_peft, atol=1e-4)
        assert not torch.allclose(merged, plain, atol=1e-2)
        adapters.write_merged(merged_copy, two, None)
        assert torch.equal(merged_copy(batch.ids_BT, attention_mask=batch.inputs["attention_mask"]).logits, plain)


def _llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=True)
    )  # fmt: skip


def _gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=4, n_positions=96, initializer_range=0.3,
                   bos_token_id=None, eos_token_id=None, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    )  # fmt: skip


def _sliding() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(
        MistralConfig(vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                      num_key_value_heads=2, sliding_window=6, initializer_range=0.3)
    )  # fmt: skip


MODELS = {"RoPE, tied head": _llama, "learned positions": _gpt2, "sliding window": _sliding}


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_is_that_of_transformers_row_by_row(kind: str) -> None:
    torch.manual_seed(4)
    model = MODELS[kind]().eval().requires_grad_(False)
    prompts = [row.ids[: 2 + number] for number, row in enumerate(rows(9, seed=2))]
    limits = [3 + 2 * (number % 7) for number in range(9)]
    stops = list(range(100, 180))
    request = GenerationRequest(prompts, limits, Generate(max_tokens_per_batch=80), StopRule(stops), 1)
    found = generate(model, request)
    for prompt, limit, ids_found, ended in zip(prompts, limits, found.lists(), found.finished_B.tolist(), strict=True):
        config = GenerationConfig(max_new_tokens=limit + 1, do_sample=False, eos_token_id=stops, pad_token_id=0)
        ids = torch.tensor([prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        new = whole[0, len(prompt) :].tolist()
        finished = new[-1] in stops
        assert ids_found == (new[:-1] if finished else new[:limit])
        assert ended == finished
    assert set(found.finished_B.tolist()) == {True, False}, "the test wants both kinds"


def test_a_stop_id_that_holds_text_stays() -> None:
    torch.manual_seed(4)
    model = _llama().eval()
    prompts, stops = [row.ids for row in rows(9)], list(range(100, 180))

    def run(stop: StopRule) -> list[tuple[list[int], bool]]:
        found = generate(model, GenerationRequest(prompts, [20] * 9, Generate(), stop, 0))
        return list(zip(found.lists(), found.finished_B.tolist(), strict=True))

    bare, kept = run(StopRule(stops)), run(StopRule([], text_stop_ids=stops))
    assert any(finished for _, finished in bare)
    for (ids, finished), (longer, also) in zip(bare, kept, strict=True):
        assert finished == also and longer[: len(ids)] == ids
        assert len(longer) == len(ids) + finished and (not finished or longer[-1] in stops)


def test_layers_that_cannot_be_merged_are_refused() -> None:
    tied = _llama()
    with pytest.raises(ModelError, match=r"'lm_head' shares its weight with the embedding"):
        adapters.add_adapters(tied, dict.fromkeys(NAMES, Adapter(targets=("q_proj", "lm_head"))), 1)
    with pytest.raises(ModelError, match="only linear layers"):
        adapters.add_adapters(_llama(), dict.fromkeys(NAMES, Adapter(targets=("embed_tokens",))), 1)


def test_gpt2_layers_are_merged_transposed() -> None:
    model = _gpt2().eval()
    merged_copy = base_model.merged_copy_of(model, torch.device("cpu"))
    two = adapters.add_adapters(model, dict.fromkeys(NAMES, Adapter(rank=2, targets=("c_attn",))), 1)
    for parameter in adapters.parameters(two, "en-es").values():
        torch.nn.init.normal_(parameter, std=0.1)
    adapters.write_merged(merged_copy, two, "en-es")
    adapters.activate(two, "en-es", train=False)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.allclose(merged_copy(ids).logits, two(ids).logits, atol=1e-4)


def test_sampling_follows_its_seed_and_not_its_batch_mates() -> None:
    model = _llama().eval()
    prompts = [row.ids for row in rows(6)]
    hot = Generate(temperature=1.5)

    def sample(seed: int) -> list[list[int]]:
        return generate(model, GenerationRequest(prompts, [12] * 6, hot, StopRule([1]), seed)).lists()

    assert sample(1) == sample(1) != sample(2)


@pytest.mark.parametrize(
    ("settings_", "allowed"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.4}, {0}),
        ({"top_p": 0.81}, {0, 1, 2}),
    ],
)
def test_sampling_frequencies(settings_: dict[str, Any], allowed: set[int]) -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().repeat(20_000, 1)
    picked = Counter(
        sample_next(logits, Generate(temperature=1.0, **settings_), torch.Generator().manual_seed(0)).tolist()
    )
    assert set(picked) == allowed
    total = sum(float(probabilities[i]) for i in allowed)
    for token in allowed:
        assert picked[token] / 20_000 == pytest.approx(float(probabilities[token]) / total, abs=0.015)


def test_a_low_temperature_sharpens() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().repeat(20_000, 1)
    picked = Counter(sample_next(logits, Generate(temperature=0.5), torch.Generator().manual_seed(0)).tolist())
    assert picked[0] / 20_000 == pytest.approx(0.25 / (0.25 + 0.09 + 0.04), abs=0.015)
    assert torch.equal(sample_next(logits[:3], Generate(), torch.Generator()), torch.zeros(3, dtype=torch.int64))


@given(number=st.integers(0, 500))
@settings(max_examples=20)
def test_length_limits_grow_with_the_source(number: int) -> None:
    assert length_limit(number, Generate(max_length_ratio=1.5)) == int(1.5 * number) + 10


def test_dropout_is_off_when_not_training(two: Any) -> None:
    batch = batch_of(rows(4), pad_id=3)
    adapters.activate(two, "en-es", train=True)
    with torch.no_grad():
        assert not torch.equal(loss_sum(two, batch), loss_sum(two, batch)), "dropout is on in training"
        adapters.freeze(two)
        assert torch.equal(loss_sum(two, batch), loss_sum(two, batch))


def test_each_adapter_starts_from_its_own_seed(model_folder: Path) -> None:
    made = []
    for names in (NAMES, list(reversed(NAMES))):
        torch.manual_seed(len(made))
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        two = adapters.add_adapters(model, dict.fromkeys(names, Adapter(rank=4)), 7)
        made.append({name: list(adapters.parameters(two, name).values()) for name in NAMES})
    for name in NAMES:
        assert all(torch.equal(a, b) for a, b in zip(made[0][name], made[1][name], strict=True))
    assert not torch.equal(made[0]["en-es"][0], made[0]["es-en"][0])
