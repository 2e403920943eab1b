"""What is computed in fewer operations is what the library computes: LoRA in one, packed weights, our attentions."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from roundtrip.engine.generate import generate
from roundtrip.engine.request import GenerationRequest, StopRule
from roundtrip.engine.train_step import loss_sum
from roundtrip.models import adapters, attention, fused_lora, prepacked_linear
from roundtrip.models import base_model as bases
from roundtrip.models.fused_lora import FusedLinear
from roundtrip.models.prepacked_linear import PackedLinear
from roundtrip.recipe.schema import Adapter, Generate
from roundtrip.runtime.errors import ModelError
from roundtrip.tokens.batching import TokenDataset, collate, pack
from roundtrip.tokens.prompt_template import TokenRow
from tests.conftest import WriteRecipe
from tests.engine.test_decoding import ALL, LIMITS, PROMPTS, STOPS, model_of, written
from tests.engine.test_train_step import rows
from tests.models.test_adapters import fresh
from tests.runs import go


def plain(model: nn.Module) -> None:
    """Take the fused layers away."""
    for layer in model.modules():
        if isinstance(layer, FusedLinear):
            layer.__class__ = Linear


def of(folder: Path, **settings: Any) -> Any:
    model = adapters.add_adapters(fresh(folder), {name: Adapter(rank=4, **settings) for name in ("en-es", "es-en")}, 1)
    for number, name in enumerate(("en-es", "es-en")):
        for parameter in adapters.parameters(model, name).values():
            random = torch.Generator().manual_seed(number)
            parameter.data = torch.randn(parameter.shape, generator=random).to(parameter.dtype) * 0.2
    return model


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each fused product."""
    found: list[int] = []
    original = fused_lora._Product.apply

    def spy(*arguments: Any) -> Any:
        found.append(1)
        return original(*arguments)

    monkeypatch.setattr(fused_lora._Product, "apply", spy)
    return found


def gradients(model: Any, name: str) -> tuple[float, dict[str, torch.Tensor]]:
    adapters.activate(model, name, train=True)
    torch.manual_seed(3)
    loss = loss_sum(model, collate(TokenDataset.of(rows(5)), range(5), 3))
    loss.backward()
    found = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), found


@pytest.mark.parametrize("method", ["lora", "rslora"])
@pytest.mark.parametrize("bias", [False, True])
def test_fused_lora_is_pefts_in_loss_and_gradients(
    model_folder: Path, taken: list[int], method: str, bias: bool
) -> None:
    model = of(model_folder, method=method)
    if bias:
        for layer in model.modules():
            if isinstance(layer, Linear):
                base: Any = layer.get_base_layer()
                base.bias = nn.Parameter(torch.randn(base.out_features), requires_grad=False)
    found = {name: gradients(model, name) for name in ("en-es", "es-en")}
    assert len(taken) == 2 * sum(isinstance(layer, Linear) for layer in model.modules()) > 0
    plain(model)
    for name, (loss, own) in found.items():
        expected_loss, expected = gradients(model, name)
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        assert own.keys() == expected.keys() and all(f".{name}." in key for key in own)
        for key, grad in expected.items():
            assert (own[key] - grad).abs().max() <= 1e-5 * grad.abs().max(), key
    assert len(taken) == 2 * sum(isinstance(layer, Linear) for layer in model.modules())


@pytest.mark.parametrize(
    "settings", [{"dropout": 0.5}, {"method": "dora"}, {"method": "rsdora"}], ids=["dropout", "dora", "rsdora"]
)
def test_what_is_more_than_a_sum_stays_with_peft(
    model_folder: Path, taken: list[int], settings: dict[str, Any]
) -> None:
    model = of(model_folder, **settings)
    loss, found = gradients(model, "en-es")
    plain(model)
    expected_loss, expected = gradients(model, "en-es")
    assert not taken and loss == expected_loss
    assert all(torch.equal(found[key], grad) for key, grad in expected.items())


