"""Data that share a prompt train as PEFT trains each of them by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cyclora_core.operations import PassBody
from cyclora_workers.pass_blocks import shared_in
from parity.peft_reference import PeftReference
from parity.tolerances import FORWARD, GRADIENT, close
from workers.builders import (
    ARCHITECTURES,
    cross_entropy,
    item,
    load,
    policy_body,
    random_adapter,
    run,
    top_k,
    with_prompts,
)

FP32 = torch.float32
LENGTHS = [60, 70, 45, 90, 41, 50]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "body",
    [
        cross_entropy(LENGTHS),
        top_k(LENGTHS, [2, 5, 1]),
        policy_body("importance_sampling", LENGTHS),
        policy_body("ppo", LENGTHS),
        policy_body("cispo", LENGTHS),
        policy_body("dro", LENGTHS),
        policy_body("gspo", LENGTHS),
    ],
    ids=["cross_entropy", "top-K", "importance_sampling", "ppo", "cispo", "dro", "gspo"],
)
def test_groups_with_a_prompt_match_peft_datum_by_datum(
    architecture: str, body: PassBody, tmp_path: Path
) -> None:
    """Prompts of 37 tokens, of which 32 are shared: the rest is computed for each datum."""
    body = with_prompts(body, 3, 37)
    base_model = load(ARCHITECTURES[architecture](), tmp_path)
    state = random_adapter(base_model, 3, 0)
    reference = PeftReference(ARCHITECTURES[architecture](), state)
    assert sum(shared_in(item(state, body))) == 4 * 32

    result = run(base_model, [item(state, body)]).results()["r"]

    loss, logprobs = reference.forward_backward(body)
    assert result.metrics["loss:sum"] == pytest.approx(loss, rel=1e-4, abs=1e-3)
    for ours, theirs in zip(result.logprobs, logprobs, strict=True):
        close(torch.from_numpy(ours), theirs, FORWARD[FP32])
    for ours, theirs in reference.compare_gradients(state):
        largest = theirs.abs().max()
        close(ours / largest, theirs / largest, GRADIENT[FP32])
