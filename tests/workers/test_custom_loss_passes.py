"""Custom losses inside packed passes: same bits in any company, and a failure that stays alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cyclora_core import payload
from cyclora_core.blocks import split_into_blocks
from cyclora_core.clock import ManualClock
from cyclora_core.custom_loss import CustomLoss
from cyclora_core.custom_loss_program import read_program
from cyclora_core.errors import UserError
from cyclora_core.operations import Datum, OperationKind, OptimStepBody, PassBody, PassResult
from cyclora_core.records import FutureState
from cyclora_core.store import Store
from cyclora_workers.base_model import BaseModel
from cyclora_workers.custom_loss import bounds
from cyclora_workers.pass_blocks import PassItem
from workers.builders import cross_entropy, item, load, policy_body, qwen3, random_adapter, run
from workers.harness import SESSION_ID, Harness, same
from workers.uploads import uploaded

BLOCK_TOKENS = 24
LENGTHS = [7, 13, 1, 9, 30, 4]


def ppo(logprobs: Any, old: Any, advantages: Any) -> Any:
    ratio = torch.exp(logprobs - old)
    clipped = ratio.clamp(0.8, 1.2)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).sum()
    return loss, {"custom/ratio:mean": ratio.mean(), "custom/n:sum": ratio.shape[0] + 0 * loss}


def fragile(logprobs: Any, old: Any, advantages: Any) -> Any:
    """Fails for a datum whose advantages sum to less than 0."""
    return (logprobs * advantages.sum().sqrt()).sum(), {}


PPO = uploaded(ppo, {"logprobs": 1, "old": 1, "advantages": 1})
FRAGILE = uploaded(fragile, {"logprobs": 1, "old": 1, "advantages": 1})


def with_loss(body: PassBody, loss: CustomLoss = PPO) -> PassBody:
    data = [
        Datum(
            each.tokens,
            {
                "target_tokens": each.loss_fn_inputs["target_tokens"],
                "old": each.loss_fn_inputs["logprobs"],
                "advantages": each.loss_fn_inputs["advantages"],
            },
        )
        for each in body.data
    ]
    return PassBody("custom", {}, data, "loss-id", loss)


def bad_at(place: int, lengths: list[int]) -> PassBody:
    """Fails at one datum."""
    body = with_loss(policy_body("ppo", lengths), FRAGILE)
    data = [
        replace(
            each,
            loss_fn_inputs={
                **each.loss_fn_inputs,
                "advantages": np.full(len(each.tokens), -1.0 if i == place else 1.0, np.float32),
            },
        )
        for i, each in enumerate(body.data)
    ]
    return replace(body, data=data)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load(qwen3(), tmp_path_factory.mktemp("base"))


def others(base_model: BaseModel) -> list[PassItem]:
    return [
        item(random_adapter(base_model, 8, 12), policy_body("gspo", [30, 3, 60]), "gspo"),
        item(random_adapter(base_model, 2, 13), with_loss(policy_body("ppo", [5, 9])), "custom"),
    ]


def assert_same(ours: PassResult, theirs: PassResult) -> None:
    assert ours.metrics == theirs.metrics
    for mine, other in zip(ours.logprobs, theirs.logprobs, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_the_body_survives_its_payload() -> None:
    body = with_loss(policy_body("ppo", [3, 2]))

    found = PassBody.from_payload(payload.decode(payload.encode(body.to_payload())))

    assert found.custom_loss is not None
    assert read_program(found.custom_loss) == read_program(PPO)
    assert (found.loss_fn, found.loss_id) == ("custom", "loss-id")


def test_ppo_written_by_hand_gives_what_the_built_in_one_gives(base_model: BaseModel) -> None:
    built_in, own = random_adapter(base_model, 4, 0), random_adapter(base_model, 4, 0)
    body = policy_body("ppo", LENGTHS)
    expected = run(base_model, [item(built_in, body)]).results()["r"]

    found = run(base_model, [item(own, with_loss(body))]).results()["r"]

    assert found.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-6)
    torch.testing.assert_close(own.gradient_P, built_in.gradient_P, rtol=1e-5, atol=1e-6)
    assert found.metrics["custom/n:sum"] == sum(LENGTHS)
    ratios = [
        np.exp(lp.astype(np.float64) - datum.loss_fn_inputs["logprobs"]).mean()
        for lp, datum in zip(expected.logprobs, body.data, strict=True)
    ]
    assert found.metrics["custom/ratio:mean"] == pytest.approx(np.mean(ratios), rel=1e-5)


@pytest.mark.parametrize("max_tokens", [1, 40, 4096])
def test_company_and_microbatches_change_no_bit(base_model: BaseModel, max_tokens: int) -> None:
    body = with_loss(policy_body("ppo", LENGTHS))
    alone, beside = random_adapter(base_model, 4, 0), random_adapter(base_model, 4, 0)
    expected = run(base_model, [item(alone, body, "mine")], max_block_tokens=BLOCK_TOKENS)

    first, second = others(base_model)
    items = [first, item(beside, body, "mine"), second]
    found = run(base_model, items, max_tokens, max_block_tokens=BLOCK_TOKENS)

    assert_same(found.results()["mine"], expected.results()["mine"])
    assert torch.equal(beside.gradient_P, alone.gradient_P)


def test_an_operation_spread_over_cycles_gives_the_same_bits(base_model: BaseModel) -> None:
    body = with_loss(policy_body("ppo", LENGTHS))
    whole, spread = random_adapter(base_model, 4, 0), random_adapter(base_model, 4, 0)
    run(base_model, [item(whole, body)], max_block_tokens=BLOCK_TOKENS)

    parts = split_into_blocks([len(each.tokens) for each in body.data], BLOCK_TOKENS)
    for part in parts:
        one = replace(item(spread, body), datum_range=part)
        run(base_model, [one], max_block_tokens=BLOCK_TOKENS)

    assert len(parts) > 2
    assert torch.equal(spread.gradient_P, whole.gradient_P)


def test_forward_only_gives_the_loss_and_no_gradient(base_model: BaseModel) -> None:
    state = random_adapter(base_model, 4, 0)
    body = with_loss(policy_body("ppo", LENGTHS))
    expected = run(base_model, [item(random_adapter(base_model, 4, 0), body)]).results()["r"]

    found = run(base_model, [item(state, body, needs_gradient=False)]).results()["r"]

    assert found.metrics == expected.metrics
    assert not state.gradient_P.any()


def test_a_loss_that_fails_is_told_with_the_place_of_its_datum(base_model: BaseModel) -> None:
    body = bad_at(3, LENGTHS)
    first, second = others(base_model)
    beside = random_adapter(base_model, 8, 12)
    run(base_model, [replace(first, adapter=beside)], max_block_tokens=BLOCK_TOKENS)

    bad = item(random_adapter(base_model, 4, 0), body, "bad")
    passes = run(base_model, [first, bad, second], max_block_tokens=BLOCK_TOKENS)

    failures = passes.failures()
    assert failures.keys() == {"bad"}
    assert str(failures["bad"]).startswith("data[3]: custom loss 'fragile': its loss is nan")
    assert torch.equal(first.adapter.gradient_P, beside.gradient_P)


@pytest.fixture
async def harness(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel
) -> Harness:
    made = Harness(store, clock, tmp_path, base_model)
    await made.start_worker()
    return made


async def test_a_failed_loss_fails_its_operation_alone(harness: Harness) -> None:
    """The good passes before and behind it count, of its own model too."""
    good = policy_body("ppo", [7, 13])
    results: list[list[PassResult]] = []
    bad = ""
    for model in (0, 2):
        for each in (model, model + 1):
            await harness.create(each)
        await harness.run_until_idle()
        kind = OperationKind.FORWARD_BACKWARD
        wanted = [await harness.submit(kind, with_loss(good), model=model)]
        if model == 2:
            bad = await harness.submit(kind, bad_at(1, [5, 40, 3]), model=model)
        wanted.append(await harness.submit(kind, cross_entropy([4, 9]), model=model))
        wanted.append(await harness.submit(kind, cross_entropy([6]), model=model + 1))
        step = OptimStepBody(learning_rate=1e-2)
        await harness.submit(OperationKind.OPTIM_STEP, step, model=model)
        wanted.append(await harness.submit(OperationKind.FORWARD, good, model=model))
        await harness.run_until_idle()
        results.append([await harness.pass_result(each) for each in wanted])

    future = await harness.future(bad)
    assert future.state is FutureState.FAILED
    assert future.error is not None
    assert future.error.category == "user"
    assert future.error.message.startswith("data[1]: custom loss 'fragile'")
    assert all(same(a, b) for a, b in zip(*results, strict=True))


async def test_a_worker_that_starts_anew_replays_custom_losses_without_their_session(
    harness: Harness, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replay needs the body alone: no session, no record of the loss, and no limit of time."""
    body = with_loss(policy_body("ppo", LENGTHS))
    await harness.create(0)
    await harness.train(body)
    expected = await harness.submit(OperationKind.FORWARD, body)
    await harness.run_until_idle()
    await store.sessions.finish(SESSION_ID, "success")

    def fail(_limit: bounds.TimeLimit) -> None:
        raise UserError("too slow")

    monkeypatch.setattr(bounds.TimeLimit, "check", fail)
    await harness.start_worker()
    found = await harness.submit(OperationKind.FORWARD, policy_body("ppo", LENGTHS))
    await harness.run_until_idle()

    ours, theirs = await harness.pass_result(found), await harness.pass_result(expected)
    for mine, other in zip(ours.logprobs, theirs.logprobs, strict=True):
        np.testing.assert_array_equal(mine, other)