def test_evaluation_precision_and_a_switched_off_adapter_stay_with_peft(model_folder: Path, taken: list[int]) -> None:
    model = of(model_folder)
    batch = collate(TokenDataset.of(rows(3)), range(3), 3)
    adapters.activate(model, "en-es", train=False)
    with torch.no_grad():
        model(input_ids=batch.ids_BT)
    with model.disable_adapter():
        loss_sum(model, batch)
    mixed = adapters.add_adapters(fresh(model_folder).to(torch.bfloat16), {"en-es": Adapter(rank=4)}, 1)
    for parameter in adapters.parameters(mixed, "en-es").values():
        parameter.data = parameter.data.float()
    adapters.activate(mixed, "en-es", train=True)
    loss_sum(mixed, batch).backward()
    assert not taken


def test_fused_lora_in_bfloat16_is_as_near_to_the_truth_as_pefts(model_folder: Path) -> None:
    model = of(model_folder)
    _, truth = gradients(model, "en-es")
    model = model.to(torch.bfloat16)
    _, own = gradients(model, "en-es")
    plain(model)
    _, pefts = gradients(model, "en-es")
    far = [sum(float((one[key] - grad).norm() / grad.norm()) for key, grad in truth.items()) for one in (own, pefts)]
    assert 0 < far[0] <= 1.1 * far[1]


# ---------------------------------------------------------------------------------------------- packed weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_is_the_layer_and_gives_its_weight_back(dtype: torch.dtype) -> None:
    if not prepacked_linear.is_supported(dtype):
        pytest.skip("this machine has no such operation")
    torch.manual_seed(1)
    layer = nn.Linear(64, 96).to(dtype).requires_grad_(False)
    one = PackedLinear(layer)
    inputs = torch.randn(2, 7, 64).to(dtype)
    assert torch.equal(one.weight, layer.weight)
    assert torch.allclose(one(inputs), layer(inputs), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-3)
    new = torch.randn(96, 64)
    prepacked_linear.write_weight(one, new)
    prepacked_linear.write_weight(layer, new)
    assert torch.equal(one.weight, layer.weight) and torch.equal(layer.weight, new.to(dtype))
    assert torch.allclose(one(inputs).float(), layer(inputs).float(), rtol=2e-2, atol=1e-1)


@pytest.mark.parametrize("kind", ALL)
def test_a_packed_model_writes_the_same_and_comes_back_whole(kind: str) -> None:
    model = model_of(kind)
    expected = written(model, Generate(max_tokens_per_batch=80))
    other = copy.deepcopy(model)
    prepacked_linear.prepack(other)
    assert any(isinstance(layer, PackedLinear) for layer in other.modules()) == prepacked_linear.is_supported(
        torch.float32
    )
    assert written(other, Generate(max_tokens_per_batch=80)) == expected
    assert written(other, Generate(max_tokens_per_batch=80, engine="transformers")) == expected
    prepacked_linear.restore_linear(other)
    assert not any(isinstance(layer, PackedLinear) for layer in other.modules())
    before, after = model.state_dict(), other.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[key], value) for key, value in before.items())
    if model.config.tie_word_embeddings:
        assert other.get_output_embeddings().weight is other.get_input_embeddings().weight


def test_a_machine_without_the_operation_keeps_plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Any, weight: torch.Tensor) -> None:
        raise RuntimeError("mkldnn is not built in")

    prepacked_linear.is_supported.cache_clear()
    monkeypatch.setattr(PackedLinear, "write", missing)
    model = model_of("RoPE, tied head")
    prepacked_linear.prepack(model)
    assert not any(isinstance(layer, PackedLinear) for layer in model.modules())
    prepacked_linear.is_supported.cache_clear()


def test_the_scratch_copy_is_packed_and_what_is_merged_is_plain(model_folder: Path) -> None:
    model = fresh(model_folder)
    merged_copy: Any = bases.merged_copy_of(model, torch.device("cpu"))
    one = adapters.add_adapters(model, {"en-es": Adapter(rank=4)}, 1)
    for parameter in adapters.parameters(one, "en-es").values():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
    adapters.activate(one, "en-es", train=False)
    adapters.write_merged(merged_copy, one, "en-es")
    ids = torch.tensor([rows(1)[0].ids])
    with torch.no_grad():
        expected = one(input_ids=ids).logits
        assert torch.allclose(merged_copy(input_ids=ids).logits, expected, atol=1e-3)
        prepacked_linear.restore_linear(merged_copy)
        assert torch.allclose(merged_copy(input_ids=ids).logits, expected, atol=1e-3)


