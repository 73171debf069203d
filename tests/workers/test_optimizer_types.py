"""A model keeps its optimizer through crashes, snapshots and checkpoints."""

from __future__ import annotations

import pytest

from cyclora_core import ids
from cyclora_core.operations import (
    DimuonStepBody,
    LoadWeightsBody,
    OperationKind,
    OptimStepBody,
    PassResult,
)
from cyclora_core.optimizers import OptimizerType
from cyclora_core.records import FutureState
from workers.builders import cross_entropy
from workers.harness import LORA, SESSION_ID, Harness, same

DIMUON = OptimizerType.DIMUON
STEP = DimuonStepBody(learning_rate=2e-2, beta1=0.7)


async def go_on(harness: Harness, model: int, steps: range) -> list[PassResult]:
    requests = [
        await harness.train(cross_entropy([7, 13, 1], seed=step), model, step=STEP)
        for step in steps
    ]
    await harness.run_until_idle()
    return [await harness.pass_result(request) for request in requests]


async def undisturbed(harness: Harness, num_steps: int) -> list[PassResult]:
    await harness.create(0, optimizer_type=DIMUON)
    return await go_on(harness, 0, range(num_steps))


@pytest.mark.parametrize("max_replay_s", [1000.0, 1e-9])
async def test_a_new_worker_goes_on_with_the_same_bits(
    harness: Harness, max_replay_s: float
) -> None:
    """From the command log, and from a snapshot."""
    expected = await undisturbed(harness, 5)
    await harness.start_worker(max_replay_s=max_replay_s)
    await harness.create(1, optimizer_type=DIMUON)
    first = await go_on(harness, 1, range(3))
    record = await harness.store.models.get(ids.model_id(SESSION_ID, 1))
    assert record is not None
    assert record.optimizer_type is DIMUON
    assert (record.snapshot_seq_id >= 0) == (max_replay_s < 1)
    await harness.start_worker()

    rest = await go_on(harness, 1, range(3, 5))

    assert all(same(a, b) for a, b in zip(expected, first + rest, strict=True))


async def test_a_checkpoint_knows_its_optimizer_and_goes_on_with_the_same_bits(
    harness: Harness,
) -> None:
    await undisturbed(harness, 2)
    await harness.save("two")
    path = f"tinker://{ids.model_id(SESSION_ID, 0)}/weights/two"
    await harness.create(1, optimizer_type=DIMUON)
    body = LoadWeightsBody(path, True, harness.base_model.name, LORA)
    await harness.submit(OperationKind.LOAD_WEIGHTS, body, model=1)
    loaded = await go_on(harness, 1, range(2, 4))
    expected = await go_on(harness, 0, range(2, 4))

    checkpoint = await harness.store.checkpoints.get(path)

    assert checkpoint is not None
    assert checkpoint.optimizer_type is DIMUON
    assert all(same(a, b) for a, b in zip(expected, loaded, strict=True))


async def test_a_step_of_another_optimizer_fails_and_keeps_the_gradient(harness: Harness) -> None:
    expected = await undisturbed(harness, 2)
    await harness.create(1, optimizer_type=DIMUON)
    body = cross_entropy([7, 13, 1], seed=0)
    await harness.submit(OperationKind.FORWARD_BACKWARD, body, model=1)
    wrong = await harness.submit(OperationKind.OPTIM_STEP, OptimStepBody(), model=1)
    await harness.run_until_idle()
    await harness.start_worker()
    await harness.submit(OperationKind.OPTIM_STEP, STEP, model=1)

    (second,) = await go_on(harness, 1, range(1, 2))

    future = await harness.future(wrong)
    assert future.state is FutureState.FAILED
    assert future.error is not None
    assert "created with dimuon" in future.error.message
    assert same(expected[1], second)
