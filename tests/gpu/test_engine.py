"""Training and sampling on a GPU in bfloat16, against the same on the CPU in fp32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cyclora_core.operations import Datum, OptimStepBody, PassBody, PassResult
from cyclora_core.samples import SampleBody, SampleResult, SamplingParams
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import PassContext, Segment
from cyclora_workers.optimizer import optimizer_step
from cyclora_workers.packed_plan import packed_attention
from cyclora_workers.pass_blocks import PassItem
from cyclora_workers.sampling.sampler import Sampler
from gpu.conftest import Pair
from parity.tolerances import FORWARD, GRADIENT, close
from workers.builders import cross_entropy, item, policy_body, positions, random_adapter, run

pytestmark = pytest.mark.gpu

SIZES = [(1, 11), (8, 12), (18, 13), (8, 14)]


def mixed(base_model: BaseModel) -> tuple[list[AdapterState], list[PassItem]]:
    """Ranks, losses and lengths all differ; one adapter occurs twice."""
    states = [random_adapter(base_model, rank, seed) for rank, seed in SIZES]
    bodies = [
        cross_entropy([1, 40], 1),
        policy_body("ppo", [9, 30, 1], 2),
        cross_entropy([64], 3),
        policy_body("dro", [5, 6], 4),
    ]
    items = [item(states[i], body, str(i)) for i, body in enumerate(bodies)]
    return states, [*items, item(states[0], cross_entropy([7], 5), "again")]


def passed(base_model: BaseModel) -> tuple[dict[str, PassResult], list[Tensor]]:
    states, items = mixed(base_model)
    results = run(base_model, items).results()
    return results, [state.gradient_P.cpu() for state in states]


def test_mixed_passes_give_the_losses_and_gradients_of_the_cpu(pair: Pair) -> None:
    ours, our_gradients = passed(pair.gpu)
    theirs, their_gradients = passed(pair.cpu)

    for request_id, expected in theirs.items():
        for mine, other in zip(ours[request_id].logprobs, expected.logprobs, strict=True):
            close(torch.from_numpy(mine), torch.from_numpy(other), FORWARD[torch.bfloat16])
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        scale = other.abs().max()
        close(mine / scale, other / scale, GRADIENT[torch.bfloat16])


def test_the_same_pass_gives_the_same_bits_again(pair: Pair) -> None:
    first, first_gradients = passed(pair.gpu)
    again, again_gradients = passed(pair.gpu)

    for request_id, expected in first.items():
        pairs = zip(again[request_id].logprobs, expected.logprobs, strict=True)
        assert all(np.array_equal(mine, other) for mine, other in pairs)
    for mine, other in zip(again_gradients, first_gradients, strict=True):
        assert torch.equal(mine, other)


def test_layers_do_not_make_the_host_wait(pair: Pair) -> None:
    """Forward and backward of the decoder layers, once everything is compiled."""
    base_model = pair.gpu
    states = [random_adapter(base_model, 4, seed) for seed in (1, 2)]
    lengths = [20, 12]
    segments = [Segment(0, 20, states[0].weights), Segment(20, 32, states[1].weights)]
    tokens_T = torch.arange(32, device=base_model.device)
    positions_T = positions(lengths).to(base_model.device)

    def step() -> None:
        plan = packed_attention(
            [0, 20, 32],
            device=base_model.device,
            dtype=base_model.dtype,
            head_size=base_model.head_size,
        )
        hidden_TD = base_model.hidden(tokens_T, positions_T, PassContext(segments, plan))
        hidden_TD.backward(torch.ones_like(hidden_TD))  # type: ignore[no-untyped-call]

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def loss_of(base_model: BaseModel, state: AdapterState, body: PassBody) -> float:
    return run(base_model, [item(state, body)]).results()["r"].metrics["loss:sum"]


def sampled(base_model: BaseModel, state: AdapterState, prompt: list[int]) -> SampleResult:
    sampler = Sampler(base_model, max_kv_tokens=512, detokenize=None)
    params = SamplingParams(max_tokens=16, seed=3, temperature=1.0)
    sampler.admit(
        "s", SampleBody(np.asarray(prompt, np.int32), 1, params), state.snapshot_weights()
    )
    while not (finished := sampler.step()):
        pass
    result = finished[0].result
    assert isinstance(result, SampleResult), result
    return result


def test_what_was_trained_is_sampled_with_the_logprobs_of_forward(pair: Pair) -> None:
    base_model = pair.gpu
    state = random_adapter(base_model, 8, 1)
    body = cross_entropy([30, 20], 1)
    before = loss_of(base_model, state, body)
    state.gradient_P.zero_()
    for _ in range(10):
        run(base_model, [item(state, body)])
        optimizer_step(state, OptimStepBody(learning_rate=1e-2))
    assert loss_of(base_model, state, body) < before

    sequence = sampled(base_model, state, [5, 6, 7]).sequences[0]

    tokens = np.asarray([5, 6, 7, *sequence.tokens])
    inputs = {"target_tokens": tokens[1:], "weights": np.ones(len(tokens) - 1, np.float32)}
    scored = Datum(tokens[:-1].astype(np.int32), inputs)
    forward = run(
        base_model, [item(state, PassBody("cross_entropy", {}, [scored]), needs_gradient=False)]
    ).results()["r"]
    mean_difference = np.abs(forward.logprobs[0][2:] - np.asarray(sequence.logprobs)).mean()
    assert mean_difference < 5e-2
