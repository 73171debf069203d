"""Decoding on a GPU: steps from CUDA graphs against one reading of the weights and of the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rounds import interleaved
from torch import Tensor

from cyclora_core.operations import LoraConfig
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import Segment
from cyclora_workers.cuda.decode_graphs import RecordingLimits
from cyclora_workers.cuda.grouped_linear import GroupedLinears
from cyclora_workers.cuda.step_model import KernelStepModel
from cyclora_workers.sampling.step_rows import PagedSpan, StepRows

BLOCK_TOKENS = 16
LORA_RANK = 8
DECODE_HEADER = ["rows", "tokens/s", "bound", "of bound"]


@dataclass(frozen=True, slots=True)
class Decoding:
    """What is decoded, and how fast this card reads at most."""

    num_context_tokens: int
    """Behind each row."""
    num_adapters: int
    bytes_per_s: float
    num_rounds: int


class Pool:
    """Blocks of random keys and values."""

    def __init__(self, base_model: BaseModel, num_blocks: int) -> None:
        self.block_tokens = BLOCK_TOKENS
        size = (2, num_blocks, BLOCK_TOKENS, base_model.num_kv_heads, base_model.head_size)
        self._layers = [
            torch.randn(size, dtype=base_model.dtype, device=base_model.device)
            for _ in range(base_model.num_layers)
        ]

    def layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        keys, values = self._layers[layer_index]
        return keys, values


def decode_step(
    model: KernelStepModel, spans: list[PagedSpan], segments: list[Segment]
) -> Callable[[], None]:
    rows = StepRows([0] * len(spans), [span.first_position for span in spans], spans, segments)

    @torch.inference_mode()
    def step() -> None:
        hidden_TD = model.hidden(rows)
        assert model.num_recordings == 1, "the step cannot be recorded"
        model.logits(hidden_TD, segments).argmax(-1).tolist()

    return step


def decode_rows(
    base_model: BaseModel, counts: Sequence[int], decoding: Decoding
) -> list[list[str]]:
    """One row per number of rows that decode together, all with contexts of one length."""
    rows: list[list[str]] = []
    num_context = decoding.num_context_tokens
    blocks_each = num_context // BLOCK_TOKENS + 1
    config = LoraConfig(LORA_RANK, train_unembed=False)
    states = [AdapterState.create(base_model, config) for _ in range(decoding.num_adapters)]
    linears = GroupedLinears(base_model.linear_names, base_model.device)
    frozen = sum(module.in_features * module.out_features for module in base_model.target_modules)
    for num_rows in counts:
        pool = Pool(base_model, num_rows * blocks_each)
        limits = RecordingLimits(num_rows + 32, 1, 1, 0)
        model = KernelStepModel(base_model, linears, pool, limits=limits)
        blocks = np.random.default_rng(0).permutation(num_rows * blocks_each)
        spans = [
            PagedSpan(row, row + 1, num_context - 1, each)
            for row, each in enumerate(blocks.reshape(num_rows, -1).tolist())
        ]
        owners = [state.weights for state in states]
        segments = [Segment(r, r + 1, owners[r * len(owners) // num_rows]) for r in range(num_rows)]
        # It ends on the host with the tokens, so it needs no waiting for the device.
        step = decode_step(model, spans, segments)
        found = interleaved({"ours": step}, decoding.num_rounds, f"{num_rows} rows", num_warm_ups=2)
        speed = found.per_s("ours", num_rows)
        cached = 4 * base_model.num_layers * base_model.num_kv_heads * base_model.head_size
        bound = num_rows * decoding.bytes_per_s / (2 * frozen + num_rows * num_context * cached)
        rows.append([str(num_rows), f"{speed:,.0f}", f"{bound:,.0f}", f"{speed / bound:.2f}"])
        del step, model, pool
    return rows
