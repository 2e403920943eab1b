"""What the forward pass of a model takes: causal LMs of transformers differ in their arguments."""

import inspect
from functools import cache
from typing import Any

from peft import PeftModel
from torch import nn


def takes(model: Any, name: str) -> bool:
    """Return whether the forward pass of a model, adapted or not, has an argument of this name."""
    return name in _parameters(_class_of(model))[0]


def supported(model: Any, **arguments: Any) -> dict[str, Any]:
    """Return the arguments that the forward pass of a model takes, by name or as further ones."""
    names, takes_any = _parameters(_class_of(model))
    return {name: value for name, value in arguments.items() if takes_any or name in names}


def _class_of(model: Any) -> Any:
    return type(model.get_base_model() if isinstance(model, PeftModel) else model)


@cache
def _parameters(model_class: Any) -> tuple[frozenset[str], bool]:
    parameters = inspect.signature(model_class.forward).parameters
    return frozenset(parameters), any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def probe_tokens(model: nn.Module, number: int) -> list[int]:
    """Return ordinary tokens to try a model on, different ones where its vocabulary is large enough.

    The first ones of many vocabularies are special tokens that were never trained. What a model predicts after them
    changes with rounding: SmolLM2 in bfloat16, with an adapter, differed by 2.6 nats from itself in another batch, and
    after tokens from the middle of its vocabulary by 0.008.
    """
    size = int(model.get_input_embeddings().weight.shape[0])
    return [(size // 4 + index * max(1, size // 64)) % size for index in range(number)]
