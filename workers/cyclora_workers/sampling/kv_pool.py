"""Keys and values of all running samples, in blocks of equal size: the paged KV cache.

Layout, the same on every device, so that a paged kernel can read it through block tables::

    keys, values = layer(index): [num_blocks, block_tokens, num_kv_heads, head_size] each

Position p of a sequence whose block table is ``blocks`` lies at ``[blocks[p // block_tokens],
p % block_tokens]``. Block 0 holds zeros for ever; tables are filled up with it.

Legend: L layers, B blocks, T packed tokens, G key-value heads, H head size, C sequences of equally
many blocks, K keys of each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cyclora_workers.transfer import to_device

BLOCK_TOKENS = 16
"""Tokens of a block. Prefixes are shared in whole blocks, and each row leaves half a block unused
on average; smaller ones make longer tables."""

ZERO_BLOCK = 0
"""Never written. Keys that are masked still enter products, where garbage could be NaN."""


@dataclass(frozen=True, slots=True)
class KvShape:
    """What the base model fixes about the cache."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device


class KvPool:
    """The tensors; who holds which block is ``BlockPool``'s to know.

    Memory that was never written costs nothing on a CPU: the system hands out pages of zeros on
    their first use.
    """

    def __init__(self, shape: KvShape, num_blocks: int) -> None:
        """Room for blocks 1 to ``num_blocks``, and the block of zeros."""
        self.shape = shape
        self._data_L2BTGH = torch.zeros(
            shape.num_layers,
            2,
            num_blocks + 1,
            BLOCK_TOKENS,
            shape.num_kv_heads,
            shape.head_size,
            dtype=shape.dtype,
            device=shape.device,
        )
        self._layers = [
            (layer_2BTGH[0], layer_2BTGH[1]) for layer_2BTGH in self._data_L2BTGH.unbind(0)
        ]

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""
        return BLOCK_TOKENS

    def layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, strided alike."""
        return self._layers[layer_index]

    def write(self, layer_index: int, slots_T: Tensor, key_TGH: Tensor, value_TGH: Tensor) -> None:
        """Store tokens; a slot is a block's number times ``BLOCK_TOKENS`` plus the place in it."""
        for blocks_BTGH, new_TGH in zip(
            self._layers[layer_index], (key_TGH, value_TGH), strict=True
        ):
            blocks_BTGH.flatten(0, 1).index_copy_(0, slots_T, new_TGH)

    def gather(self, layer_index: int, blocks: Tensor, num_sequences: int) -> tuple[Tensor, Tensor]:
        """Keys and values of equally long block tables, laid end to end in ``blocks``.

        Shapes:
            blocks: [C * K / block_tokens] int64. Returns [C, G, K, H] each.
        """

        def of(blocks_BTGH: Tensor) -> Tensor:
            found = blocks_BTGH.index_select(0, blocks)
            shape = (num_sequences, -1, *found.shape[2:])
            return found.view(shape).transpose(1, 2)

        keys_BTGH, values_BTGH = self._layers[layer_index]
        return of(keys_BTGH), of(values_BTGH)

    def clear(self, blocks: Sequence[int]) -> None:
        """Make blocks as good as new: what a former holder left may be NaN."""
        if blocks:
            self._data_L2BTGH.index_fill_(2, self._index(blocks), 0.0)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole blocks."""
        if sources:
            found = self._data_L2BTGH.index_select(2, self._index(sources))
            self._data_L2BTGH.index_copy_(2, self._index(targets), found)

    def _index(self, blocks: Sequence[int]) -> Tensor:
        return to_device(torch.tensor(blocks, dtype=torch.int64), self.shape.device)
