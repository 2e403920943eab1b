"""Families of models with random weights: loaded, generated with, trained, saved and exported by what each supports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel

from benchmarks import families
from roundtrip.engine import backend
from roundtrip.engine.backend import Backend, choose_backend
from roundtrip.engine.generate import generate
from roundtrip.engine.request import GenerationRequest, StopRule
from roundtrip.models import adapters, attention, base_model
from roundtrip.recipe.schema import Adapter, Generate, Model
from roundtrip.runtime.errors import ModelError

# How each generates: with which attention, and by whose loop.
EXPECTED = {
    "gemma2": ("eager", "native"),  # no sdpa, since its attention has a soft cap
    "bloom": ("eager", "native"),  # no positions: ALiBi
    "gpt_neo": ("eager", "native"),
    "mixtral": ("sdpa", "native"),  # stacked experts
    "falcon": ("sdpa", "native"),  # linear layers of a class of its own
    "roc_bert": ("sdpa", "native"),  # adds in place to what a layer returns
    "mamba": ("eager", "transformers"),  # recurrent states
    "rwkv": ("eager", "transformers"),  # no mask, so that padding would be read
}


@pytest.mark.parametrize("family", EXPECTED)
def test_a_family_is_used_by_what_it_supports(family: str) -> None:
    row = families.try_family(family)
    assert row["fault"] is None
    assert (row["attention"], row["engine"]) == EXPECTED[family]
    assert any("'eager'" in note for note in row["notes"]) == (row["attention"] == "eager")
    assert any("decoding loop" in note for note in row["notes"]) == (row["engine"] == "transformers")
    assert row["mixes_lengths"] == (family != "rwkv")


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in families.families() if family not in EXPECTED])
def test_every_family_works_or_says_why_not(family: str) -> None:
    fault = families.try_family(family)["fault"]
    known = {row["family"]: row["fault"] for row in families.kept()["rows"]}
    assert (fault is None) == (known[family] is None), fault


def test_prompts_that_must_not_be_padded_are_generated_as_alone() -> None:
    model = families.small_model("rwkv").eval()
    prompts, limits = [[5, 6, 7], [8, 9, 10, 11, 12], [7, 6, 5], [4] * 9], [4, 6, 5, 3]
    request = GenerationRequest(prompts, limits, Generate(temperature=0.0), StopRule([2]), seed=1)
    alone = [generate(model, request.select([number], 1)).lists()[0] for number in range(len(prompts))]
    assert generate(model, request).lists() == alone


def test_a_model_that_sees_what_follows_is_refused() -> None:
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config.is_decoder = False
    with pytest.raises(ModelError, match="not a causal language model"):
        choose_backend(BertLMHeadModel(config).eval(), Generate(), pad_id=0)


@pytest.mark.parametrize("family", ["gemma2", "bloom"])
def test_a_recipe_cannot_ask_for_an_attention_that_a_model_has_not(family: str, tmp_path: Path) -> None:
    families.small_model(family).save_pretrained(tmp_path)
    families.tokenizer().save_pretrained(tmp_path)
    loaded = base_model.load(Model(path=str(tmp_path), dtype="float32", device="cpu", attention="eager"), tmp_path)
    assert loaded.attention == "eager"
    with pytest.raises(ModelError, match=r"attention 'sdpa' cannot be used(.|\n)*use 'auto' or 'eager'"):
        attention.choose(loaded.model, "sdpa")


@pytest.mark.parametrize(("family", "left_out"), [("mixtral", "gate"), ("mamba", "out_proj"), ("llama", None)])
def test_all_linear_leaves_out_what_peft_would_take_for_something_else(family: str, left_out: str | None) -> None:
    model: Any = families.small_model(family)
    adapted = adapters.add_adapters(model, {"en-es": Adapter(rank=2), "es-en": Adapter(rank=2)}, seed=1)
    names = {path.rpartition(".")[2] for path in adapters.lora_layers(adapted)}
    assert names and left_out not in names
    for layer in adapters.lora_layers(adapted).values():
        assert {"en-es", "es-en"} == set(layer.lora_A)
        assert isinstance(layer.get_base_layer(), torch.nn.Linear)


def test_the_table_of_models_is_that_of_the_kept_result() -> None:
    assert families.TABLE.read_text(encoding="utf-8") == families.page(families.kept())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_in_low_precision_keeps_our_loop(model_folder: Path, dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation="sdpa", dtype=dtype).eval()
    assert choose_backend(model, Generate(), 3) == Backend(native=True)


def test_rounding_is_told_from_faults_in_low_precision() -> None:
    """A model that is sure differs by much in logits that do not matter."""
    generator = torch.Generator().manual_seed(1)
    expected = (10 * torch.randn(5, 300, generator=generator)).bfloat16()
    noise = torch.where(expected < 0, torch.randn(5, 300, generator=generator), 0.1).bfloat16()
    assert float((expected + noise - expected).abs().max() / expected.abs().max()) > 0.05
    low, full = torch.nn.Linear(1, 1, dtype=torch.bfloat16), torch.nn.Linear(1, 1)
    assert backend._difference(low, expected + noise, expected) is None
    assert backend._difference(low, (expected + noise).float(), expected.float()) is None, "as generate returns them"
    assert "nats" in str(backend._difference(low, expected.roll(1, 0), expected))
    assert "logits differ" in str(backend._difference(full, (expected + noise).float(), expected.float()))


def test_engines_are_tried_on_tokens_that_a_model_has_seen(model_folder: Path) -> None:
    """The first tokens of a vocabulary are often special ones that were never trained, and chaos follows them."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation="sdpa").eval()
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, ids, __: seen.extend(ids[0].flatten().tolist()))
    size = model.get_input_embeddings().weight.shape[0]
    choose_backend(model, Generate(), 3)
    assert len(set(seen)) >= 6 and min(set(seen) - {3}) >= size // 4
