"""Packed passes: what comes out does not depend on who shares the batch, in not a single bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cyclora_core.blocks import split_into_blocks
from cyclora_core.errors import ServerError, UserError
from cyclora_core.operations import Datum, OptimStepBody, PassBody, PassResult
from cyclora_core.types import DatumRange
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.optimizer import optimizer_step
from cyclora_workers.pass_blocks import PassItem
from cyclora_workers.passes import PackedPasses
from workers.builders import (
    ARCHITECTURES,
    VOCAB_SIZE,
    cross_entropy,
    datum,
    item,
    load,
    policy_body,
    random_adapter,
    run,
    top_k,
)

BLOCK_TOKENS = 24
STEP = OptimStepBody(learning_rate=1e-2, weight_decay=0.1)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load(ARCHITECTURES["qwen3"](), tmp_path_factory.mktemp("base"))


def neighbours(base_model: BaseModel, step: int) -> list[PassItem]:
    """Three others of other ranks and losses; sizes from one token to many blocks."""
    small = random_adapter(base_model, 1, 11)
    large = random_adapter(base_model, 8, 12, train_attn=False)
    other = random_adapter(base_model, 3, 13, train_unembed=False)
    return [
        item(small, cross_entropy([1], step + 70), "small"),
        item(large, policy_body("ppo", [30, 3, 1, 60, 5 + step], step), "large"),
        item(other, policy_body("dro", [2, 2], step), "other"),
        item(other, cross_entropy([9, 4], step), "forward", needs_gradient=False),
        item(small, top_k([5, 26, 3], [4, 1, 9], step), "top-k"),
    ]


def mixed_losses(step: int) -> PassBody:
    """A body of one model; each step has another loss function."""
    lengths = [7, 13, 1, 9, 30]
    return [
        cross_entropy(lengths, step),
        top_k(lengths, [2, 5, 1], step),
        policy_body("gspo", lengths, step),
    ][step]


def train(
    base_model: BaseModel, max_tokens: int, *, beside_others: bool
) -> tuple[list[PassResult], list[Tensor]]:
    """Results and weights of an adapter over several steps."""
    state = random_adapter(base_model, 4, 0)
    results: list[PassResult] = []
    weights: list[Tensor] = []
    for step in range(3):
        mine = item(state, mixed_losses(step), "mine")
        others = neighbours(base_model, step) if beside_others else []
        # In another place of the pack in each step.
        items = [*others[:step], mine, *others[step:]]
        passes = run(base_model, items, max_tokens, max_block_tokens=BLOCK_TOKENS)
        results.append(passes.results()["mine"])
        optimizer_step(state, STEP)
        weights.append(state.master_P.clone())
    return results, weights


def assert_same(ours: PassResult, theirs: PassResult) -> None:
    assert ours.metrics == theirs.metrics
    for mine, other in zip(ours.logprobs, theirs.logprobs, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_and_weights_have_the_same_bits_alone_and_beside_others(
    architecture: str, dtype: torch.dtype, tmp_path: Any
) -> None:
    base_model = load(ARCHITECTURES[architecture](), tmp_path, dtype)
    alone = train(base_model, 4096, beside_others=False)

    together = train(base_model, 4096, beside_others=True)

    for ours, theirs in zip(together[0], alone[0], strict=True):
        assert_same(ours, theirs)
    for mine, other in zip(together[1], alone[1], strict=True):
        assert torch.equal(mine, other)


ODD_SHAPES: list[dict[str, int]] = [
    {"vocab_size": 1003, "hidden_size": 64, "intermediate_size": 96},
    {"vocab_size": 1001, "hidden_size": 48, "intermediate_size": 72, "head_dim": 12},
    {"vocab_size": 97, "hidden_size": 80, "intermediate_size": 100, "head_dim": 20},
    {"vocab_size": 131, "hidden_size": 50, "intermediate_size": 71, "head_dim": 10},
]


@pytest.mark.parametrize("shape", ODD_SHAPES, ids=lambda s: f"{s['vocab_size']}")
def test_a_random_pack_of_an_odd_shape_changes_no_bit(shape: dict[str, int], tmp_path: Any) -> None:
    """Rows of such sizes lie at addresses that depend on how many rows are before them."""
    model = ARCHITECTURES["qwen3"](**shape, max_position_embeddings=512)
    base_model = load(model, tmp_path)
    rng = np.random.default_rng(shape["vocab_size"])

    def random_body() -> PassBody:
        lengths = rng.integers(1, 300, rng.integers(1, 4)).tolist()
        return cross_entropy(lengths, int(rng.integers(1 << 20)))

    for _ in range(16):
        rank, body = int(rng.integers(1, 6)), random_body()
        found: list[tuple[PassResult, Tensor]] = []
        others = [
            item(
                random_adapter(base_model, int(rng.integers(1, 6)), seed), random_body(), f"{seed}"
            )
            for seed in range(1, rng.integers(2, 4))
        ]
        for before in ([], others):
            state = random_adapter(base_model, rank, 0)
            passes = run(base_model, [*before, item(state, body, "mine")])
            found.append((passes.results()["mine"], state.gradient_P))
        (alone, alone_P), (beside, beside_P) = found
        assert_same(beside, alone)
        assert torch.equal(beside_P, alone_P)


@pytest.mark.parametrize("max_tokens", [1, 40, 100])
def test_the_microbatch_split_changes_no_bit(base_model: BaseModel, max_tokens: int) -> None:
    whole = train(base_model, 4096, beside_others=True)

    split = train(base_model, max_tokens, beside_others=True)

    for ours, theirs in zip(split[0], whole[0], strict=True):
        assert_same(ours, theirs)
    for mine, other in zip(split[1], whole[1], strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    "body",
    [
        cross_entropy([7, 13, 1, 9, 30, 4]),
        top_k([7, 13, 1, 9, 30, 4], [3, 1, 6]),
        policy_body("gspo", [7, 13, 1, 9, 30, 4]),
    ],
    ids=["cross_entropy", "top-K", "gspo"],
)
def test_an_operation_spread_over_cycles_gives_the_same_bits(
    base_model: BaseModel, body: PassBody
) -> None:
    whole, spread = random_adapter(base_model, 4, 0), random_adapter(base_model, 4, 0)
    expected = run(base_model, [item(whole, body)], max_block_tokens=BLOCK_TOKENS).results()["r"]

    parts: list[PassResult] = []
    for part in split_into_blocks([len(d.tokens) for d in body.data], BLOCK_TOKENS):
        passes = run(
            base_model,
            [replace(item(spread, body), datum_range=part)],
            max_block_tokens=BLOCK_TOKENS,
        )
        parts.append(passes.results()["r"])

    assert len(parts) > 2
    assert torch.equal(spread.gradient_P, whole.gradient_P)
    joined = [logprobs for part in parts for logprobs in part.logprobs]
    for mine, other in zip(joined, expected.logprobs, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert sum(p.metrics["loss:sum"] for p in parts) == pytest.approx(expected.metrics["loss:sum"])


def test_a_range_that_cuts_a_block_is_our_fault(base_model: BaseModel) -> None:
    part = replace(
        item(random_adapter(base_model, 4, 0), cross_entropy([3, 3])), datum_range=DatumRange(0, 1)
    )

    with pytest.raises(ServerError, match="not cut between blocks"):
        run(base_model, [part])


def test_one_item_per_next_may_be_interleaved_with_other_work(base_model: BaseModel) -> None:
    body = cross_entropy([10, 10, 10])
    state = random_adapter(base_model, 4, 0)
    items = [item(state, body, "a"), item(state, body, "f", needs_gradient=False)]
    passes = PackedPasses(base_model, items, max_tokens_per_microbatch=20, max_block_tokens=10)

    assert list(passes) == [20, 10, 20, 10]


def test_forward_gives_the_logprobs_of_forward_backward_and_no_gradient(
    base_model: BaseModel,
) -> None:
    state, body = random_adapter(base_model, 4, 0), policy_body("ppo", [9, 30])

    forward = run(base_model, [item(state, body, needs_gradient=False)]).results()["r"]

    assert not state.gradient_P.any()
    assert state.num_accumulated_passes == 0
    assert_same(forward, run(base_model, [item(state, body)]).results()["r"])


def gradient_of(base_model: BaseModel, *bodies: PassBody) -> Tensor:
    """The gradient of an adapter after the operations, all in one pack."""
    state = random_adapter(base_model, 4, 0)
    run(base_model, [item(state, body, str(i)) for i, body in enumerate(bodies)])
    assert state.num_accumulated_passes == len(bodies)
    return state.gradient_P


def weighted(*weights: Any) -> PassBody:
    """The same data each time, with the loss weights given."""
    return PassBody(
        "cross_entropy", {}, [datum(len(w), 40 + i, weights=w) for i, w in enumerate(weights)]
    )


def test_an_operation_sent_twice_doubles_the_gradient(base_model: BaseModel) -> None:
    body = weighted([1.0] * 12, [1.0] * 5)
    expected_P = 2 * gradient_of(base_model, body)

    torch.testing.assert_close(gradient_of(base_model, body, body), expected_P)


def test_a_datum_sent_twice_doubles_the_gradient(base_model: BaseModel) -> None:
    body = weighted([1.0] * 12)
    twice = PassBody("cross_entropy", {}, [*body.data, *body.data])

    expected_P = 2 * gradient_of(base_model, body)

    torch.testing.assert_close(gradient_of(base_model, twice), expected_P, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [0.5, -1.0, 3.0])
def test_the_gradient_is_linear_in_the_loss_weights(base_model: BaseModel, factor: float) -> None:
    weights = np.random.default_rng(0).normal(size=12)

    expected_P = factor * gradient_of(base_model, weighted(weights))

    found_P = gradient_of(base_model, weighted(factor * weights))
    torch.testing.assert_close(found_P, expected_P, rtol=1e-4, atol=1e-5)


def test_opposite_loss_weights_cancel(base_model: BaseModel) -> None:
    weights = np.random.default_rng(0).normal(size=12)
    there, back = weighted(weights).data[0], weighted(-weights).data[0]
    body = PassBody("cross_entropy", {}, [there, back])
    scale = gradient_of(base_model, weighted(weights)).abs().max().item()

    assert gradient_of(base_model, body).abs().max().item() < 1e-4 * scale


def test_zero_loss_weights_give_logprobs_and_no_gradient(base_model: BaseModel) -> None:
    state = random_adapter(base_model, 4, 0)

    result = run(base_model, [item(state, weighted([0.0] * 6))]).results()["r"]

    assert result.metrics == {"loss:sum": 0.0}
    assert (result.logprobs[0] < 0).all()
    assert not state.gradient_P.any()


def test_a_sequence_longer_than_a_chunk_of_the_head_has_one_ratio(base_model: BaseModel) -> None:
    body = policy_body("gspo", [50, 3], config={"clip_high_threshold": 1e9})
    found: list[tuple[PassResult, Tensor]] = []
    for head_chunk_rows in (8, 512):
        state = random_adapter(base_model, 4, 0)
        passes = run(base_model, [item(state, body)], head_chunk_rows=head_chunk_rows)
        found.append((passes.results()["r"], state.gradient_P))
    (cut, cut_P), (whole, whole_P) = found

    assert cut.metrics["loss:sum"] == pytest.approx(whole.metrics["loss:sum"], rel=1e-6)
    torch.testing.assert_close(cut_P, whole_P, rtol=1e-4, atol=1e-5)


def test_forward_of_a_sequence_loss_reports_the_loss_and_trains_nothing(
    base_model: BaseModel,
) -> None:
    state, body = random_adapter(base_model, 4, 0), policy_body("gspo", [9, 30])

    forward = run(base_model, [item(state, body, needs_gradient=False)]).results()["r"]

    assert not state.gradient_P.any()
    assert_same(forward, run(base_model, [item(state, body)]).results()["r"])


def test_an_operation_without_data_has_an_empty_result(base_model: BaseModel) -> None:
    state = random_adapter(base_model, 4, 0)

    result = run(base_model, [item(state, PassBody("cross_entropy", {}, []))]).results()["r"]

    assert list(result.logprobs) == []
    assert result.metrics == {"loss:sum": 0.0}


def test_per_token_thresholds_apply_to_the_data_that_have_them(base_model: BaseModel) -> None:
    body = policy_body("cispo", [8, 8], config={"clip_high_threshold": 1.3})
    high = np.full(8, 1.3, np.float32)
    explicit = replace(
        body.data[0], loss_fn_inputs={**body.data[0].loss_fn_inputs, "clip_high_threshold": high}
    )
    mixed = PassBody("cispo", {"clip_high_threshold": 1.3}, [explicit, body.data[1]])

    found, expected = (gradient_of(base_model, b) for b in (mixed, body))

    assert torch.equal(found, expected)


class _Broken(Exception):
    pass


def test_rollback_brings_every_gradient_back(
    base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, used = random_adapter(base_model, 4, 0), random_adapter(base_model, 2, 1)
    run(base_model, [item(used, cross_entropy([5]))])
    before = used.gradient_P.clone()
    body = cross_entropy([10, 10, 10])
    items = [item(fresh, body, "a"), item(used, body, "b")]
    passes = PackedPasses(base_model, items, max_tokens_per_microbatch=20, max_block_tokens=10)
    next(passes)
    next(passes)
    assert not torch.equal(used.gradient_P, before)

    def fail(*_: object) -> None:
        raise _Broken

    monkeypatch.setattr(base_model, "hidden", fail)
    with pytest.raises(_Broken):
        next(passes)
    passes.rollback()

    assert not fresh.gradient_P.any()
    assert torch.equal(used.gradient_P, before)
    assert (fresh.num_accumulated_passes, used.num_accumulated_passes) == (0, 1)


def test_training_leaves_a_snapshot_and_other_adapters_as_they_were(
    base_model: BaseModel,
) -> None:
    state, other = random_adapter(base_model, 4, 0), random_adapter(base_model, 4, 1)
    frozen, bystander = state.snapshot_weights(), other.export_tensors()
    before_P = frozen.flat_P.clone()

    run(base_model, [item(state, cross_entropy([20]))])
    optimizer_step(state, STEP)

    assert torch.equal(frozen.flat_P, before_P)
    assert not torch.equal(state.weights.flat_P, before_P)
    after = other.export_tensors()
    assert all(torch.equal(bystander[name], after[name]) for name in bystander)


def test_training_lowers_the_loss(base_model: BaseModel) -> None:
    state = AdapterState.create(base_model, random_adapter(base_model, 4, 0).config)
    body = weighted([1.0] * 20)
    losses: list[float] = []
    for _ in range(15):
        results = run(base_model, [item(state, body)]).results()
        losses.append(results["r"].metrics["loss:sum"])
        optimizer_step(state, OptimStepBody(learning_rate=2e-2))

    assert losses[-1] < losses[0] / 4


def test_logprobs_have_the_shape_of_target_tokens(base_model: BaseModel) -> None:
    rng = np.random.default_rng(0)
    data: list[Datum] = []
    for length, shape in ((4, (4,)), (3, (3, 2)), (5, (5, 1))):
        targets = rng.integers(0, VOCAB_SIZE, shape)
        given: dict[str, Any] = {"target_tokens": targets, "weights": np.ones(shape, np.float32)}
        data.append(Datum(datum(length, length).tokens, given))
    body = PassBody("cross_entropy", {}, data)

    result = run(base_model, [item(random_adapter(base_model, 4, 0), body)]).results()["r"]

    assert [values.shape for values in result.logprobs] == [(4,), (3, 2), (5, 1)]
    assert {values.dtype for values in result.logprobs} == {np.dtype(np.float32)}


def test_a_bad_body_is_refused_before_anything_runs(base_model: BaseModel) -> None:
    state = random_adapter(base_model, 4, 0)
    bad = PassBody("cross_entropy", {}, [Datum(np.array([VOCAB_SIZE], np.int32), {})])

    with pytest.raises(UserError):
        run(base_model, [item(state, cross_entropy([5]), "good"), item(state, bad, "bad")])

    assert not state.gradient_P.any()
