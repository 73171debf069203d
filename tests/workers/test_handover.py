"""Sampler weights are sampled from memory at once, and survive whatever dies before their files."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclora_core import ids, payload
from cyclora_core.clock import ManualClock
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import LoadWeightsBody, OperationKind, SaveWeightsBody
from cyclora_core.records import FutureState, Session
from cyclora_core.samples import SampleBody, SampleResult, SamplingParams
from cyclora_core.store import Store
from cyclora_core.store.checkpoints import Checkpoints
from cyclora_core.store.handovers import Handovers
from cyclora_core.store.operations import Operations
from cyclora_core.store.sampling import SamplingSessions
from cyclora_workers import handover
from cyclora_workers.base_model import BaseModel
from cyclora_workers.engine import Engine
from workers.builders import cross_entropy
from workers.harness import LORA, SESSION_ID, Harness

MODEL = ids.model_id(SESSION_ID, 0)


class Disk:
    """Storage that takes no handed-over weights until it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = True
        real = Engine.write_frozen

        def write(engine: Engine, *args: Any) -> int:
            if self.is_full:
                raise OSError(28, "No space left on device")
            return real(engine, *args)

        monkeypatch.setattr(Engine, "write_frozen", write)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def path_of(number: int, kind: CheckpointKind = CheckpointKind.SAMPLER) -> str:
    return str(CheckpointPath(MODEL, kind, f"ephemeral-{number}"))


async def train(harness: Harness, *seeds: int) -> None:
    for seed in seeds:
        await harness.train(cross_entropy([7, 13], seed=seed))


async def hand_over(harness: Harness, number: int, path: str = "") -> str:
    session_id = ids.sampling_session_id(SESSION_ID, number)
    body = SaveWeightsBody(
        path or path_of(number), sampling_session_id=session_id, overwrite=bool(path)
    )
    return await harness.submit(OperationKind.SAVE_WEIGHTS_FOR_SAMPLER, body)


async def sampled(harness: Harness, path: str) -> list[tuple[list[int], bytes]]:
    params = SamplingParams(max_tokens=6, seed=11, stop_on_eos=False)
    body = SampleBody(np.array([5, 6, 7], np.int32), 2, params, path)
    owner = ids.sampling_session_id(SESSION_ID, 90)
    request = await harness.submit(OperationKind.SAMPLE, body, owner_id=owner)
    await harness.run_until_idle()
    future = await harness.future(request)
    assert future.result is not None, future.error
    result = SampleResult.from_payload(payload.decode(future.result))
    return [(each.tokens.tolist(), each.logprobs.tobytes()) for each in result.sequences]


async def expected_after(harness: Harness, *seeds: int) -> list[tuple[list[int], bytes]]:
    """What a named save of another model with the same steps gives."""
    await harness.create(1)
    for seed in seeds:
        await harness.train(cross_entropy([7, 13], seed=seed), model=1)
    named = CheckpointPath(ids.model_id(SESSION_ID, 1), CheckpointKind.SAMPLER, "named")
    kind = OperationKind.SAVE_WEIGHTS_FOR_SAMPLER
    await harness.submit(kind, SaveWeightsBody(str(named)), model=1)
    await harness.run_until_idle()
    return await sampled(harness, str(named))


def files(harness: Harness, number: int) -> list[str]:
    folder = harness.storage.checkpoint_dir(CheckpointPath.parse(path_of(number)), "0").parent
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


async def snapshot_seq_id(harness: Harness) -> int:
    record = await harness.store.models.get(MODEL)
    assert record is not None
    return record.snapshot_seq_id


async def test_a_save_settles_and_is_sampled_before_storage_has_anything_of_it(
    harness: Harness, disk: Disk
) -> None:
    expected = await expected_after(harness, 1)
    await harness.create()
    await train(harness, 1)

    request = await hand_over(harness, 0)
    await train(harness, 2)  # newer weights train on, while the older ones are sampled
    await harness.run_until_idle()

    assert (await harness.future(request)).state is FutureState.DONE
    assert files(harness, 0) == []
    assert await sampled(harness, path_of(0)) == expected


