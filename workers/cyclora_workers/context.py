"""What the plugged-in modules of one pass need to know; passed along, never global.

Legend: T packed tokens, N query heads, G key-value heads, H head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from cyclora_workers.adapter import AdapterWeights
    from cyclora_workers.cuda.segment_table import SegmentTable
    from cyclora_workers.stacked_low_rank import StackedLowRank

ROW_ALIGNMENT = 32
"""Packed rows are rounded up to this.

On CPU a matrix product of fewer than about 12 rows takes another kernel, whose sums differ in the
last bit; with aligned rows a tenant's numbers do not depend on how many tokens its neighbours have.
"""


def align_rows(num_rows: int) -> int:
    """Round up to ``ROW_ALIGNMENT``."""
    return -(-num_rows // ROW_ALIGNMENT) * ROW_ALIGNMENT


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of consecutive packed tokens, [start, stop), that use the same adapter.

    ``adapter`` None is the bare base model.
    """

    start: int
    stop: int
    adapter: AdapterWeights | None


class AttentionPlan(Protocol):
    """How the tokens of one pass attend: packed training sequences, or rows with a KV cache."""

    def attend(
        self,
        layer_index: int,
        query_NTH: Tensor,
        key_GTH: Tensor,
        value_GTH: Tensor,
        scaling: float,
        sliding_window: int | None,
        sinks_N: Tensor | None = None,
    ) -> Tensor:
        """Causal attention inside each sequence; returns [T, N, H].

        ``sinks_N`` are scores of a further key of value zero (``attention_sinks.py``).

        T may exceed the planned tokens by the row alignment; surplus rows return finite numbers
        that nobody reads.
        """
        ...


@dataclass(frozen=True, slots=True)
class PassContext:
    """One pass through the base model.

    ``segments`` are sorted, do not overlap and cover the planned tokens.
    """

    segments: Sequence[Segment]
    attention: AttentionPlan
    segment_table: SegmentTable | None = None
    """The segments on the device, where the linear layers are to take them all at once."""
    is_recomputed: bool = False
    """Whether the backward pass computes each layer again, to save the memory of what it kept."""
    stacked: StackedLowRank | None = None
    """Segments whose low-rank parts are computed together; only where no gradient is wanted."""
