"""Decode steps as CUDA graphs: recorded per bucket of rows, replayed with other contents.

A recording reads and writes fixed memory, so every step first fills the buffers of its bucket.
Whose the rows are is one of those contents: a table of addresses (``segment_table.py``).

Recording a bucket takes as long as some steps, in which everybody waits, and memory. So a bucket is
recorded only when it comes again and again, not soon after another one, and the recordings used
longest ago make way.

Legend: T rows of a bucket, D hidden.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import structlog
import torch
from torch import Tensor

from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import PassContext, align_rows
from cyclora_workers.cuda.graph import Graph, cuda_graphs
from cyclora_workers.cuda.paged_attention import PagedAttention, PagedPool
from cyclora_workers.cuda.segment_table import (
    DECODE_BLOCK_ROWS,
    AddressBook,
    SegmentTable,
    TableSize,
)
from cyclora_workers.cuda.span_table import PagedShape
from cyclora_workers.sampling.step_rows import StepRows
from cyclora_workers.transfer import to_device

_log = structlog.get_logger(__name__)

_SMALLEST_TOKENS = 1024
_SMALLEST_RANK = 16


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a recording is for: at most this many rows, tokens of a sequence, and lora_rank."""

    num_rows: int
    max_tokens: int
    max_lora_rank: int

    @classmethod
    def of(cls, num_rows: int, max_tokens: int, max_lora_rank: int) -> Bucket:
        """The smallest that holds a step; few enough to record, large enough to waste little."""
        return cls(
            align_rows(num_rows),
            _power_of_two(max_tokens, _SMALLEST_TOKENS),
            _power_of_two(max_lora_rank, _SMALLEST_RANK),
        )

    @classmethod
    def of_step(cls, rows: StepRows) -> Bucket:
        """That of a step in which every span is one token."""
        longest = max(span.last_position for span in rows.spans) + 1
        ranks = [segment.adapter.lora_rank for segment in rows.segments if segment.adapter]
        return cls.of(len(rows.tokens), longest, max(ranks, default=0))

    def holds(self, other: Bucket) -> bool:
        """Whether every step of the other fits into this one."""
        return (
            self.num_rows >= other.num_rows
            and self.max_tokens >= other.max_tokens
            and self.max_lora_rank >= other.max_lora_rank
        )


@dataclass(frozen=True, slots=True)
class RecordingLimits:
    """How much recordings may cost.

    A step of a model of 36 layers is some 1,000 kernels: a recording of it holds a few megabytes,
    beside what all share. That and the times are estimates; no GPU has run this yet.
    """

    max_rows: int = 256
    """Larger steps are not recorded; arithmetic hides their launches."""
    max_recordings: int = 32
    """Beyond it the one used longest ago is dropped."""
    min_steps: int = 4
    """Steps of a bucket until it is recorded; those before also compile its kernels."""
    min_steps_between: int = 16
    """Steps from one recording to the next: nobody waits for several in a row."""


class _Recording:
    """One bucket: fixed inputs, the graph over them, its fixed output."""

    def __init__(
        self, base_model: BaseModel, book: AddressBook, pool: PagedPool, bucket: Bucket
    ) -> None:
        device = base_model.device
        shape = PagedShape.decode(bucket.num_rows, bucket.max_tokens, pool.block_tokens)
        # Each row may belong to another adapter, and then is a tile of its own.
        size = TableSize(bucket.num_rows, bucket.num_rows, bucket.max_lora_rank)
        self._base_model = base_model
        self._attention = PagedAttention(
            pool, bucket.num_rows, [shape], base_model.heads_per_group, device
        )
        self._table = SegmentTable(book, size, DECODE_BLOCK_ROWS, device)
        self._tokens_and_positions_2T = torch.zeros(
            2, bucket.num_rows, dtype=torch.int64, device=device
        )
        self._graph: Graph | None = None
        self._hidden_TD = torch.empty(0, device=device)

    def fill(self, rows: StepRows) -> None:
        host_2T = np.zeros(self._tokens_and_positions_2T.shape, np.int64)
        host_2T[:, : len(rows.tokens)] = rows.tokens, rows.positions
        target = self._tokens_and_positions_2T
        target.copy_(to_device(torch.from_numpy(host_2T), target.device))
        self._attention.fill(rows.spans)
        self._table.fill(rows.segments)

    def record(self, graph: Graph) -> None:
        self._hidden_TD = graph.record(self._hidden)
        self._graph = graph

    def replay(self) -> Tensor:
        assert self._graph is not None, "nothing was recorded"
        self._graph.replay()
        return self._hidden_TD

    def _hidden(self) -> Tensor:
        tokens_T, positions_T = self._tokens_and_positions_2T
        # The table alone says whose the rows are: segments would be those of the recorded step.
        context = PassContext([], self._attention, self._table)
        return self._base_model.hidden(tokens_T, positions_T, context)