# ---------------------------------------------------------------------------------------------- attentions


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("mask", ["none", "bool", "numbers", "by row and head"])
def test_decoding_attention_is_sdpa(heads: tuple[int, int], mask: str) -> None:
    torch.manual_seed(1)
    module: Any = nn.Module()
    module.num_key_value_groups, module.is_causal = heads[0] // heads[1], True
    query, key, value = (torch.randn(3, number, length, 8) for number, length in zip(
        (heads[0], heads[1], heads[1]), (1, 9, 9), strict=True))  # fmt: skip
    seen = torch.ones(3, 1, 1, 9, dtype=torch.bool)
    seen[0, :, :, :4] = seen[1, :, :, :1] = False
    given = {
        "none": None,
        "bool": seen,
        "numbers": torch.zeros(3, 1, 1, 9).masked_fill(~seen, torch.finfo(torch.float32).min),
        "by row and head": seen[:, :, 0, None],
    }[mask]
    found, _ = attention.decode(module, query, key, value, given, scaling=0.3)
    expected, _ = sdpa_attention_forward(module, query, key, value, given, scaling=0.3)
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-6)


def test_decoding_takes_our_attention_for_sdpa_alone_and_puts_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("RoPE, tied head")
    for name, wanted in (("sdpa", attention._DECODE), ("eager", "eager")):
        attention.choose(model, name)
        with attention.decode_attention(model):
            assert model.config._attn_implementation == wanted
        assert model.config._attn_implementation == name
    attention.choose(model, "sdpa")
    shares: list[int] = []
    original = attention._masked
    monkeypatch.setattr(attention, "_masked", lambda *given: [shares.append(1), original(*given)][1])
    generate(model, GenerationRequest(PROMPTS, LIMITS, Generate(), StopRule(STOPS), 1))
    assert shares, "a batch of prompts of many lengths decodes by it"


