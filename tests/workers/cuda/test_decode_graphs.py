"""Decode steps from recordings, with graphs that call the recorded function again.

What is tested is all around the graph: buckets, fixed buffers, when nothing is recorded. That CUDA
records what the function queues, tests/gpu shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import PassContext, Segment
from cyclora_workers.cuda.decode_graphs import Bucket, DecodeGraphs, Graph
from cyclora_workers.cuda.paged_attention import PagedAttention, PagedSpan
from cyclora_workers.cuda.segment_table import AddressBook
from parity.tolerances import FORWARD, close
from workers.builders import ARCHITECTURES, VOCAB_SIZE, load, packed, positions, random_adapter

BLOCK_TOKENS = 4


@dataclass
class CallingGraph:
    """Replays by calling; writes into the output that it gave out when it recorded."""

    function: Callable[[], Tensor] | None = None
    output: Tensor = field(default_factory=lambda: torch.empty(0))
    num_replays: int = 0

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        self.function = function
        self.output = function().clone()
        return self.output

    def replay(self) -> None:
        assert self.function is not None
        self.num_replays += 1
        self.output.copy_(self.function())


class RefusingGraph(CallingGraph):
    def record(self, function: Callable[[], Tensor]) -> Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")


class Pool:
    """Keys and values of a tiny model."""

    def __init__(self, base_model: BaseModel, num_blocks: int) -> None:
        self.block_tokens = BLOCK_TOKENS
        self._pool = torch.zeros(
            base_model.num_layers,
            2,
            num_blocks,
            BLOCK_TOKENS,
            base_model.num_kv_heads,
            base_model.head_size,
            dtype=base_model.dtype,
            device=base_model.device,
        )

    def layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        return self._pool[layer_index, 0], self._pool[layer_index, 1]


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load(ARCHITECTURES["qwen2"](), tmp_path_factory.mktemp("base"))


class Decoding:
    """Sequences that were prefilled up to their last token, which a decode step is to compute."""

    def __init__(self, base_model: BaseModel, lengths: Sequence[int], ranks: Sequence[int]) -> None:
        rng = np.random.default_rng(1)
        self.base_model = base_model
        self.lengths = lengths
        self.sequences = [rng.integers(0, VOCAB_SIZE, length) for length in lengths]
        self.adapters = [random_adapter(base_model, rank, rank) for rank in ranks]
        blocks = iter(rng.permutation(64).tolist())
        self.blocks = [
            [next(blocks) for _ in range(-(-length // BLOCK_TOKENS))] for length in lengths
        ]
        self.pool = Pool(base_model, 64)
        self.book = AddressBook([module.name for module in base_model.target_modules])
        self._prefill()

    def segments(self, row_counts: Sequence[int]) -> list[Segment]:
        stops = np.cumsum(row_counts).tolist()
        return [
            Segment(stop - count, stop, adapter.weights)
            for stop, count, adapter in zip(stops, row_counts, self.adapters, strict=True)
        ]

    def _prefill(self) -> None:
        counts = [length - 1 for length in self.lengths]
        stops = np.cumsum(counts).tolist()
        spans = [
            PagedSpan(stop - count, stop, 0, blocks)
            for stop, count, blocks in zip(stops, counts, self.blocks, strict=True)
        ]
        tokens = np.concatenate([each[:-1] for each in self.sequences])
        heads_per_group = self.base_model.num_heads // self.base_model.num_kv_heads
        plan = PagedAttention.of(
            self.pool, spans, stops[-1], heads_per_group, self.base_model.device
        )
        context = PassContext(self.segments(counts), plan)
        with torch.inference_mode():
            self.base_model.hidden(torch.from_numpy(tokens), positions(counts), context)

    def step(self, graphs: DecodeGraphs, chosen: slice = slice(None)) -> Tensor | None:
        indices = range(len(self.lengths))[chosen]
        spans = [
            PagedSpan(row, row + 1, self.lengths[index] - 1, self.blocks[index])
            for row, index in enumerate(indices)
        ]
        segments = [
            Segment(row, row + 1, self.adapters[index].weights) for row, index in enumerate(indices)
        ]
        tokens = np.asarray([self.sequences[index][-1] for index in indices])
        places = np.asarray([self.lengths[index] - 1 for index in indices])
        return graphs.hidden(tokens, places, spans, segments)

    def expected(self) -> Tensor:
        """Hidden states of the last tokens, each sequence run as a whole. Shapes: [n, D]."""
        context = packed(self.lengths, self.segments(self.lengths))
        tokens = torch.from_numpy(np.concatenate(self.sequences))
        with torch.no_grad():
            hidden_TD = self.base_model.hidden(tokens, positions(self.lengths), context)
        return hidden_TD[torch.tensor(np.cumsum(self.lengths) - 1)]

    def graphs(self, graph: type[CallingGraph] = CallingGraph, max_rows: int = 64) -> DecodeGraphs:
        def new_graph() -> Graph:
            return graph()

        return DecodeGraphs(
            self.base_model, self.book, self.pool, max_rows=max_rows, new_graph=new_graph
        )


@pytest.fixture
def decoding(base_model: BaseModel, kernel_device: torch.device) -> Decoding:
    if kernel_device.type != "cpu":
        pytest.skip("the base model is on the CPU")
    return Decoding(base_model, [9, 2, 14], [4, 1, 18])


def test_a_recorded_step_computes_what_the_whole_sequences_give(decoding: Decoding) -> None:
    hidden = decoding.step(decoding.graphs())

    assert hidden is not None
    close(hidden, decoding.expected(), FORWARD[torch.float32])


def test_a_recording_serves_other_rows_and_adapters_than_it_was_made_with(
    decoding: Decoding,
) -> None:
    graphs = decoding.graphs()
    decoding.step(graphs, slice(2, 3))

    hidden = decoding.step(graphs)

    assert graphs.num_recordings == 1
    assert hidden is not None
    close(hidden, decoding.expected(), FORWARD[torch.float32])


def test_larger_ranks_and_longer_contexts_are_recorded_apart() -> None:
    small = Bucket.of(3, 100, 8)

    assert small == Bucket.of(30, 1000, 16)
    assert small != Bucket.of(33, 100, 8)
    assert small != Bucket.of(3, 1025, 8)
    assert small != Bucket.of(3, 100, 17)


@pytest.mark.parametrize(("rows", "tokens", "rank"), [(1, 1, 0), (77, 5000, 48)])
def test_a_bucket_holds_its_step(rows: int, tokens: int, rank: int) -> None:
    bucket = Bucket.of(rows, tokens, rank)

    assert bucket.num_rows >= rows
    assert bucket.max_tokens >= tokens
    assert bucket.max_lora_rank >= rank


def test_a_step_beyond_the_largest_bucket_is_left_to_the_caller(decoding: Decoding) -> None:
    graphs = decoding.graphs(max_rows=31)

    assert decoding.step(graphs) is None
    assert graphs.num_recordings == 0


def test_a_model_that_cannot_be_recorded_is_asked_once(decoding: Decoding) -> None:
    graphs = decoding.graphs(RefusingGraph)

    assert decoding.step(graphs) is None
    assert decoding.step(graphs) is None
    assert graphs.num_recordings == 0
