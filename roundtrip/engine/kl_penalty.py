"""The KL penalty that keeps an adapter close to its base on text of the target language."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn

from roundtrip.engine.likelihood import label_logits
from roundtrip.tokens.batching import Batch, TokenDataset


@dataclass(frozen=True)
class KLPenalty:
    """The divergence of the adapted model from its base on monolingual text."""

    dataset: TokenDataset  # the target texts alone, in the order of the rows that are trained on
    weight: float  # of the mean divergence of a token, in nats, relative to the mean loss of a label

    def scale(self, rows: Sequence[int], num_labels: int) -> float:
        """Return the factor of `kl_sum` in a loss that is divided by `num_labels` in the end."""
        return self.weight * (num_labels / sum(self.dataset.sizes[i] - self.dataset.starts[i] for i in rows))


def kl_sum(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return KL(base || adapted) in nats, summed over the predicted tokens of a batch (https://arxiv.org/abs/1606.09282)."""
    assert isinstance(model, PeftModel)
    keep_BT, _ = batch.predictions()
    with torch.no_grad(), model.disable_adapter():
        base_NV = label_logits(model, batch, keep_BT).log_softmax(-1)
    adapted_NV = label_logits(model, batch, keep_BT).log_softmax(-1)
    return torch.nn.functional.kl_div(adapted_NV, base_NV, log_target=True, reduction="sum")