class DecodeGraphs:
    """Hidden states of decode steps whose bucket was recorded.

    What the graphs hold stays allocated: the pool's memory must not move while they live.
    """

    def __init__(
        self,
        base_model: BaseModel,
        book: AddressBook,
        pool: PagedPool,
        limits: RecordingLimits,
        *,
        new_graph: Callable[[], Graph] | None = None,
    ) -> None:
        """Start with no recording.

        Args:
            base_model: what decodes.
            book: the base model's adapters.
            pool: keys and values of all sequences.
            limits: what recordings may cost.
            new_graph: makes graphs; None makes CUDA graphs.
        """
        self._base_model = base_model
        self._book = book
        self._pool = pool
        self._limits = limits
        self._new_graph = new_graph or cuda_graphs()
        # Which rows an expert gets is known on the host only after the router has run.
        self._can_record = not any(module.num_experts for module in base_model.target_modules)
        self._recordings: OrderedDict[Bucket, _Recording] = OrderedDict()
        self._refused: set[Bucket] = set()
        self._num_met: Counter[Bucket] = Counter()
        self._num_steps_since = limits.min_steps_between

    @property
    def num_recordings(self) -> int:
        return len(self._recordings)

    @torch.inference_mode()
    def hidden(self, rows: StepRows) -> Tensor | None:
        """Hidden states of a step in which every span is one token, or None.

        None says that the step is not recorded, and nothing was computed: run it as any other pass.

        Shapes:
            Returns [number of rows, D], valid until the next call.
        """
        assert rows.is_decode, "only decode steps are recorded"
        if not self._can_record:
            return None
        bucket = Bucket.of_step(rows)
        self._num_steps_since += 1
        if bucket not in self._recordings and self._is_due(bucket):
            self._record(bucket, rows)
        recording = self._find(bucket)
        if recording is None:
            return None
        recording.fill(rows)
        return recording.replay()[: len(rows.tokens)]

    def _is_due(self, bucket: Bucket) -> bool:
        limits = self._limits
        if bucket.num_rows > limits.max_rows or bucket in self._refused:
            return False
        self._num_met[bucket] += 1
        return (
            self._num_met[bucket] >= limits.min_steps
            and self._num_steps_since >= limits.min_steps_between
        )

    def _record(self, bucket: Bucket, rows: StepRows) -> None:
        recording = _Recording(self._base_model, self._book, self._pool, bucket)
        recording.fill(rows)
        try:
            recording.record(self._new_graph())
        except RuntimeError as error:
            # An operation of this model waits for the device, which no recording allows; or no
            # memory is left for another one.
            _log.warning("decode step not recorded", bucket=str(bucket), reason=str(error))
            self._refused.add(bucket)
            return
        self._num_steps_since = 0
        self._recordings[bucket] = recording
        if len(self._recordings) > self._limits.max_recordings:
            dropped, _ = self._recordings.popitem(last=False)
            del self._num_met[dropped]

    def _find(self, bucket: Bucket) -> _Recording | None:
        """The bucket's recording, or the smallest one that holds it."""
        holding = [each for each in self._recordings if each.holds(bucket)]
        if not holding:
            return None
        chosen = min(holding, key=lambda b: (b.num_rows, b.max_tokens, b.max_lora_rank))
        self._recordings.move_to_end(chosen)
        return self._recordings[chosen]


def _power_of_two(number: int, least: int) -> int:
    return max(least, 1 << max(number - 1, 0).bit_length())
