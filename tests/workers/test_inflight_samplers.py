"""In-flight samplers of a model share one slot of weights; snapshots never change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclora_core import ids, payload
from cyclora_core.clock import ManualClock
from cyclora_core.operations import OperationKind, SaveWeightsBody
from cyclora_core.records import FutureState
from cyclora_core.samples import SampleBody, SampleResult, SamplingParams
from cyclora_core.store import Store
from cyclora_core.store.operations import SettleOutcome
from cyclora_workers.base_model import BaseModel
from workers.builders import cross_entropy
from workers.harness import SESSION_ID, Harness

SLOT = f"tinker://{ids.model_id(SESSION_ID, 0)}/sampler_weights/ephemeral-inflight"
SNAPSHOT = f"tinker://{ids.model_id(SESSION_ID, 0)}/sampler_weights/ephemeral-3"


@pytest.fixture
async def harness(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel
) -> Harness:
    made = Harness(store, clock, tmp_path, base_model)
    await made.start_worker()
    await made.create(0)
    return made


async def save(harness: Harness, path: str, number: int) -> str:
    session_id = ids.sampling_session_id(SESSION_ID, number)
    body = SaveWeightsBody(path, sampling_session_id=session_id, overwrite=path == SLOT)
    return await harness.submit(OperationKind.SAVE_WEIGHTS_FOR_SAMPLER, body)


async def ask(harness: Harness, path: str) -> str:
    params = SamplingParams(max_tokens=6, seed=11, stop_on_eos=False)
    body = SampleBody(np.array([5, 6, 7], np.int32), 2, params, path)
    owner = ids.sampling_session_id(SESSION_ID, 90)
    return await harness.submit(OperationKind.SAMPLE, body, owner_id=owner)


async def logprobs(harness: Harness, request_id: str) -> list[bytes]:
    future = await harness.future(request_id)
    assert future.state is FutureState.DONE, future.error
    assert future.result is not None
    result = SampleResult.from_payload(payload.decode(future.result))
    return [sequence.logprobs.tobytes() for sequence in result.sequences]


async def sampled(harness: Harness, path: str) -> list[bytes]:
    await harness.run_until_idle()
    request_id = await ask(harness, path)
    await harness.run_until_idle()
    return await logprobs(harness, request_id)


async def test_a_save_moves_every_in_flight_sampler_and_no_snapshot(harness: Harness) -> None:
    await save(harness, SLOT, 1)
    await save(harness, SNAPSHOT, 2)
    before = [await sampled(harness, path) for path in (SLOT, SNAPSHOT)]
    await harness.train(cross_entropy([7, 13], seed=1))

    await save(harness, SLOT, 3)
    after = [await sampled(harness, path) for path in (SLOT, SNAPSHOT)]

    assert before[0] == before[1] == after[1]
    assert after[0] != before[0]
    fresh = await harness.store.sampling.get(ids.sampling_session_id(SESSION_ID, 3))
    assert fresh is not None
    assert fresh.weights_path == SLOT


async def test_the_slot_holds_one_revision(harness: Harness, tmp_path: Path) -> None:
    for number in range(4):
        await save(harness, SLOT, number)
        await harness.train(cross_entropy([7], seed=number))
        await harness.run_until_idle()

    folders = list((tmp_path / "checkpoints").rglob("ephemeral-inflight/*"))
    assert len(folders) == 1
    assert await harness.store.checkpoints.unlisted_of_model(ids.model_id(SESSION_ID, 0)) == [SLOT]


async def test_another_worker_serves_the_newest_save(harness: Harness) -> None:
    await save(harness, SLOT, 1)
    await harness.train(cross_entropy([7, 13], seed=1))
    await save(harness, SLOT, 2)
    newest = await sampled(harness, SLOT)

    await harness.start_worker()

    assert await sampled(harness, SLOT) == newest


async def test_a_running_sample_ends_with_the_weights_it_began_with(harness: Harness) -> None:
    await save(harness, SLOT, 1)
    expected = await sampled(harness, SLOT)
    running = await ask(harness, SLOT)
    await harness.train(cross_entropy([7, 13], seed=1))
    await save(harness, SLOT, 2)

    await harness.run_until_idle()

    assert await logprobs(harness, running) == expected
    assert await sampled(harness, SLOT) != expected


async def test_unnamed_weights_go_before_their_model_ends(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies in between runs the end again; one that had settled it would not."""
    left: list[tuple[list[str], list[Path]]] = []
    operations, model_id = harness.store.operations, ids.model_id(SESSION_ID, 0)
    settle = operations.settle

    async def noted(**arguments: Any) -> SettleOutcome:
        if arguments["operation"].kind is OperationKind.UNLOAD_MODEL:
            paths = await harness.store.checkpoints.unlisted_of_model(model_id)
            left.append((paths, list((tmp_path / "checkpoints").rglob("*.safetensors"))))
        return await settle(**arguments)

    monkeypatch.setattr(operations, "settle", noted)
    await save(harness, SLOT, 1)
    await save(harness, SNAPSHOT, 2)
    await harness.submit(OperationKind.UNLOAD_MODEL, None)

    await harness.run_until_idle()

    assert left == [([], [])]
