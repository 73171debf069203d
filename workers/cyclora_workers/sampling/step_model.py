"""The base model as the sampler's passes use it: over the paged KV cache, with many adapters.

Legend: T packed tokens, S rows that draw, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import PassContext, Segment
from cyclora_workers.cuda.step_model import KernelStepModel
from cyclora_workers.sampling.kv_pool import KvPool
from cyclora_workers.sampling.paged_attention import PagedAttention
from cyclora_workers.sampling.step_rows import StepRows
from cyclora_workers.stacked_low_rank import StackCache
from cyclora_workers.transfer import to_device


class StepModel(Protocol):
    """What computes the passes of one sampler."""

    def hidden(self, rows: StepRows) -> Tensor:
        """Final-norm hidden states of a pass; keys and values go into the pool, uncounted.

        Shapes:
            Returns [T, D], valid until the next call.
        """
        ...

    def logits(self, hidden_SD: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Logits of some of the last pass's rows. Shapes: returns [S, V] fp32."""
        ...

    def release(self) -> None:
        """Let go of all adapters: nothing is left to do."""
        ...


class GeneralStepModel:
    """Implements ``StepModel`` with torch's products alone: on a CPU, each row's bits are its own.

    Adapters that never change are stacked where that is cheaper (``stacked_low_rank.py``).
    """

    def __init__(self, base_model: BaseModel, pool: KvPool) -> None:
        self._base_model = base_model
        self._pool = pool
        self._stacks = StackCache()

    def hidden(self, rows: StepRows) -> Tensor:
        """Implements ``StepModel.hidden``."""
        stacked = self._stacks.over(rows.segments)
        context = PassContext(
            rows.segments, PagedAttention(self._pool, rows.spans), stacked=stacked
        )
        device = self._base_model.device
        return self._base_model.hidden(
            to_device(torch.tensor(rows.tokens), device),
            to_device(torch.tensor(rows.positions), device),
            context,
        )

    def logits(self, hidden_SD: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Implements ``StepModel.logits``."""
        stacked = self._stacks.over(segments, may_shrink=False)
        return self._base_model.logits(hidden_SD, segments, stacked)

    def release(self) -> None:
        """Implements ``StepModel.release``."""
        self._stacks.clear()


def step_model_of(base_model: BaseModel, pool: KvPool) -> StepModel:
    """Kernels for the base model's device where there are any, else the general way."""
    if base_model.grouped is not None:
        return KernelStepModel(base_model, base_model.grouped, pool)
    return GeneralStepModel(base_model, pool)