async def test_its_files_follow_and_give_the_same_samples_on_another_worker(
    harness: Harness,
) -> None:
    expected = await expected_after(harness, 1)
    await harness.create()
    await train(harness, 1)
    await hand_over(harness, 0)
    await harness.run_until_idle()

    assert files(harness, 0)
    assert await harness.store.handovers.of_model(MODEL) == {}
    await harness.start_worker()
    assert await sampled(harness, path_of(0)) == expected


@pytest.mark.parametrize("goes_on", [False, True])
async def test_weights_whose_worker_died_before_they_were_written_are_made_again(
    harness: Harness, disk: Disk, goes_on: bool
) -> None:
    """Also where the model itself went on, at its first cycle on the new worker."""
    expected = [await expected_after(harness, *seeds) for seeds in ([1],)]
    await harness.create()
    await train(harness, 1)
    await hand_over(harness, 0)
    await train(harness, 2)
    await hand_over(harness, 1)
    await harness.run_until_idle()
    expected.append(await sampled(harness, path_of(1)))
    disk.is_full = False
    await harness.start_worker()
    if goes_on:
        await train(harness, 3)
        await harness.run_until_idle()

    assert [await sampled(harness, path_of(i)) for i in range(2)] == expected
    assert files(harness, 0)
    assert files(harness, 1)
    assert await harness.store.handovers.of_model(MODEL) == {}


async def test_the_log_is_kept_until_the_weights_are_written(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel, disk: Disk
) -> None:
    harness = Harness(store, clock, tmp_path, base_model)
    await harness.start_worker(max_replay_s=1e-9)
    await harness.create()
    await train(harness, 1)
    await hand_over(harness, 0)
    await train(harness, 2)
    await harness.run_until_idle()
    await train(harness, 3)
    await harness.run_until_idle()
    assert await snapshot_seq_id(harness) < 3

    disk.is_full = False
    await train(harness, 4)
    await harness.run_until_idle()

    assert files(harness, 0)
    assert await snapshot_seq_id(harness) == 9


async def test_a_load_waits_for_weights_that_only_the_log_could_bring_back(
    harness: Harness, disk: Disk
) -> None:
    """It settles with a snapshot of its own, behind which the log goes."""
    await harness.create()
    await harness.save("kept")
    await train(harness, 1)
    await hand_over(harness, 0)
    load = LoadWeightsBody(f"tinker://{MODEL}/weights/kept", False, harness.base_model.name, LORA)
    refused = await harness.submit(OperationKind.LOAD_WEIGHTS, load)
    await harness.run_until_idle()
    before = await sampled(harness, path_of(0))
    disk.is_full = False
    accepted = await harness.submit(OperationKind.LOAD_WEIGHTS, load)
    await harness.run_until_idle()
    await harness.start_worker()

    error = (await harness.future(refused)).error
    assert error is not None
    assert "no room" in error.message
    assert (await harness.future(accepted)).state is FutureState.DONE
    assert await sampled(harness, path_of(0)) == before


async def test_samplers_outlive_their_unloaded_model(harness: Harness) -> None:
    await harness.create()
    await train(harness, 1)
    await hand_over(harness, 0)
    await harness.run_until_idle()
    before = await sampled(harness, path_of(0))
    now_ms = harness.clock.now_ms()
    await harness.store.sessions.create(Session(SESSION_ID, "tenant-a", now_ms, now_ms))
    await harness.submit(OperationKind.UNLOAD_MODEL, None)
    await harness.run_until_idle()
    await harness.start_worker()

    assert await sampled(harness, path_of(0)) == before


