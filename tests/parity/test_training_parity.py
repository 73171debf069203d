"""Several adapters in one pack train as PEFT trains each of them by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cyclora_core.operations import OptimStepBody, PassBody
from cyclora_workers.optimizer import optimizer_step
from parity.peft_reference import PeftReference
from parity.tolerances import AFTER_STEPS, FORWARD, GRADIENT, close
from workers.builders import (
    ARCHITECTURES,
    cross_entropy,
    item,
    load,
    policy_body,
    random_adapter,
    run,
)

FP32 = torch.float32
RANKS = {"a": 1, "b": 3, "c": 8, "d": 4}
FLAGS: dict[str, dict[str, bool]] = {
    "b": {"train_unembed": False},
    "c": {"train_attn": False},
    "d": {"train_attn": False, "train_mlp": False},
}


def bodies(step: int) -> dict[str, PassBody]:
    """Different losses, lengths and numbers of data for each adapter; some of a single token."""
    return {
        "a": cross_entropy([11, 1, 29], step),
        "b": policy_body("ppo", [7, 40], step, {"clip_low_threshold": 0.5}),
        "c": policy_body("importance_sampling", [1], step),
        "d": policy_body("cispo", [13, 13], step),
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_adapters_in_one_pack_match_peft_one_at_a_time(
    architecture: str, tmp_path: Path
) -> None:
    make = ARCHITECTURES[architecture]
    base_model = load(make(), tmp_path)
    states = {
        key: random_adapter(base_model, rank, rank, **FLAGS.get(key, {}))
        for key, rank in RANKS.items()
    }
    references = {key: PeftReference(make(), state) for key, state in states.items()}

    results = run(base_model, [item(states[k], b, k) for k, b in bodies(0).items()]).results()

    for key, body in bodies(0).items():
        loss, logprobs = references[key].forward_backward(body)
        assert results[key].metrics["loss:sum"] == pytest.approx(loss, rel=1e-4, abs=1e-3)
        for ours, theirs in zip(results[key].logprobs, logprobs, strict=True):
            close(torch.from_numpy(ours), theirs, FORWARD[FP32])
        for ours, theirs in references[key].compare_gradients(states[key]):
            close(ours, theirs, GRADIENT[FP32])


def test_several_optimizer_steps_match_peft_and_adamw(tmp_path: Path) -> None:
    make = ARCHITECTURES["qwen3"]
    base_model = load(make(), tmp_path)
    states = {k: random_adapter(base_model, r, r, **FLAGS.get(k, {})) for k, r in RANKS.items()}
    references = {key: PeftReference(make(), state) for key, state in states.items()}
    body = OptimStepBody(learning_rate=1e-3, weight_decay=0.1, grad_clip_norm=1.0, eps=1e-6)
    optimizers = {
        key: torch.optim.AdamW(
            reference.trainable, lr=1e-3, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1
        )
        for key, reference in references.items()
    }

    for step in range(4):
        run(base_model, [item(states[k], b, k) for k, b in bodies(step).items()])
        for key, data in bodies(step).items():
            optimizer_step(states[key], body)
            references[key].forward_backward(data)
            torch.nn.utils.clip_grad_norm_(references[key].trainable, 1.0)
            optimizers[key].step()
            optimizers[key].zero_grad()

    for key, reference in references.items():
        for ours, theirs in reference.compare_weights(states[key]):
            close(ours, theirs, AFTER_STEPS[FP32])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_stays_near_fp32(architecture: str, tmp_path: Path) -> None:
    make = ARCHITECTURES[architecture]
    base_model = load(make(initializer_range=0.1), tmp_path, torch.bfloat16)
    state = random_adapter(base_model, 4, 4)
    rounded: Any = make(initializer_range=0.1)
    rounded.to(torch.bfloat16).float()
    reference = PeftReference(rounded, state)
    body = cross_entropy([21, 3])

    result = run(base_model, [item(state, body)]).results()["r"]

    _, logprobs = reference.forward_backward(body)
    for ours, theirs in zip(result.logprobs, logprobs, strict=True):
        close(torch.from_numpy(ours), theirs, FORWARD[torch.bfloat16])
    for ours, theirs in reference.compare_gradients(state):
        close(ours, theirs, GRADIENT[torch.bfloat16])
    assert state.gradient_P.dtype == torch.float32
