"""Passes whose data share prefixes: the numbers of unshared ones, and the same bits in company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cyclora_core.blocks import split_into_blocks
from cyclora_core.errors import UserError
from cyclora_core.operations import PassBody, PassResult
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.pass_blocks import PassItem, shared_in
from cyclora_workers.passes import PackedPasses
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

LENGTHS = [60, 70, 45, 90, 41, 50, 66, 64]
BODIES = {
    "cross_entropy": cross_entropy(LENGTHS),
    "top-K": top_k(LENGTHS, [2, 5, 1]),
    "ppo": policy_body("ppo", LENGTHS),
    "gspo": policy_body("gspo", LENGTHS),
}


def groups(body: PassBody) -> PassBody:
    """Two groups, each with a prompt of its own."""
    return with_prompts(body, 4, 40)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load(ARCHITECTURES["qwen3"](), tmp_path_factory.mktemp("base"))


def assert_same(ours: PassResult, theirs: PassResult) -> None:
    assert ours.metrics == theirs.metrics
    for mine, other in zip(ours.logprobs, theirs.logprobs, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("loss", BODIES)
def test_sharing_changes_no_number(architecture: str, loss: str, tmp_path: Path) -> None:
    base_model = load(ARCHITECTURES[architecture](), tmp_path)
    body = groups(BODIES[loss])
    found: list[tuple[PassResult, Tensor]] = []
    for shares_prefixes in (True, False):
        state = random_adapter(base_model, 4, 0)
        passes = run(base_model, [item(state, body)], shares_prefixes=shares_prefixes)
        found.append((passes.results()["r"], state.gradient_P))
    (shared, shared_P), (apart, apart_P) = found

    assert shared.metrics == pytest.approx(apart.metrics, rel=1e-5, abs=1e-4)
    for mine, other in zip(shared.logprobs, apart.logprobs, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-5)
    assert (shared_P - apart_P).norm() < 1e-5 * apart_P.norm()


def test_a_shared_prefix_runs_once(base_model: BaseModel) -> None:
    state, body = random_adapter(base_model, 4, 0), groups(BODIES["ppo"])

    passes = PackedPasses(base_model, [item(state, body)], max_tokens_per_microbatch=4096)

    assert list(passes) == [sum(LENGTHS) - 6 * 40]


@pytest.mark.parametrize("loss", BODIES)
def test_an_operation_spread_over_cycles_gives_the_same_bits(
    base_model: BaseModel, loss: str
) -> None:
    body = groups(BODIES[loss])
    whole, spread = random_adapter(base_model, 4, 0), random_adapter(base_model, 4, 0)
    expected = run(base_model, [item(whole, body)], max_block_tokens=60).results()["r"]
    shared = shared_in(item(spread, body))
    assert sum(shared) == 6 * 40

    parts = [
        run(
            base_model,
            [replace(item(spread, body), datum_range=part)],
            max_block_tokens=60,
        ).results()["r"]
        for part in split_into_blocks(LENGTHS, 60, shared)
    ]

    assert len(parts) > 2
    assert torch.equal(spread.gradient_P, whole.gradient_P)
    joined = [logprobs for part in parts for logprobs in part.logprobs]
    for mine, other in zip(joined, expected.logprobs, strict=True):
        np.testing.assert_array_equal(mine, other)


def random_body(rng: np.random.Generator) -> PassBody:
    """Most of them with prompts of which neighbours share some tokens, or all."""
    lengths = rng.integers(1, 120, rng.integers(2, 9)).tolist()
    seed = int(rng.integers(1 << 20))
    body = [
        cross_entropy(lengths, seed),
        policy_body("gspo", lengths, seed),
        top_k(lengths, [2, 1, 3], seed),
    ][rng.integers(3)]
    if rng.random() < 0.3:
        return body
    body = with_prompts(body, int(rng.integers(1, 5)), int(rng.integers(32, 110)), seed)
    return with_prompts(body, len(lengths), int(rng.integers(0, 50)), seed)


@pytest.mark.parametrize("shape", ["usual", "odd", "bf16"])
def test_a_random_pack_changes_no_bit(shape: str, num_threads: int, tmp_path: Path) -> None:
    odd = {"vocab_size": 131, "hidden_size": 50, "intermediate_size": 71, "head_dim": 10}
    dtype = torch.bfloat16 if shape == "bf16" else torch.float32
    base_model = load(ARCHITECTURES["qwen3"](**(odd if shape == "odd" else {})), tmp_path, dtype)
    rng = np.random.default_rng([num_threads, len(shape)])
    num_shared = 0
    for _ in range(12):
        rank, body = int(rng.integers(1, 6)), random_body(rng)
        num_shared += sum(shared_in(item(random_adapter(base_model, 1, 0), body))) > 0
        others = [
            item(random_adapter(base_model, int(rng.integers(1, 6)), s), random_body(rng), f"{s}")
            for s in range(1, int(rng.integers(2, 4)))
        ]
        found: list[tuple[PassResult, Tensor]] = []
        for before, max_tokens in (([], 4096), (others, 4096), (others, 150)):
            state = random_adapter(base_model, rank, 0)
            items = [*before, item(state, body, "mine")]
            passes = run(base_model, items, max_tokens, max_block_tokens=200)
            found.append((passes.results()["mine"], state.gradient_P))
        for result, gradient_P in found[1:]:
            assert_same(result, found[0][0])
            assert torch.equal(gradient_P, found[0][1])
    assert num_shared > 2


def test_forward_gives_the_logprobs_of_forward_backward(base_model: BaseModel) -> None:
    state, body = random_adapter(base_model, 4, 0), groups(BODIES["ppo"])

    forward = run(base_model, [item(state, body, needs_gradient=False)]).results()["r"]

    assert not state.gradient_P.any()
    assert_same(forward, run(base_model, [item(state, body)]).results()["r"])


def test_opposite_weights_on_a_shared_row_cancel(base_model: BaseModel) -> None:
    """The last token of the prompt predicts the same token for both data."""
    first, second = with_prompts(cross_entropy([48, 48]), 2, 48).data
    targets = first.loss_fn_inputs["target_tokens"]
    data = [
        replace(each, loss_fn_inputs={"target_tokens": targets, "weights": sign * _only(39)})
        for each, sign in ((first, 1.0), (second, -1.0))
    ]
    state = random_adapter(base_model, 4, 0)

    result = run(base_model, [item(state, PassBody("cross_entropy", {}, data))]).results()["r"]

    assert result.metrics["loss:sum"] == 0.0
    assert not state.gradient_P.any()


def _only(place: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    weights = np.zeros(48, np.float32)
    weights[place] = 1.0
    return weights


def test_a_prompt_without_weight_still_has_gradients_from_its_completions(
    base_model: BaseModel,
) -> None:
    """All that the loss sees comes after the prompt, and reaches it through attention alone."""
    body = with_prompts(cross_entropy([60] * 4), 4, 40)
    weights = np.repeat([0.0, 1.0], [45, 15]).astype(np.float32)
    data = [
        replace(each, loss_fn_inputs={**each.loss_fn_inputs, "weights": weights})
        for each in body.data
    ]
    found: list[AdapterState] = []
    for shares_prefixes in (True, False):
        found.append(random_adapter(base_model, 4, 0, train_unembed=False))
        only = item(found[-1], PassBody("cross_entropy", {}, data))
        run(base_model, [only], shares_prefixes=shares_prefixes)

    shared_P, apart_P = (state.gradient_P for state in found)
    assert (shared_P - apart_P).norm() < 1e-5 * apart_P.norm()


def test_a_datum_that_may_not_run_is_refused_whatever_it_shares(base_model: BaseModel) -> None:
    body = groups(BODIES["ppo"])
    bad = PassBody("ppo", {}, [*body.data, replace(body.data[0], tokens=np.array([-1], np.int32))])
    only: list[PassItem] = [item(random_adapter(base_model, 4, 0), bad)]

    with pytest.raises(UserError):
        run(base_model, only)
