"""From a block's data to tensors and back.

Legend: N tokens of a block, K targets per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cyclora_core.losses import Config
from cyclora_core.operations import Datum
from cyclora_core.payload import Array
from cyclora_workers.losses import Inputs
from cyclora_workers.transfer import to_device

TARGETS = "target_tokens"


def stack_inputs(data: Sequence[Datum], config: Config, device: torch.device) -> Inputs:
    """Loss inputs of several data end to end, with the largest K among them.

    Columns that a datum lacks get target 0 with loss weight 0. A datum without an optional input
    that another one has gets the value of ``loss_fn_config``.

    Shapes:
        Each [N, K]: int64 for the targets, fp32 otherwise.
    """
    keys = {key for datum in data for key in datum.loss_fn_inputs} - {TARGETS}
    stacked = {
        key: to_device(_stack(data, key, config).to(torch.float32), device) for key in sorted(keys)
    }
    return {TARGETS: stack_targets(data, device), **stacked}


def stack_targets(data: Sequence[Datum], device: torch.device) -> Tensor:
    """Target tokens of several data end to end; columns that a datum lacks are token 0.

    Shapes:
        [N, K] int64.
    """
    return to_device(_stack(data, TARGETS, {}).to(torch.int64), device)


def datum_inputs(datum: Datum, device: torch.device) -> Inputs:
    """All loss inputs of one datum, each in its own shape; integers int64, others fp32."""
    return {
        key: to_device(
            torch.from_numpy(value).to(torch.int64 if value.dtype.kind == "i" else torch.float32),
            device,
        )
        for key, value in datum.loss_fn_inputs.items()
    }


def stack_coefficients(parts: Sequence[Tensor]) -> Tensor:
    """Coefficients of several data end to end, zero in the columns that a datum lacks.

    Shapes:
        parts: [n] or [n, k] each. Returns [N, K].
    """
    columns = [part.reshape(part.shape[0], -1) for part in parts]
    width = max(part.shape[1] for part in columns)
    return torch.cat([functional.pad(part, (0, width - part.shape[1])) for part in columns])


def _stack(data: Sequence[Datum], key: str, config: Config) -> Tensor:
    width = max(_columns(datum.loss_fn_inputs[TARGETS]).shape[1] for datum in data)
    parts: list[Array] = []
    for datum in data:
        value = datum.loss_fn_inputs.get(key)
        if value is None:
            value = np.full(len(datum.tokens), config[key])
        part = _columns(value)
        parts.append(np.pad(part, ((0, 0), (0, width - part.shape[1]))))
    return torch.from_numpy(np.concatenate(parts))


def unstack_logprobs(data: Sequence[Datum], logprobs_NK: Tensor) -> list[Array]:
    """Logprobs of several data, on the host, as one array each, shaped like its target_tokens."""
    # A copy: a view would keep the whole block's memory for one short datum.
    return [part.numpy().copy() for part in unstacked(data, logprobs_NK)]


def unstacked(data: Sequence[Datum], logprobs_NK: Tensor) -> list[Tensor]:
    """Rows of several data, each shaped like its target_tokens."""
    parts: list[Tensor] = []
    start = 0
    for datum in data:
        targets = datum.loss_fn_inputs[TARGETS]
        rows_NK = logprobs_NK[start : start + len(targets), : _columns(targets).shape[1]]
        parts.append(rows_NK.reshape(targets.shape))
        start += len(targets)
    return parts


def _columns(value: Array) -> Array:
    return value.reshape(len(value), -1)
