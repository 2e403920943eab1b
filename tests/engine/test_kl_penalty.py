"""The KL penalty of a train step, against the same computed by hand from all logits of both models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from roundtrip.engine.kl_penalty import KLPenalty
from roundtrip.engine.train_step import StepSettings, loss_sum, train_step
from roundtrip.models import adapters, attention
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe.schema import Adapter, Train
from roundtrip.tokens.batching import IGNORE, TokenDataset, collate
from roundtrip.tokens.prompt_template import TokenRow
from tests.engine.test_train_step import rows

Gradients = dict[str, torch.Tensor]


@pytest.fixture
def model(model_folder: Path) -> Any:
    """The small model with two adapters, of which the first is not zero."""
    base = AutoModelForCausalLM.from_pretrained(model_folder).requires_grad_(False)
    model = adapters.add_adapters(base, dict.fromkeys(["en-es", "es-en"], Adapter(rank=4)), 1)
    for parameter in adapters.parameters(model, "en-es").values():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
    return model


def step_gradients(model: Any, dataset: TokenDataset, **settings: Any) -> tuple[float, Gradients]:
    """Return loss and gradients of one step in small microbatches; the step itself is not taken."""
    adapters.activate(model, "en-es", train=True)
    model.eval()
    parameters = adapters.parameters(model, "en-es")
    gradients: Gradients = {}

    class Recorder(Optimizer):
        def step(self, scale: float, **others: Any) -> float:
            gradients.update({name: p.grad.clone() * scale for name, p in parameters.items()})
            self.zero_grad()
            return 1.0

    step_settings = StepSettings(pad_id=0, max_tokens_per_microbatch=60, **settings)
    optimizer = Recorder(parameters, Train(), 9)
    result = train_step(model, optimizer, dataset, range(len(dataset)), step_settings, seed=1)
    return result.loss, gradients


@pytest.mark.parametrize("packed", [False, True])
def test_the_penalty_is_the_divergence_from_the_base_on_the_targets(model: Any, packed: bool) -> None:
    dataset = TokenDataset.of(rows(5, seed=8))
    penalty = KLPenalty(TokenDataset.of([TokenRow(row.ids[2:], 1) for row in rows(5, seed=9)]), 0.7)
    attention.choose(model, "varlen" if packed else "eager")
    loss, gradients = step_gradients(model, dataset, kl_penalty=penalty, packed=packed)

    attention.choose(model, "eager")
    adapters.activate(model, "en-es", train=True)
    model.eval()
    batch, texts = collate(dataset, range(5), 0), collate(penalty.dataset, range(5), 0)
    keep_BT, _ = texts.predictions()
    adapted = model(input_ids=texts.ids_BT, **texts.inputs).logits[keep_BT].float().log_softmax(-1)
    with torch.no_grad(), model.disable_adapter():
        base = model(input_ids=texts.ids_BT, **texts.inputs).logits[keep_BT].float().log_softmax(-1)
    divergence = (base.exp() * (base - adapted)).sum()
    assert divergence.item() > 1.0
    cross_entropy = loss_sum(model, batch) / int((batch.labels_BT != IGNORE).sum())
    assert loss == pytest.approx(cross_entropy.item(), rel=1e-4), "the reported loss is without the penalty"
    parameters = adapters.parameters(model, "en-es")
    for parameter in parameters.values():
        parameter.grad = None
    (cross_entropy + 0.7 * divergence / int(keep_BT.sum())).backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, parameters[name].grad, rtol=1e-3, atol=1e-5)


def test_an_adapter_that_changes_nothing_has_no_penalty(model: Any) -> None:
    for name, parameter in adapters.parameters(model, "en-es").items():
        if ".lora_B." in name:
            torch.nn.init.zeros_(parameter)
    dataset = TokenDataset.of(rows(4, seed=3))
    penalty = KLPenalty(TokenDataset.of([TokenRow(row.ids, 0) for row in rows(4)]), 5.0)
    _, without = step_gradients(model, dataset)
    _, with_penalty = step_gradients(model, dataset, kl_penalty=penalty)
    for name, gradient in without.items():
        torch.testing.assert_close(with_penalty[name], gradient, rtol=1e-3, atol=1e-6)
