"""Decode steps from recordings, with graphs that call the recorded function again.

What is tested is all around the graph: buckets, fixed buffers, when nothing is recorded. That CUDA
records what the function queues, tests/gpu shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import PassContext, Segment
from cyclora_workers.cuda.decode_graphs import Bucket, DecodeGraphs, RecordingLimits
from cyclora_workers.cuda.graph import Graph
from cyclora_workers.cuda.paged_attention import PagedAttention
from cyclora_workers.cuda.segment_table import AddressBook
from cyclora_workers.sampling.step_rows import PagedSpan, StepRows
from parity.families import FAMILIES
from parity.tolerances import FORWARD, close
from workers.builders import ARCHITECTURES, VOCAB_SIZE, load, packed, positions, random_adapter
from workers.cuda.graphs import CallingGraph, RefusingGraph

BLOCK_TOKENS = 4
AT_ONCE = RecordingLimits(max_rows=64, min_steps=1, min_steps_between=0)


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
        self.book = AddressBook(base_model.linear_names)
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
        device = self.base_model.device
        plan = PagedAttention.of(self.pool, spans, self.base_model.heads_per_group, device)
        context = PassContext(self.segments(counts), plan)
        with torch.inference_mode():
            self.base_model.hidden(torch.from_numpy(tokens), positions(counts), context)

    def rows(self, chosen: slice = slice(None)) -> StepRows:
        """The last tokens of these sequences."""
        indices = range(len(self.lengths))[chosen]
        return StepRows(
            [int(self.sequences[index][-1]) for index in indices],
            [self.lengths[index] - 1 for index in indices],
            [
                PagedSpan(row, row + 1, self.lengths[index] - 1, self.blocks[index])
                for row, index in enumerate(indices)
            ],
            [
                Segment(row, row + 1, self.adapters[index].weights)
                for row, index in enumerate(indices)
            ],
        )

    def step(self, graphs: DecodeGraphs, chosen: slice = slice(None)) -> Tensor | None:
        return graphs.hidden(self.rows(chosen))

    def expected(self) -> Tensor:
        """Hidden states of the last tokens, each sequence run as a whole. Shapes: [n, D]."""
        context = packed(self.lengths, self.segments(self.lengths))
        tokens = torch.from_numpy(np.concatenate(self.sequences))
        with torch.no_grad():
            hidden_TD = self.base_model.hidden(tokens, positions(self.lengths), context)
        return hidden_TD[torch.tensor(np.cumsum(self.lengths) - 1)]

    def graphs(
        self, graph: type[CallingGraph] = CallingGraph, limits: RecordingLimits = AT_ONCE
    ) -> DecodeGraphs:
        def new_graph() -> Graph:
            return graph()

        return DecodeGraphs(self.base_model, self.book, self.pool, limits, new_graph=new_graph)


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
    graphs = decoding.graphs(limits=RecordingLimits(31, 1, 1, 0))

    assert decoding.step(graphs) is None
    assert graphs.num_recordings == 0


def test_a_model_that_cannot_be_recorded_is_asked_once(decoding: Decoding) -> None:
    graphs = decoding.graphs(RefusingGraph)

    assert decoding.step(graphs) is None
    assert decoding.step(graphs) is None
    assert graphs.num_recordings == 0


def test_a_bucket_is_recorded_when_it_comes_again_and_again(decoding: Decoding) -> None:
    graphs = decoding.graphs(limits=RecordingLimits(min_steps=3, min_steps_between=0))

    found = [decoding.step(graphs) is not None for _ in range(4)]

    assert found == [False, False, True, True]


def test_nobody_waits_for_two_recordings_in_a_row(decoding: Decoding) -> None:
    graphs = decoding.graphs(limits=RecordingLimits(min_steps=1, min_steps_between=3))
    decoding.step(graphs, slice(0, 2))

    found = [decoding.step(graphs) is not None for _ in range(4)]

    assert found == [False, False, True, True]
    assert graphs.num_recordings == 2


def test_a_larger_recording_serves_until_the_bucket_has_its_own(decoding: Decoding) -> None:
    graphs = decoding.graphs(limits=RecordingLimits(min_steps=1, min_steps_between=3))
    decoding.step(graphs)

    hidden = decoding.step(graphs, slice(0, 2))

    assert graphs.num_recordings == 1
    assert hidden is not None
    close(hidden, decoding.expected()[:2], FORWARD[torch.float32])


def test_the_recording_used_longest_ago_makes_way(decoding: Decoding) -> None:
    limits = RecordingLimits(max_recordings=1, min_steps=1, min_steps_between=0)
    graphs = decoding.graphs(limits=limits)
    decoding.step(graphs, slice(0, 2))
    decoding.step(graphs)

    assert graphs.num_recordings == 1
    assert decoding.step(graphs) is not None


def test_a_recording_follows_rows_that_grow_into_new_blocks(decoding: Decoding) -> None:
    """Tables are only told what is new, and rows may change their places."""
    graphs = decoding.graphs()
    decoding.step(graphs)
    decoding.step(graphs, slice(1, 3))

    hidden = decoding.step(graphs)

    assert hidden is not None
    close(hidden, decoding.expected(), FORWARD[torch.float32])


def test_a_mixture_is_not_recorded(tmp_path: Path) -> None:
    """Its router decides on the device how many rows an expert gets."""
    mixture = load(FAMILIES["qwen3-moe"].make(), tmp_path)
    book = AddressBook(mixture.linear_names)
    graphs = DecodeGraphs(mixture, book, Pool(mixture, 4), AT_ONCE, new_graph=CallingGraph)

    assert graphs.hidden(StepRows([5], [0], [PagedSpan(0, 1, 0, [1])], [])) is None
