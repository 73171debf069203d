"""CUDA graphs: what one call queued on the device, queued again by one call.

Queueing a decode step's thousands of small kernels from Python takes longer than a GPU needs to run
them. A graph reads and writes fixed memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


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
        """Implements ``Graph.record``; takes about two calls, and a synchronisation."""
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
        """Implements ``Graph.replay``."""
        self._graph.replay()


def cuda_graphs() -> Callable[[], Graph]:
    """Makes graphs that share their memory: they run one after the other."""
    pool = torch.cuda.graph_pool_handle()
    return lambda: CudaGraph(pool)
