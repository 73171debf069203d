"""Data as SDK users make it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tinker
from tinker import types


def tokens(num_tokens: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(10, 500, num_tokens).tolist()


def datum(num_tokens: int = 12, seed: int = 0, weights: Sequence[float] | None = None) -> Any:
    """A cross_entropy datum over random tokens."""
    ids = tokens(num_tokens + 1, seed)
    return types.Datum(
        model_input=types.ModelInput.from_ints(ids[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=ids[1:], dtype="int64", shape=[num_tokens]),
            "weights": types.TensorData(
                data=list(weights or [1.0] * num_tokens), dtype="float32", shape=[num_tokens]
            ),
        },
    )


def policy_datum(num_tokens: int = 12, seed: int = 0) -> Any:
    """A datum for the policy losses, with made-up sampler logprobs and advantages."""
    ids = tokens(num_tokens + 1, seed)
    rng = np.random.default_rng(seed)

    def floats(values: Any) -> types.TensorData:
        return types.TensorData(data=values.tolist(), dtype="float32", shape=[num_tokens])

    return types.Datum(
        model_input=types.ModelInput.from_ints(ids[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=ids[1:], dtype="int64", shape=[num_tokens]),
            "logprobs": floats(rng.normal(-6.0, 0.5, num_tokens)),
            "advantages": floats(rng.normal(0.0, 1.0, num_tokens)),
        },
    )


def train(
    model: tinker.TrainingClient, data: Sequence[Any], num_steps: int, learning_rate: float = 3e-3
) -> list[float]:
    """Pipelined steps; returns loss:sum of each."""
    futures = []
    for _ in range(num_steps):
        futures.append(model.forward_backward(list(data), "cross_entropy"))
        model.optim_step(types.AdamParams(learning_rate=learning_rate))
    return [future.result().metrics["loss:sum"] for future in futures]


def logprobs(output: Any) -> list[list[float]]:
    return [row["logprobs"].data for row in output.loss_fn_outputs]
