"""The KL penalty against the same computed by hand, and the optimizer's copy."""

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
from roundtrip.tokens.batching import TokenDataset, collate
from roundtrip.tokens.prompt_template import TokenRow
from tests.engine.test_train_step import rows


def step_without_update(
    model: Any, dataset: TokenDataset, kl_penalty: KLPenalty | None = None, *, packed: bool = False
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients of one step that changes nothing."""
    adapters.activate(model, "en-es", train=True)
    model.eval()
    parameters = adapters.parameters(model, "en-es")
    gradients: dict[str, torch.Tensor] = {}

    class NoUpdate(Optimizer):
        def step(self, scale: float, **others: Any) -> float:
            gradients.update({name: p.grad.clone() * scale for name, p in parameters.items()})
            self.zero_grad()
            return 1.0

    settings = StepSettings(0, 100, packed=packed, kl_penalty=kl_penalty)
    result = train_step(model, NoUpdate(parameters, Train(), 9), dataset, range(len(dataset)), settings, seed=1)
    return result.loss, gradients


@pytest.fixture
def two(model_folder: Path) -> Any:
    """The small model with two adapters, the B of one of which is not zero."""
    model = AutoModelForCausalLM.from_pretrained(model_folder).requires_grad_(False)
    two = adapters.add_adapters(model, dict.fromkeys(["en-es", "es-en"], Adapter(rank=4)), 1)
    for parameter in adapters.parameters(two, "en-es").values():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
    return two


@pytest.mark.parametrize("packed", [False, True])
def test_kl_penalty_is_part_of_the_gradient_and_not_of_the_loss(two: Any, packed: bool) -> None:
    """Against the same by hand: both models, all logits, and autograd."""
    attention.choose(two, "varlen" if packed else "eager")
    dataset = TokenDataset.of(rows(5, seed=8))
    kl_penalty = KLPenalty(TokenDataset.of([TokenRow(row.ids[2:], 1) for row in rows(5, seed=9)]), 0.7)
    loss, gradients = step_without_update(two, dataset, kl_penalty, packed=packed)
    attention.choose(two, "eager")
    adapters.activate(two, "en-es", train=True)
    two.eval()
    batch, text = collate(dataset, range(5), 0), collate(kl_penalty.dataset, range(5), 0)
    keep_BT, _ = text.predictions()
    adapted = two(input_ids=text.ids_BT, **text.inputs).logits[keep_BT].float().log_softmax(-1)
    with torch.no_grad(), two.disable_adapter():
        base = two(input_ids=text.ids_BT, **text.inputs).logits[keep_BT].float().log_softmax(-1)
    divergence = (base.exp() * (base - adapted)).sum()
    assert divergence.item() > 1.0
    mean_loss = loss_sum(two, batch) / int((batch.labels_BT != -100).sum())
    assert loss == pytest.approx(mean_loss.item(), rel=1e-4)
    parameters = adapters.parameters(two, "en-es")
    for parameter in parameters.values():
        parameter.grad = None
    (mean_loss + 0.7 * divergence / int(keep_BT.sum())).backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, parameters[name].grad, rtol=1e-3, atol=1e-5)


def test_kl_penalty_of_an_untrained_adapter_is_zero(two: Any) -> None:
    for name, parameter in adapters.parameters(two, "en-es").items():
        if ".lora_B." in name:
            torch.nn.init.zeros_(parameter)
    dataset = TokenDataset.of(rows(4, seed=3))
    kl_penalty = KLPenalty(TokenDataset.of([TokenRow(row.ids, 0) for row in rows(4)]), 5.0)
    _, plain = step_without_update(two, dataset)
    _, penalized = step_without_update(two, dataset, kl_penalty)
    for name, gradient in plain.items():
        torch.testing.assert_close(penalized[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copied_optimizer_has_the_same_state(dtype: torch.dtype) -> None:
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=dtype).view(3, 4))
    optimizer = Optimizer({"w": parameter}, Train(), 9)
    for number in range(5):
        parameter.grad = torch.full_like(parameter, 0.1 * (number + 1))
        optimizer.step(1.0)
    saved = {name: value.clone() for name, value in optimizer.state().items()}
    other = Optimizer({"w": torch.nn.Parameter(torch.zeros(3, 4, dtype=dtype))}, optimizer.settings, 9)
    other.restore(optimizer.state(), optimizer.step_number)
    assert all(torch.equal(value, other.state()[name]) for name, value in saved.items())
    assert other.step_number == 5 and other.digest() == optimizer.digest()
