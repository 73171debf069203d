"""The sampler's passes on a CUDA device: paged and grouped kernels, decode steps from graphs.

Legend: T packed tokens, S rows that draw, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import PassContext, Segment
from cyclora_workers.cuda.decode_graphs import DecodeGraphs, RecordingLimits
from cyclora_workers.cuda.graph import Graph
from cyclora_workers.cuda.grouped_linear import GroupedLinears
from cyclora_workers.cuda.paged_attention import PagedAttention, PagedPool
from cyclora_workers.cuda.segment_table import DECODE_BLOCK_ROWS, SegmentTable
from cyclora_workers.sampling.step_rows import StepRows
from cyclora_workers.transfer import to_device


class KernelStepModel:
    """Implements ``StepModel``.

    A decode step is replayed where its bucket was recorded. Any other pass is queued kernel by
    kernel: rows that decode and chunks of prompts attend through one kernel, in tiles of their own.
    """

    def __init__(
        self,
        base_model: BaseModel,
        linears: GroupedLinears,
        pool: PagedPool,
        *,
        limits: RecordingLimits | None = None,
        new_graph: Callable[[], Graph] | None = None,
    ) -> None:
        """Start with no recording.

        Args:
            base_model: what computes.
            linears: the base model's, with kernels for the device.
            pool: keys and values of all sequences.
            limits: what recordings may cost; None is the usual.
            new_graph: makes graphs; None makes CUDA graphs.
        """
        self._base_model = base_model
        self._linears = linears
        self._pool = pool
        self._graphs = DecodeGraphs(
            base_model, linears.book, pool, limits or RecordingLimits(), new_graph=new_graph
        )

    @property
    def num_recordings(self) -> int:
        """Buckets of decode steps that are replayed."""
        return self._graphs.num_recordings

    def hidden(self, rows: StepRows) -> Tensor:
        """Implements ``StepModel.hidden``."""
        table: SegmentTable | None = None
        if rows.is_decode:
            replayed_TD = self._graphs.hidden(rows)
            if replayed_TD is not None:
                return replayed_TD
            # As in a recording, so that it makes no difference to the numbers whether there is one.
            table = self._linears.table(rows.segments, DECODE_BLOCK_ROWS)
        device = self._base_model.device
        plan = PagedAttention.of(self._pool, rows.spans, self._base_model.heads_per_group, device)
        return self._base_model.hidden(
            to_device(torch.tensor(rows.tokens), device),
            to_device(torch.tensor(rows.positions), device),
            PassContext(rows.segments, plan, table),
        )

    def logits(self, hidden_SD: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Implements ``StepModel.logits``."""
        return self._base_model.logits(hidden_SD, segments)

    def release(self) -> None:
        """Implements ``StepModel.release``: tables know adapters by weak references only."""
