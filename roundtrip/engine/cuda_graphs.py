"""Decoding steps of a fixed shape: a cache that is written in place, and on a GPU a CUDA graph that is replayed.
A graph has fixed addresses and shapes, so the cache has room for more tokens than there are, positions that are not
written yet are masked, and a new graph is captured when the room is used up or rows leave the batch.
Shapes: B rows, S positions so far, C capacity of the cache, V vocabulary.
"""

from typing import Any

import torch

# Positions by which the cache grows; a capture costs about three steps, and masked positions cost time too.
ROOM = 64


class GraphedSteps:
    """As many steps as there is room for behind a DynamicCache; `mask_BS`, int64, is 1 where that holds a token."""

    def __init__(self, model: Any, cache: Any, mask_BS: torch.Tensor) -> None:
        from transformers import StaticCache

        num_rows, self._filled = mask_BS.shape
        capacity = self._filled + ROOM
        self._model, self.room = model, ROOM
        self._graph: Any = None
        self._cache = StaticCache(config=model.config, max_cache_len=capacity)
        for layer, before in zip(self._cache.layers, cache.layers, strict=True):
            layer.lazy_initialization(before.keys, before.values)
            layer.keys[:, :, : self._filled], layer.values[:, :, : self._filled] = before.keys, before.values
        self._mask_B11C = torch.zeros(num_rows, 1, 1, capacity, dtype=torch.bool, device=mask_BS.device)
        self._mask_B11C[:, 0, 0, : self._filled] = mask_BS.bool()
        self._ids_B1 = mask_BS.new_zeros(num_rows, 1)
        self._position_B1 = mask_BS.new_zeros(num_rows, 1)
        self._rewind()

    def step(self, ids_B1: torch.Tensor, position_B1: torch.Tensor) -> torch.Tensor:
        """Return logits_BV after one more token of each row; valid until the next step."""
        assert self.room > 0, "the cache is full"
        self.room -= 1
        self._ids_B1.copy_(ids_B1)
        self._position_B1.copy_(position_B1)
        if not self._ids_B1.is_cuda:
            return self._forward()
        # A graph belongs to the current device, whatever the tensors are on.
        with torch.cuda.device(self._ids_B1.device):
            if self._graph is None:
                self._capture()
            self._graph.replay()
        return self._logits_BV

    def dynamic_cache(self, keep: torch.Tensor | None = None) -> Any:
        """Return a DynamicCache of all positions so far, of all rows or of those in `keep`."""
        from transformers import DynamicCache

        size = self._filled + ROOM - self.room
        cache = DynamicCache(config=self._model.config)
        for number, layer in enumerate(self._cache.layers):
            keys, values = layer.keys[:, :, :size], layer.values[:, :, :size]
            cache.update(*((keys, values) if keep is None else (keys[keep], values[keep])), number)
        return cache

    def _forward(self) -> torch.Tensor:
        self._mask_B11C.index_fill_(3, self._cache.layers[0].cumulative_length.view(1), True)
        inputs = {"input_ids": self._ids_B1, "attention_mask": self._mask_B11C, "position_ids": self._position_B1}
        return self._model(**inputs, cache=self._cache, use_cache=True).logits[:, -1]

    def _capture(self) -> None:
        """Capture the graph; what the warm-up passes write is overwritten by the first step."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._rewind()
                self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        self._rewind()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits_BV = self._forward()

    def _rewind(self) -> None:
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(self._filled)


def supports_static_cache(model: Any) -> bool:
    """Return whether every layer of a model has a plain cache; sliding windows and recurrent states do not."""
    from transformers import StaticCache
    from transformers.cache_utils import StaticLayer

    return all(type(layer) is StaticLayer for layer in StaticCache(config=model.config, max_cache_len=1).layers)
