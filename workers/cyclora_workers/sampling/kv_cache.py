"""Keys and values of one request: the prompt's once, and each row's own behind it.

Exact lengths instead of a shared padded batch, so nothing a row computes depends on another
request. Memory of a request is bounded by what ``Sampler`` reserved for it.

Legend: L layers, S rows, G key-value heads, P prompt tokens, C capacity, H head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_CAPACITY_TOKENS = 32


@dataclass(frozen=True, slots=True)
class KvShape:
    """What the base model fixes about a cache."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device


class RequestCache:
    """Every row has its ``own`` part; several rows have the prompt in a ``shared`` part before it.

    A single row keeps its prompt in its own part, so that one call attends to all of it. All rows
    of a request are equally long, since each step decodes every row. Rows [0, num_rows) of the own
    part are alive.
    """

    def __init__(
        self, shape: KvShape, num_prompt_tokens: int, num_rows: int, max_new_tokens: int
    ) -> None:
        self.num_prompt_tokens = num_prompt_tokens
        self.num_prefilled = 0
        self.num_new_tokens = 0
        """Sampled tokens of each row that were fed back."""
        self.num_rows = num_rows
        self.num_shared_tokens = num_prompt_tokens if num_rows > 1 else 0
        self._shape = shape
        self._max_own_tokens = num_prompt_tokens - self.num_shared_tokens + max_new_tokens
        self._shared_layers = self._empty(1, self.num_shared_tokens).unbind(0)
        first_capacity = num_prompt_tokens - self.num_shared_tokens
        self._own_L2SGCH = self._empty(num_rows, first_capacity)
        self._own_layers = self._own_L2SGCH.unbind(0)

    @property
    def num_own_tokens(self) -> int:
        return self.num_prompt_tokens - self.num_shared_tokens + self.num_new_tokens

    def prompt(self, layer_index: int) -> Tensor:
        """The prompt's keys and values, [2, G, P or more, H]; undefined where not yet written."""
        layers = self._shared_layers if self.num_shared_tokens else self._own_layers
        return layers[layer_index][:, 0]

    def shared(self, layer_index: int) -> Tensor:
        """Keys and values that all rows begin with, [2, 1, G, P, H]."""
        return self._shared_layers[layer_index]

    def own(self, layer_index: int) -> Tensor:
        """Keys and values of each row, [2, S, G, C, H]."""
        return self._own_layers[layer_index]

    def make_room(self) -> None:
        """Make sure that one more token per row fits; capacity doubles."""
        capacity = self._own_L2SGCH.shape[4]
        length = self.num_own_tokens
        if length < capacity:
            return
        capacity = min(max(2 * capacity, _LEAST_CAPACITY_TOKENS), self._max_own_tokens)
        assert capacity > length, "a row outgrew its reservation"
        grown = self._empty(self.num_rows, capacity)
        grown[..., :length, :] = self._own_L2SGCH[:, :, : self.num_rows, :, :length]
        self._own_L2SGCH = grown
        self._own_layers = grown.unbind(0)

    def remove_row(self, row: int) -> int:
        """Let a row go; returns which one took its place, perhaps itself."""
        last = self.num_rows - 1
        if row != last:
            alive = self._own_L2SGCH[..., : self.num_own_tokens, :]
            alive[:, :, row] = alive[:, :, last]
        self.num_rows = last
        return last

    def _empty(self, num_rows: int, num_tokens: int) -> Tensor:
        shape = self._shape
        return torch.empty(
            (shape.num_layers, 2, num_rows, shape.num_kv_heads, num_tokens, shape.head_size),
            dtype=shape.dtype,
            device=shape.device,
        )