STEPS: list[tuple[Any, str]] = [
    (Handovers, "begin"),
    (Checkpoints, "put"),
    (SamplingSessions, "create"),
    (Operations, "settle"),
]


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize(("owner", "name"), STEPS)
async def test_a_save_cut_off_at_any_step_ends_once_with_the_same_weights(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, is_after: bool
) -> None:
    expected = await expected_after(harness, 1)
    await harness.create()
    await train(harness, 1)
    await harness.run_until_idle()
    request = await hand_over(harness, 0)
    real: Callable[..., Any] = getattr(owner, name)

    async def cut_off(*args: Any, **options: Any) -> None:
        if is_after:
            await real(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, cut_off)
        patched.setattr(Engine, "write_frozen", _nothing)
        with pytest.raises(KeyboardInterrupt):
            await harness.run_until_idle()
    await harness.start_worker()
    await harness.run_until_idle()

    assert (await harness.future(request)).state is FutureState.DONE
    assert await sampled(harness, path_of(0)) == expected
    assert await harness.store.handovers.of_model(MODEL) == {}
    assert len({name.split("/")[0] for name in files(harness, 0)}) == 1


def _nothing(*_: object) -> int:
    raise OSError(5, "its worker is dead")


async def test_weights_that_nobody_wants_any_more_leave_no_files(
    harness: Harness, disk: Disk
) -> None:
    await harness.create()
    await hand_over(harness, 0)
    await harness.run_until_idle()
    assert await harness.store.checkpoints.delete(path_of(0))  # its session has ended
    disk.is_full = False
    await train(harness, 1)
    await harness.run_until_idle()

    assert files(harness, 0) == []
    assert await harness.store.handovers.of_model(MODEL) == {}


async def test_a_fenced_worker_puts_away_what_it_was_still_writing(
    harness: Harness, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.create()
    await hand_over(harness, 0)
    await hand_over(harness, 1)
    await harness.run_until_idle()
    disk.is_full = False
    gate, write = threading.Event(), Engine.write_frozen

    def write_late(engine: Engine, *args: Any) -> int:
        assert gate.wait(60)
        return write(engine, *args)

    monkeypatch.setattr(Engine, "write_frozen", write_late)
    begun = harness.workers[-1]._handover  # pyright: ignore[reportPrivateUsage]
    begun.write()
    await asyncio.sleep(0)
    stopping = asyncio.create_task(begun.stop())
    # The worker in its place has written and deleted the same files meanwhile.
    assert await harness.store.checkpoints.delete(path_of(0))
    gate.set()
    await stopping

    assert files(harness, 0) == []
    assert files(harness, 1) == []


async def test_of_in_flight_saves_that_waited_only_the_last_is_written(
    harness: Harness, disk: Disk
) -> None:
    await harness.create()
    for seed in range(3):
        await train(harness, seed)
        await hand_over(harness, seed, path_of(0))
    await harness.run_until_idle()
    newest = await sampled(harness, path_of(0))
    disk.is_full = False
    await train(harness, 9)
    await harness.run_until_idle()

    assert {name.split("/")[0] for name in files(harness, 0)} == {"9"}
    await harness.start_worker()
    assert await sampled(harness, path_of(0)) == newest


async def test_unwritten_weights_stay_in_memory_however_many_others_are_sampled(
    harness: Harness, disk: Disk
) -> None:
    """The worker of the harness keeps two."""
    await harness.create()
    for number in range(4):
        await train(harness, number)
        await hand_over(harness, number)
    await harness.run_until_idle()
    worker: Any = harness.workers[-1]

    assert len({str(await sampled(harness, path_of(number))) for number in range(4)}) == 4
    assert len(worker._engine._sampler_weights) == 4
    disk.is_full = False
    await train(harness, 9)
    await hand_over(harness, 9)
    await harness.run_until_idle()
    await sampled(harness, path_of(9))
    assert len(worker._engine._sampler_weights) == 2


async def test_a_save_beyond_the_bound_waits_for_storage_and_says_when_it_is_full(
    harness: Harness, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "MAX_UNWRITTEN", 1)
    await harness.create()
    first = await hand_over(harness, 0)
    second = await hand_over(harness, 1)
    await harness.run_until_idle()
    disk.is_full = False
    third = await hand_over(harness, 2)
    await harness.run_until_idle()

    assert (await harness.future(first)).error is None
    error = (await harness.future(second)).error
    assert error is not None
    assert "no room" in error.message
    assert (await harness.future(third)).error is None
