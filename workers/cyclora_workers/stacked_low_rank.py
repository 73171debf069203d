"""The low-rank parts of many adapters' few rows in two products, where gradients are not wanted.

A decode step has few rows of each adapter; by itself, each costs two small products per linear
layer, whose price is the call. Here the adapters of a step lie side by side along their lora_rank::

    y += (keep(x A^T) * scaling) B^T        A: [K, D], B: [F, K]

where ``keep`` leaves a row the columns of its own adapter and sets the others to zero. A zero adds
nothing to a sum that is formed in order, so the bits are those of the product per segment
(docs/decisions/0049-stacked-adapters.md says where that holds; elsewhere nothing is stacked).

Legend: T packed tokens, D features in, F features out, R lora_rank, K ranks of all adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from cyclora_workers.adapter import AdapterWeights, ModuleAdapter
from cyclora_workers.context import ROW_ALIGNMENT, Segment
from cyclora_workers.rows import HAS_ONEDNN, aligned_width, linear

_MAX_STACK_BYTES = 256 * 2**20
"""Memory of the copies that lie side by side; adapters beyond it go segment by segment."""

_MAX_STACK_COLUMNS = 512
"""Beyond, oneDNN forms the sum over B's columns in parts, and an adapter that lies across a border
gets other bits than by itself (decision 0049)."""

_CALL_ELEMENTS = 2_000
"""Elements of x A^T that cost as much as the calls for one more segment do."""


def can_stack(adapter: AdapterWeights) -> bool:
    """Whether stacking changes no bit, neither of this adapter's rows nor of its neighbours'.

    fp32 by oneDNN adds in order, where rows begin at aligned addresses. A product with a single
    column, lora_rank 1, takes another kernel; and zero times infinity would make everybody's rows
    NaN.
    """
    return (
        HAS_ONEDNN
        and adapter.flat_P.dtype == torch.float32
        and adapter.flat_P.device.type == "cpu"
        and adapter.lora_rank > 1
        and all(_has_aligned_inputs(module) for module in adapter.modules.values())
        and bool(torch.isfinite(adapter.flat_P).all())
    )


def _has_aligned_inputs(module: ModuleAdapter) -> bool:
    num_inputs = module.lora_A_RD.shape[-1]
    return aligned_width(num_inputs, module.lora_A_RD.dtype) == num_inputs


@dataclass(frozen=True, slots=True)
class _StackedModule:
    """Shapes: both with aligned rows, except that lora_B of a single adapter is its own."""

    lora_A_KD: Tensor
    lora_B_FK: Tensor


class AdapterStack:
    """Adapter weights that never change, side by side, module by module: copies of several."""

    def __init__(self, adapters: Sequence[AdapterWeights]) -> None:
        self.columns: dict[AdapterWeights, slice] = {}
        """Where each adapter lies along K."""
        end = 0
        for adapter in adapters:
            self.columns[adapter] = slice(end, end + adapter.lora_rank)
            end += aligned_width(adapter.lora_rank, torch.float32)
        self.num_columns = adapters[0].lora_rank if len(adapters) == 1 else end
        """K, rounded up so that rows of x A^T lie aligned."""
        self._modules: dict[str, _StackedModule | None] = {}

    def module(self, name: str) -> _StackedModule | None:
        """All adapters on this module, zeros for those that leave it alone; None if all do."""
        if name not in self._modules:
            self._modules[name] = self._stacked(name)
        return self._modules[name]

    def _stacked(self, name: str) -> _StackedModule | None:
        found = {
            adapter: module
            for adapter in self.columns
            if (module := adapter.modules.get(name)) is not None
        }
        if not found:
            return None
        first = next(iter(found.values()))
        if len(self.columns) == 1:
            return _StackedModule(first.lora_A_RD, first.lora_B_FR)
        num_inputs, num_outputs = first.lora_A_RD.shape[1], first.lora_B_FR.shape[0]
        lora_A_KD = first.lora_A_RD.new_zeros(self.num_columns, num_inputs)
        lora_B_FK = first.lora_B_FR.new_zeros(num_outputs, self.num_columns)
        for adapter, module in found.items():
            lora_A_KD[self.columns[adapter]] = module.lora_A_RD
            lora_B_FK[:, self.columns[adapter]] = module.lora_B_FR
        return _StackedModule(lora_A_KD, lora_B_FK)


class StackedLowRank:
    """The rows of one pass whose adapters are stacked; ``rest`` are the segments of all others."""

    def __init__(self, stack: AdapterStack, segments: Sequence[Segment], num_rows: int) -> None:
        """Prepare what all layers share.

        Args:
            stack: Holds the adapters of some of the segments.
            segments: Of the pass.
            num_rows: Rows of the pass with their padding.
        """
        self.stack = stack
        self.rest: list[Segment] = []
        foreign_TK = np.ones((num_rows, stack.num_columns), np.bool_)
        scaling_TK = np.zeros((num_rows, stack.num_columns), np.float32)
        for segment in segments:
            columns = None if segment.adapter is None else stack.columns.get(segment.adapter)
            if segment.adapter is None or columns is None:
                self.rest.append(segment)
                continue
            foreign_TK[segment.start : segment.stop, columns] = False
            scaling_TK[segment.start : segment.stop, columns] = segment.adapter.scaling
        self._foreign_TK = torch.from_numpy(foreign_TK)
        self._scaling_TK = torch.from_numpy(scaling_TK)

    def add_(self, y_TF: Tensor, x_TD: Tensor, module_name: str) -> None:
        """Add the stacked adapters' part to the base output in place.

        Shapes:
            Both fp32 with aligned rows, as many as the pass has with its padding.
        """
        module = self.stack.module(module_name)
        if module is None:
            return
        low_TK = linear(x_TD, module.lora_A_KD, None)
        # Not by the product alone: what a neighbour's adapter makes of a row may be infinite.
        low_TK = low_TK.masked_fill_(self._foreign_TK, 0.0).mul_(self._scaling_TK)
        y_TF.add_(linear(low_TK, module.lora_B_FK, None))


class StackCache:
    """The stack of the last pass, for the next one, which usually has the same adapters."""

    def __init__(self) -> None:
        self._stack = AdapterStack([])
        self._can_stack: WeakKeyDictionary[AdapterWeights, bool] = WeakKeyDictionary()

    def clear(self) -> None:
        """Let go of all adapters."""
        self._stack = AdapterStack([])

    def over(
        self, segments: Sequence[Segment], *, may_shrink: bool = True
    ) -> StackedLowRank | None:
        """How to compute these segments together; None where one by one is better.

        The segments' adapters must never change. ``may_shrink`` False keeps a stack of which they
        need a part: for a part of a pass.
        """
        num_rows = -(-segments[-1].stop // ROW_ALIGNMENT) * ROW_ALIGNMENT
        wanted = self._stackable(segments)
        if not wanted:
            return None
        num_columns = sum(aligned_width(a.lora_rank, torch.float32) for a in wanted)
        apart = sum(
            _CALL_ELEMENTS
            + -(-(segment.stop - segment.start) // ROW_ALIGNMENT)
            * ROW_ALIGNMENT
            * segment.adapter.lora_rank
            for segment in segments
            if segment.adapter in wanted
        )
        if num_rows * num_columns > apart:
            return None
        stack = self._stack
        is_known = wanted.keys() <= stack.columns.keys()
        if not is_known or (may_shrink and stack.num_columns > 2 * num_columns):
            self._stack = stack = AdapterStack(list(wanted))
        return StackedLowRank(stack, segments, num_rows)

    def _stackable(self, segments: Sequence[Segment]) -> dict[AdapterWeights, None]:
        found: dict[AdapterWeights, None] = {}
        num_columns, widths = 0, dict[str, int]()
        for segment in segments:
            adapter = segment.adapter
            if adapter is None or adapter in found or not self._may(adapter):
                continue
            num_columns += aligned_width(adapter.lora_rank, torch.float32)
            # Every adapter gets columns in every module that any of them has.
            widths |= {
                name: module.lora_A_RD.shape[1] + module.lora_B_FR.shape[0]
                for name, module in adapter.modules.items()
            }
            num_bytes = num_columns * sum(widths.values()) * torch.float32.itemsize
            if num_columns > _MAX_STACK_COLUMNS or num_bytes > _MAX_STACK_BYTES:
                break
            found[adapter] = None
        return found

    def _may(self, adapter: AdapterWeights) -> bool:
        if adapter not in self._can_stack:
            self._can_stack[adapter] = can_stack(adapter)
        return self._can_stack[adapter]