def plain_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rows: Any, **settings: Any
) -> torch.Tensor:
    """Compute what the documentation of torch's `varlen_attn` says, row by row."""
    bounds, same_bounds, longest, same_longest = rows
    assert same_bounds is bounds and bounds.dtype == torch.int32 and same_longest == longest
    assert query.shape[1] == key.shape[1] or settings["enable_gqa"]
    left, right = settings["window_size"]
    assert right == 0, "causal"
    parts = []
    for start, end in itertools.pairwise(bounds.tolist()):
        assert end - start <= longest
        back = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (back >= 0) & ((back <= left) if left >= 0 else True)
        heads = (tensor[start:end].transpose(0, 1)[None].float() for tensor in (query, key, value))
        mixed = nn.functional.scaled_dot_product_attention(
            *heads, attn_mask=seen, scale=settings["scale"], enable_gqa=settings["enable_gqa"]
        )
        parts.append(mixed[0].transpose(0, 1))
    return torch.cat(parts).to(query.dtype)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_packed_rows_on_a_gpu_give_torch_the_rows_that_ours_computes(
    heads: tuple[int, int], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", plain_varlen)
    generator = torch.Generator().manual_seed(1)
    tensors = [
        torch.randn(1, number, 9, 8, generator=generator).bfloat16() for number in (heads[0], heads[1], heads[1])
    ]
    bounds = torch.tensor([0, 4, 5, 9], dtype=torch.int32)
    module = nn.Module().eval()
    expected, _ = attention.varlen(
        module, *tensors, None, scaling=0.3, cu_seq_lens_q=bounds, max_length_q=4, sliding_window=window
    )
    packed = tuple(tensor[0].transpose(0, 1) for tensor in tensors)
    found = attention._flash_varlen(module, packed, (bounds, 4), window, {"scaling": 0.3, "dropout": 0.5})  # type: ignore[arg-type]
    assert found.shape == expected.shape == (1, 9, heads[0], 8)
    assert (found - expected).abs().max() < 0.02


def test_what_the_kernels_of_a_gpu_do_not_compute_is_refused() -> None:
    some: Any = tuple(torch.zeros(3, 2, 4) for _ in range(3))
    rows: Any = (torch.tensor([0, 3], dtype=torch.int32), 3)
    with pytest.raises(ValueError, match="in float16 or bfloat16, not in torch.float32"):
        attention._flash_varlen(nn.Module(), some, rows, None, {})
    half: Any = tuple(tensor.bfloat16() for tensor in some)
    with pytest.raises(ValueError, match="no dropout of attention weights"):
        attention._flash_varlen(nn.Module().train(), half, rows, None, {"dropout": 0.1})


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["RoPE, tied head", "sliding window"])
def test_packed_rows_on_a_gpu_are_padded_ones(kind: str) -> None:
    """Gradients of packed rows by torch's FlashAttention kernels are those of padded rows by sdpa."""
    table = TokenDataset.of(
        [TokenRow([5 + place % 90 for place in range(size)], size // 2) for size in (40, 7, 30)], "cuda"
    )
    results = []
    for name in ("sdpa", "varlen"):
        model = model_of(kind).to("cuda", torch.bfloat16).requires_grad_(True)
        attention.choose(model, name)
        batch = pack(table, range(3)) if name == "varlen" else collate(table, range(3), 0)
        loss = loss_sum(model, batch)
        loss.backward()
        results.append((float(loss.detach()), [parameter.grad for parameter in model.parameters()]))
    (padded, expected), (packed, found) = results
    assert packed == pytest.approx(padded, rel=2e-2)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().mean() <= 2e-2 * other.abs().max()


def test_an_attention_that_a_model_cannot_have_is_refused() -> None:
    model = model_of("RoPE, tied head")
    model.config.attention_chunk_size = 8
    with pytest.raises(ModelError, match="chunked attention"):
        attention.choose(model, "varlen")
    module = nn.Module()
    some = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="supports none of"):
        attention.varlen(module, some, some, some, None, softcap=30.0)
    bounds: Any = {"cu_seq_lens_q": torch.tensor([0, 3]), "max_length_q": 3}
    with pytest.raises(ValueError, match="masks them otherwise"):
        attention.varlen(module, some, some, some, attention_mask=torch.zeros(1, 1, 3, 3), **bounds)
    narrow, _ = attention.varlen(module, some, some, some, attention_mask=torch.tensor(1), **bounds)
    assert narrow.shape == (1, 3, 2, 4)
    with pytest.raises(ModelError, match="no_such"):
        attention.choose(model, "no_such")


def test_a_window_that_stands_in_the_mask_alone_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models tell their attention nothing of it; packed rows get it all the same."""
    model = model_of("sliding window")
    long = [TokenRow([5 + place % 90 for place in range(40)], 1), TokenRow([7] * 30, 1)]
    alone = [model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0] for row in long]
    original = attention.varlen

    def deaf(*arguments: Any, sliding_window: Any = None, **given: Any) -> Any:
        return original(*arguments, **given)

    for function in (original, deaf):
        AttentionInterface.register(attention.VARLEN, function)
        attention.choose(model, "varlen")
        batch = pack(TokenDataset.of(long), [0, 1])
        found = model(input_ids=batch.ids_BT, use_cache=False, **batch.inputs).logits[0]
        assert torch.allclose(found, torch.cat(alone), atol=1e-4)
        # Without padding and bounds, too.
        plain_row = model(input_ids=torch.tensor([long[0].ids]), use_cache=False).logits[0]
        assert torch.allclose(plain_row, alone[0], atol=1e-4)
    AttentionInterface.register(attention.VARLEN, original)


def test_a_model_that_fails_on_varlen_trains_padded_and_the_run_says_so(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **given: Any) -> Any:
        raise TypeError("'NoneType' object is not subscriptable")

    AttentionInterface.register(attention.VARLEN, broken)
    try:
        shown = go(write_recipe(), tmp_path / "run")
        assert "rows are padded: attention 'varlen' is not used: 'NoneType' object is not subscriptable" in shown
        with pytest.raises(ModelError, match="cannot be used with this model: 'NoneType'"):
            go(write_recipe(), tmp_path / "asked", overrides=("model.attention=varlen",))
    finally:
        AttentionInterface.register(attention.VARLEN, attention.varlen)
    with pytest.raises(ModelError, match="cannot change its attention"):
        model = model_of("RoPE, tied head")
        monkeypatch.setattr(type(model), "set_attn_implementation", lambda self, name: None)
        attention.choose(model, "eager")
    go(write_recipe(), tmp_path / "fixed")  # auto takes what the model has
