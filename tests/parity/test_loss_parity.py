"""Every loss function through a whole model, against plain PyTorch: value, logprobs, gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cyclora_core.losses import LOSS_RULES
from cyclora_core.operations import Datum, PassBody
from cyclora_workers.base_model import BaseModel
from parity.peft_reference import PeftReference
from parity.tolerances import LOSS, Tolerance, close
from workers.builders import (
    ARCHITECTURES,
    cross_entropy,
    item,
    load,
    policy_body,
    random_adapter,
    run,
    top_k,
)

FP32 = torch.float32
LENGTHS = [11, 1, 30, 8]


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load(ARCHITECTURES["qwen3"](), tmp_path_factory.mktemp("base"))


def near(body: PassBody, base_model: BaseModel) -> PassBody:
    """With sampler logprobs near the model's, so that ratios fall on both sides of thresholds."""
    state = random_adapter(base_model, 4, 4)
    logprobs = run(base_model, [item(state, body, needs_gradient=False)]).results()["r"].logprobs
    rng = np.random.default_rng(0)
    data: list[Datum] = []
    for datum, found in zip(body.data, logprobs, strict=True):
        noise = rng.normal(0, 0.4, found.shape).astype(np.float32)
        data.append(
            replace(datum, loss_fn_inputs={**datum.loss_fn_inputs, "logprobs": found + noise})
        )
    return replace(body, data=data)


def per_token(body: PassBody, **bounds: tuple[float, float]) -> PassBody:
    """With thresholds of its own at each token of every other datum."""
    data: list[Datum] = []
    for index, datum in enumerate(body.data):
        rng = np.random.default_rng(index)
        own: dict[str, Any] = {
            key: rng.uniform(low, high, len(datum.tokens)).astype(np.float32)
            for key, (low, high) in bounds.items()
        }
        inputs = datum.loss_fn_inputs if index % 2 else {**datum.loss_fn_inputs, **own}
        data.append(replace(datum, loss_fn_inputs=inputs))
    return replace(body, data=data)


LOW, HIGH = "clip_low_threshold", "clip_high_threshold"


def policy(loss_fn: str, config: Mapping[str, float] | None = None) -> PassBody:
    return policy_body(loss_fn, LENGTHS, config=config)


BODIES: dict[str, PassBody] = {
    "cross_entropy": cross_entropy(LENGTHS),
    "cross_entropy top-K": top_k(LENGTHS, [3, 1, 7]),
    "importance_sampling": policy("importance_sampling"),
    "ppo": policy("ppo"),
    "ppo config": policy("ppo", {LOW: 0.9, HIGH: 1.5}),
    "ppo per token": per_token(policy("ppo"), **{LOW: (0.5, 0.9), HIGH: (0.9, 1.3)}),
    "ppo per token, one side": per_token(policy("ppo", {LOW: 0.4}), **{HIGH: (0.9, 1.3)}),
    "cispo": policy("cispo"),
    "cispo config": policy("cispo", {LOW: 0.8, HIGH: 1.1}),
    "cispo per token": per_token(policy("cispo"), **{LOW: (0.5, 0.9), HIGH: (0.9, 1.3)}),
    "gspo": policy("gspo"),
    "gspo config": policy("gspo", {LOW: 0.98, HIGH: 1.02}),
    "gspo per token": per_token(policy("gspo"), **{LOW: (0.7, 1.0), HIGH: (1.0, 1.2)}),
    "dro": policy("dro"),
    "dro config": policy("dro", {"beta": 1.5}),
}


@pytest.mark.parametrize("name", BODIES)
def test_value_logprobs_and_gradient_match_pytorch(name: str, base_model: BaseModel) -> None:
    body = BODIES[name]
    if "logprobs" in body.data[0].loss_fn_inputs:
        body = near(body, base_model)
    state = random_adapter(base_model, 4, 4)
    reference = PeftReference(ARCHITECTURES["qwen3"](), state)

    result = run(base_model, [item(state, body)]).results()["r"]

    loss, logprobs = reference.forward_backward(body)
    assert result.metrics["loss:sum"] == pytest.approx(loss, rel=1e-5, abs=1e-4)
    for ours, theirs in zip(result.logprobs, logprobs, strict=True):
        assert ours.shape == theirs.shape
        close(torch.from_numpy(ours), theirs, LOSS[FP32])
    pairs = reference.compare_gradients(state)
    largest = max(theirs.abs().max().item() for _, theirs in pairs)
    assert largest > 0.1
    for ours, theirs in pairs:
        close(ours / largest, theirs / largest, Tolerance(0.0, LOSS[FP32].atol))


def test_every_loss_is_compared() -> None:
    assert {body.loss_fn for body in BODIES.values()} == LOSS_RULES.keys()
