"""Recorded decode steps against the same steps queued one kernel after another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import PassContext, Segment
from cyclora_workers.cuda.decode_graphs import DecodeGraphs, RecordingLimits
from cyclora_workers.cuda.paged_attention import PagedAttention
from cyclora_workers.cuda.segment_table import AddressBook
from cyclora_workers.sampling.step_rows import PagedSpan, StepRows
from gpu.conftest import Pair
from parity.tolerances import FORWARD, close
from workers.builders import random_adapter

pytestmark = pytest.mark.gpu

BLOCK_TOKENS = 16
NUM_BLOCKS = 256


class Pool:
    def __init__(self, base_model: BaseModel) -> None:
        self.block_tokens = BLOCK_TOKENS
        self._pool = torch.randn(
            base_model.num_layers,
            2,
            NUM_BLOCKS,
            BLOCK_TOKENS,
            base_model.num_kv_heads,
            base_model.head_size,
            dtype=base_model.dtype,
            device=base_model.device,
        )

    def layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        return self._pool[layer_index, 0], self._pool[layer_index, 1]


def test_a_replayed_step_equals_the_step_itself(pair: Pair) -> None:
    base_model = pair.gpu
    pool = Pool(base_model)
    book = AddressBook(base_model.linear_names)
    graphs = DecodeGraphs(base_model, book, pool, RecordingLimits(64, 4, 1, 0))
    states = [random_adapter(base_model, rank, rank) for rank in (1, 8, 16)]
    rng = np.random.default_rng(0)
    for num_rows in (3, 40, 17):
        places = rng.integers(0, 60, num_rows)
        tokens = rng.integers(0, base_model.vocab_size, num_rows)
        blocks = rng.permutation(NUM_BLOCKS).reshape(-1, 4).tolist()
        spans = [
            PagedSpan(row, row + 1, int(place), blocks[row]) for row, place in enumerate(places)
        ]
        segments = [Segment(r, r + 1, states[r % 3].weights) for r in range(num_rows)]

        replayed = graphs.hidden(StepRows(tokens.tolist(), places.tolist(), spans, segments))

        plan = PagedAttention.of(pool, spans, base_model.heads_per_group, base_model.device)
        with torch.inference_mode():
            expected = base_model.hidden(
                torch.from_numpy(tokens).to(base_model.device),
                torch.from_numpy(places).to(base_model.device),
                PassContext(segments, plan),
            )
        assert replayed is not None, "the model cannot be recorded"
        close(replayed, expected, FORWARD[torch.bfloat16])
    assert graphs.num_recordings == 2
