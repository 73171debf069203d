"""Requests as an SDK puts them on the wire, in their JSON forms, so that tests can keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contract.conftest import BASE_MODEL

LORA_RANK = 4
PROMPT = (5, 6, 7, 8, 9)
OVERFLOW = 3e38
"""A loss weight that is a finite float32 and whose gradient is not."""


@dataclass(frozen=True, slots=True)
class Request:
    """One POST. Sent again, it is this very same object."""

    route: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def create_session(idempotency_key: str) -> Request:
    return Request("create_session", {"tags": []}, {"X-Idempotency-Key": idempotency_key})


def finish_session(session_id: str) -> Request:
    reason = {"reason": {"type": "success"}, "detail": None}
    return Request(f"sessions/{session_id}/finish", reason)


def create_model(session_id: str, model_seq_id: int = 0, seed: int = 7) -> Request:
    body = {
        "session_id": session_id,
        "model_seq_id": model_seq_id,
        "base_model": BASE_MODEL,
        "lora_config": {"rank": LORA_RANK, "seed": seed},
    }
    return Request("create_model", body)


def datum(num_tokens: int, seed: int, weight: float = 1.0) -> dict[str, Any]:
    """A cross_entropy datum over random tokens."""
    ids: list[int] = np.random.default_rng(seed).integers(10, 500, num_tokens + 1).tolist()
    return {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": ids[:-1]}]},
        "loss_fn_inputs": {
            "target_tokens": {"data": ids[1:], "dtype": "int64", "shape": [num_tokens]},
            "weights": {"data": [weight] * num_tokens, "dtype": "float32", "shape": [num_tokens]},
        },
    }


def forward_backward(model_id: str, seq_id: int, data: Sequence[Any]) -> Request:
    given = {"data": list(data), "loss_fn": "cross_entropy"}
    return _numbered("forward_backward", model_id, seq_id, forward_backward_input=given)


def forward(model_id: str, seq_id: int, data: Sequence[Any]) -> Request:
    given = {"data": list(data), "loss_fn": "cross_entropy"}
    return _numbered("forward", model_id, seq_id, forward_input=given)


def optim_step(model_id: str, seq_id: int, learning_rate: float) -> Request:
    return _numbered("optim_step", model_id, seq_id, adam_params={"learning_rate": learning_rate})


def save_weights(model_id: str, seq_id: int, name: str, overwrite: bool = False) -> Request:
    return _numbered("save_weights", model_id, seq_id, path=name, overwrite=overwrite)


def save_sampler(model_id: str, seq_id: int, name: str, overwrite: bool = False) -> Request:
    """A named sampler checkpoint."""
    return _numbered("save_weights_for_sampler", model_id, seq_id, path=name, overwrite=overwrite)


def save_ephemeral(model_id: str, seq_id: int, sampling_session_seq_id: int) -> Request:
    """Weights that only the sampling session that comes with them can read."""
    return _numbered(
        "save_weights_for_sampler",
        model_id,
        seq_id,
        sampling_session_seq_id=sampling_session_seq_id,
    )


def load_weights(model_id: str, seq_id: int, name: str, optimizer: bool) -> Request:
    """Of a checkpoint that the model itself has saved."""
    path = training_path(model_id, name)
    return _numbered("load_weights", model_id, seq_id, path=path, optimizer=optimizer)


def create_sampling_session(
    session_id: str, sampling_session_seq_id: int, model_path: str | None = None
) -> Request:
    body: dict[str, Any] = {
        "session_id": session_id,
        "sampling_session_seq_id": sampling_session_seq_id,
        **({"base_model": BASE_MODEL} if model_path is None else {"model_path": model_path}),
    }
    return Request("create_sampling_session", body)


def asample(sampling_session_id: str, seq_id: int, seed: int, max_tokens: int = 8) -> Request:
    prompt = {"chunks": [{"type": "encoded_text", "tokens": list(PROMPT)}]}
    body = {
        "sampling_session_id": sampling_session_id,
        "seq_id": seq_id,
        "num_samples": 2,
        "prompt": prompt,
        "sampling_params": {"max_tokens": max_tokens, "seed": seed, "stop": []},
    }
    return Request("asample", body)


def training_path(model_id: str, name: str) -> str:
    return f"tinker://{model_id}/weights/{name}"


def sampler_path(model_id: str, name: str) -> str:
    return f"tinker://{model_id}/sampler_weights/{name}"


def _numbered(route: str, model_id: str, seq_id: int, **rest: Any) -> Request:
    return Request(route, {"model_id": model_id, "seq_id": seq_id, **rest})
