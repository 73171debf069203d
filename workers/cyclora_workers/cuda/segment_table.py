"""What the low-rank kernels need to know of a pass, in one copy to the device.

Legend: M target modules, S segments, L tiles, U adapters that are being trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cyclora_workers.adapter import AdapterWeights
from cyclora_workers.context import Segment
from cyclora_workers.transfer import to_device

TRAINING_BLOCK_ROWS = 64
DECODE_BLOCK_ROWS = 16
"""Rows of a tile; tensor cores take no fewer than 16."""

NO_SEGMENT = -1
"""In ``tile_segments``: the tile has nothing to do."""


_GRADIENT_A = 2


class AddressBook:
    """Where each adapter's A, B and their gradients lie, per target module of the base model.

    Asking every view for its address takes longer than a decode step of many adapters; they stay
    where they are as long as the adapter's weights exist, so they are asked once.
    """

    def __init__(self, module_names: Sequence[str]) -> None:
        self.module_indices = {name: index for index, name in enumerate(module_names)}
        self._known: WeakKeyDictionary[AdapterWeights, NDArray[np.int64]] = WeakKeyDictionary()

    def addresses(self, weights: AdapterWeights) -> NDArray[np.int64]:
        """Addresses of A, B, gradient of A, gradient of B; 0 for what does not exist.

        Shapes:
            [4, M].
        """
        found = self._known.get(weights)
        if found is None:
            found = np.zeros((4, len(self.module_indices)), np.int64)
            for name, index in self.module_indices.items():
                module = weights.modules.get(name)
                if module is None:
                    continue
                views = (
                    module.lora_A_RD,
                    module.lora_B_FR,
                    module.gradient_A_RD,
                    module.gradient_B_FR,
                )
                found[:, index] = [0 if view is None else view.data_ptr() for view in views]
            self._known[weights] = found
        return found


@dataclass(frozen=True, slots=True)
class TableSize:
    """How large a table is; one for a captured graph leaves room for any pass of its bucket."""

    num_segments: int
    num_tiles: int
    max_lora_rank: int

    @classmethod
    def fitting(cls, segments: Sequence[Segment], block_rows: int) -> TableSize:
        """Exactly what a pass needs."""
        adapted = [segment for segment in segments if segment.adapter is not None]
        tiles = sum(-(-(each.stop - each.start) // block_rows) for each in adapted)
        ranks = [each.adapter.lora_rank for each in adapted if each.adapter is not None]
        return cls(len(adapted), tiles, max(ranks, default=0))


class SegmentTable:
    """The segments of one pass on the device, in tiles of ``block_rows`` rows.

    Segments of the bare base model have no place in it.

    Shapes:
        addresses_4MS int64; stops_S, starts_S, ranks_S int32; scalings_S fp32; tile_segments_L,
        tile_starts_L int32; owner_bounds_U (one more than adapters) and owner_segments_S int32;
        is_trained_M on the host.
    """

    def __init__(
        self, book: AddressBook, size: TableSize, block_rows: int, device: torch.device
    ) -> None:
        self.size = size
        self.block_rows = block_rows
        self.num_owners = 0
        self.is_trained_M = np.zeros(len(book.module_indices), np.bool_)
        self.module_indices = book.module_indices
        self._book = book
        self._device = device
        num_modules, num_segments = len(book.module_indices), size.num_segments
        self.addresses_4MS = torch.zeros(
            4, num_modules, num_segments, dtype=torch.int64, device=device
        )
        self.scalings_S = torch.zeros(num_segments, dtype=torch.float32, device=device)
        lengths = (*[num_segments] * 3, *[size.num_tiles] * 2, num_segments + 1, num_segments)
        self._numbers = torch.zeros(sum(lengths), dtype=torch.int32, device=device)
        (
            self.starts_S,
            self.stops_S,
            self.ranks_S,
            self.tile_segments_L,
            self.tile_starts_L,
            self.owner_bounds_U,
            self.owner_segments_S,
        ) = self._numbers.split(lengths)
        self._filled_for: list[tuple[int, int, ref[AdapterWeights]]] | None = None

    @classmethod
    def of(
        cls, book: AddressBook, segments: Sequence[Segment], block_rows: int, device: torch.device
    ) -> SegmentTable:
        """A table for one pass."""
        table = cls(book, TableSize.fitting(segments, block_rows), block_rows, device)
        table.fill(segments)
        return table

    def fill(self, segments: Sequence[Segment]) -> None:
        """Describe another pass that fits; nothing is copied when it is laid out like the last."""
        adapted = [(s.start, s.stop, s.adapter) for s in segments if s.adapter is not None]
        # Weak, so that a table which is seldom used keeps no adapter in memory.
        filled_for = [(start, stop, ref(weights)) for start, stop, weights in adapted]
        if filled_for == self._filled_for:
            return
        num_segments, num_tiles = self.size.num_segments, self.size.num_tiles
        starts, stops, ranks = np.zeros((3, num_segments), np.int32)
        scalings = np.zeros(num_segments, np.float32)
        addresses = np.zeros((4, len(self._book.module_indices), num_segments), np.int64)
        tiles: list[tuple[int, int]] = []
        owners: dict[AdapterWeights, list[int]] = {}
        for index, (start, stop, weights) in enumerate(adapted):
            starts[index], stops[index], ranks[index] = start, stop, weights.lora_rank
            scalings[index] = weights.scaling
            addresses[:, :, index] = self._book.addresses(weights)
            tiles += [(index, row) for row in range(start, stop, self.block_rows)]
            owners.setdefault(weights, []).append(index)
        assert len(tiles) <= num_tiles, "the pass does not fit into the table"
        assert max(ranks, default=0) <= self.size.max_lora_rank, "a lora_rank is too large"
        tile_table = np.full((num_tiles, 2), (NO_SEGMENT, 0), np.int32)
        tile_table[: len(tiles)] = np.asarray(tiles, np.int32).reshape(-1, 2)
        bounds = np.zeros(num_segments + 1, np.int32)
        bounds[1 : len(owners) + 1] = np.cumsum([len(owned) for owned in owners.values()])
        owned = np.zeros(num_segments, np.int32)
        owned[: len(adapted)] = [index for indices in owners.values() for index in indices]
        numbers = (starts, stops, ranks, tile_table[:, 0], tile_table[:, 1], bounds, owned)
        self._copy(self._numbers, np.concatenate(numbers))
        self._copy(self.scalings_S, scalings)
        self._copy(self.addresses_4MS, addresses)
        self.num_owners = len(owners)
        self.is_trained_M = addresses[_GRADIENT_A].any(1)
        self._filled_for = filled_for

    def _copy(self, target: Tensor, host: NDArray[np.generic]) -> None:
        target.copy_(to_device(torch.from_numpy(host), self._device))
