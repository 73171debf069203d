"""Decode steps as CUDA graphs: recorded once per bucket of rows, replayed with other contents.

Queueing a decode step's thousands of small kernels from Python takes longer than a GPU needs to run
them; replaying a recording takes one call. A recording reads and writes fixed memory, so every step
first fills the buffers of its bucket.

Legend: T rows of a bucket, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import PassContext, Segment, align_rows
from cyclora_workers.cuda.paged_attention import PagedAttention, PagedPool, PagedShape, PagedSpan
from cyclora_workers.cuda.segment_table import (
    DECODE_BLOCK_ROWS,
    AddressBook,
    SegmentTable,
    TableSize,
)
from cyclora_workers.transfer import to_device

_log = structlog.get_logger(__name__)

_SMALLEST_TOKENS = 1024
_SMALLEST_RANK = 16


class Graph(Protocol):
    """A recording of what one call queued on the device."""

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        """Call the function once and keep what it queued; returns its output's fixed memory."""
        ...

    def replay(self) -> None:
        """Queue the same again, on what is in the same memory now."""
        ...


class CudaGraph:
    """Implements ``Graph`` with memory from a pool that all graphs of a device share."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._graph = torch.cuda.CUDAGraph()

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        # Outside first: kernels are compiled and libraries initialised, which no recording allows.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        # Other threads go on copying snapshots meanwhile; only this one is recorded.
        with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
            return function()

    def replay(self) -> None:
        self._graph.replay()


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


class _Recording:
    """One bucket: fixed inputs, the graph over them, its fixed output."""

    def __init__(
        self, base_model: BaseModel, book: AddressBook, pool: PagedPool, bucket: Bucket
    ) -> None:
        device = base_model.device
        heads_per_group = base_model.num_heads // base_model.num_kv_heads
        shape = PagedShape.decode(
            bucket.num_rows, bucket.max_tokens, heads_per_group, pool.block_tokens
        )
        # Each row may belong to another adapter, and then is a tile of its own.
        size = TableSize(bucket.num_rows, bucket.num_rows, bucket.max_lora_rank)
        self._base_model = base_model
        self._attention = PagedAttention(pool, shape, heads_per_group, device)
        self._table = SegmentTable(book, size, DECODE_BLOCK_ROWS, device)
        self._tokens_and_positions_2T = torch.zeros(
            2, bucket.num_rows, dtype=torch.int64, device=device
        )
        self._graph: Graph | None = None
        self._hidden_TD = torch.empty(0, device=device)

    def fill(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        spans: Sequence[PagedSpan],
        segments: Sequence[Segment],
    ) -> None:
        host_2T = np.zeros(self._tokens_and_positions_2T.shape, np.int64)
        host_2T[:, : len(tokens)] = tokens, positions
        target = self._tokens_and_positions_2T
        target.copy_(to_device(torch.from_numpy(host_2T), target.device))
        self._attention.fill(spans)
        self._table.fill(segments)

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
    """Hidden states of decode steps, recorded when a bucket is first met.

    What the graphs hold stays allocated: the pool's memory must not move while they live.
    """

    def __init__(
        self,
        base_model: BaseModel,
        book: AddressBook,
        pool: PagedPool,
        *,
        max_rows: int,
        new_graph: Callable[[], Graph] | None = None,
    ) -> None:
        """Start with no recording.

        Args:
            base_model: what decodes.
            book: the base model's adapters.
            pool: keys and values of all sequences.
            max_rows: larger steps are not recorded; arithmetic hides their launches.
            new_graph: makes graphs; None makes CUDA graphs.
        """
        self._base_model = base_model
        self._book = book
        self._pool = pool
        self._max_rows = max_rows
        self._new_graph = new_graph or _cuda_graphs()
        self._recordings: dict[Bucket, _Recording] = {}
        self._refused: set[Bucket] = set()

    @property
    def num_recordings(self) -> int:
        return len(self._recordings)

    @torch.inference_mode()
    def hidden(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        spans: Sequence[PagedSpan],
        segments: Sequence[Segment],
    ) -> Tensor | None:
        """Hidden states of a step in which every span is one token, or None.

        None says that the step is too large or cannot be recorded, and nothing was computed: run
        it as any other pass.

        Shapes:
            tokens, positions: [n]. Returns [n, D], valid until the next call.
        """
        ranks = [segment.adapter.lora_rank for segment in segments if segment.adapter]
        longest = int(positions.max()) + 1
        bucket = Bucket.of(len(tokens), longest, max(ranks, default=0))
        if bucket.num_rows > self._max_rows or bucket in self._refused:
            return None
        recording = self._recordings.get(bucket)
        if recording is None:
            recording = _Recording(self._base_model, self._book, self._pool, bucket)
            recording.fill(tokens, positions, spans, segments)
            try:
                recording.record(self._new_graph())
            except RuntimeError as error:
                # An operation of this model waits for the device, which no recording allows.
                _log.warning("decode step not recorded", bucket=str(bucket), reason=str(error))
                self._refused.add(bucket)
                return None
            self._recordings[bucket] = recording
        recording.fill(tokens, positions, spans, segments)
        return recording.replay()[: len(tokens)]


def _cuda_graphs() -> Callable[[], Graph]:
    pool = torch.cuda.graph_pool_handle()
    return lambda: CudaGraph(pool)


def _power_of_two(number: int, least: int) -> int:
    return max(least, 1 << max(number - 1, 0).bit_length())
