"""From a block's data to tensors and back.

Legend: N tokens of a block, K targets per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cyclora_core.losses import Config
from cyclora_core.operations import Datum
from cyclora_core.payload import Array
from cyclora_workers.losses import Inputs

TARGETS = "target_tokens"


def stack_inputs(data: Sequence[Datum], config: Config, device: torch.device) -> Inputs:
    """Loss inputs of several data end to end, with the largest K among them.

    Columns that a datum lacks get target 0 with loss weight 0. A datum without an optional input
    that another one has gets the value of ``loss_fn_config``.

    Shapes:
        Each [N, K]: int64 for the targets, fp32 otherwise.
    """
    width = max(_columns(datum.loss_fn_inputs[TARGETS]).shape[1] for datum in data)
    inputs: dict[str, Tensor] = {}
    for key in sorted({key for datum in data for key in datum.loss_fn_inputs}):
        parts: list[Array] = []
        for datum in data:
            value = datum.loss_fn_inputs.get(key)
            if value is None:
                value = np.full(len(datum.tokens), config[key])
            part = _columns(value)
            parts.append(np.pad(part, ((0, 0), (0, width - part.shape[1]))))
        dtype = torch.int64 if key == TARGETS else torch.float32
        inputs[key] = torch.from_numpy(np.concatenate(parts)).to(device, dtype)
    return inputs


def unstack_logprobs(data: Sequence[Datum], logprobs_NK: Tensor) -> list[Array]:
    """Logprobs of several data as one array each, shaped like its target_tokens."""
    stacked_NK: Array = logprobs_NK.cpu().numpy()
    parts: list[Array] = []
    start = 0
    for datum in data:
        targets = datum.loss_fn_inputs[TARGETS]
        rows = stacked_NK[start : start + len(targets), : _columns(targets).shape[1]]
        # A copy: a view would keep the whole block's memory for one short datum.
        parts.append(rows.reshape(targets.shape).copy())
        start += len(targets)
    return parts


def _columns(value: Array) -> Array:
    return value.reshape(len(value), -1)
