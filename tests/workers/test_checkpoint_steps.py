"""Saving over a checkpoint: whoever reads it finds the old files or the new ones, never none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.builders import age_identity
from cyclora_core import ids, payload
from cyclora_core.clock import ManualClock
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import (
    LoadWeightsBody,
    OperationKind,
    SaveWeightsBody,
    SaveWeightsResult,
)
from cyclora_core.samples import SampleBody, SampleResult, SamplingParams
from cyclora_core.store.checkpoints import Checkpoints
from cyclora_workers import durable
from workers.builders import cross_entropy
from workers.harness import LORA, SESSION_ID, Harness, run_steps, same

MODEL = ids.model_id(SESSION_ID, 0)
PATH = CheckpointPath(MODEL, CheckpointKind.TRAINING, "kept")
SAMPLER_PATH = CheckpointPath(MODEL, CheckpointKind.SAMPLER, "kept")


async def save_over(harness: Harness, path: CheckpointPath = PATH) -> str:
    kinds = {
        CheckpointKind.TRAINING: OperationKind.SAVE_WEIGHTS,
        CheckpointKind.SAMPLER: OperationKind.SAVE_WEIGHTS_FOR_SAMPLER,
    }
    body = SaveWeightsBody(str(path), overwrite=True)
    return await harness.submit(kinds[path.kind], body, tenant_id="tenant-0")


async def forward(harness: Harness, model: int) -> list[float]:
    request = await harness.submit(
        OperationKind.FORWARD, cross_entropy([12], seed=40), model=model, tenant_id="tenant-0"
    )
    await harness.run_until_idle()
    return (await harness.pass_result(request)).logprobs[0].tolist()


async def loaded_into_another(harness: Harness, model: int) -> list[float]:
    """Logprobs of a new model that has loaded the checkpoint."""
    await harness.create(model, tenant="tenant-0")
    body = LoadWeightsBody(str(PATH), False, harness.base_model.name, LORA)
    await harness.submit(OperationKind.LOAD_WEIGHTS, body, model=model, tenant_id="tenant-0")
    return await forward(harness, model)


def folders(harness: Harness) -> list[str]:
    parent = harness.storage.checkpoint_dir(PATH, "0").parent
    return sorted(child.name for child in parent.iterdir())


async def test_a_save_cut_off_before_its_record_leaves_the_old_checkpoint_in_place(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_steps(harness, 0, num_steps=1)
    await save_over(harness)
    before = await forward(harness, 0)
    await harness.train(cross_entropy([9], seed=7), 0, "tenant-0")
    await save_over(harness)

    async def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            await harness.run_until_idle()
    checkpoint = await harness.store.checkpoints.get(str(PATH))
    assert checkpoint is not None
    assert folders(harness) == sorted([checkpoint.revision, "7"])
    await harness.start_worker()
    await harness.scheduler.tick()  # the cycle that saves again waits; another worker would load
    worker: Any = harness.workers[-1]
    worker._engine.create("probe", LORA)
    folder = harness.storage.checkpoint_dir(PATH, checkpoint.revision)
    worker._engine.load("probe", LORA, folder, optimizer=True)

    await harness.run_until_idle()
    after = await forward(harness, 0)

    assert await loaded_into_another(harness, 1) == after != before
    assert folders(harness) == ["7"]


async def test_a_save_that_was_complete_but_not_settled_is_not_written_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_steps(harness, 0, num_steps=1)
    await save_over(harness)
    real = Checkpoints.put

    async def recorded_then_killed(self: Checkpoints, checkpoint: Any) -> bool:
        await real(self, checkpoint)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "put", recorded_then_killed)
        with pytest.raises(KeyboardInterrupt):
            await harness.run_until_idle()
    first = await harness.store.checkpoints.get(str(PATH))
    assert first is not None
    folder = harness.storage.checkpoint_dir(PATH, first.revision)
    written = folder.stat().st_mtime_ns
    await harness.start_worker()

    await harness.run_until_idle()

    again = await harness.store.checkpoints.get(str(PATH))
    assert again is not None
    assert again.num_bytes == first.num_bytes
    assert folder.stat().st_mtime_ns == written


async def sampled(harness: Harness) -> list[int]:
    params = SamplingParams(max_tokens=12, seed=11, stop_on_eos=False)
    body = SampleBody(np.array([5, 6, 7], np.int32), 1, params, str(SAMPLER_PATH))
    owner = ids.sampling_session_id(SESSION_ID, 0)
    request = await harness.submit(OperationKind.SAMPLE, body, owner_id=owner)
    await harness.run_until_idle()
    future = await harness.future(request)
    assert future.result is not None, future.error
    (sequence,) = SampleResult.from_payload(payload.decode(future.result)).sequences
    return sequence.tokens.tolist()


async def test_samples_of_a_replaced_checkpoint_use_its_new_weights_on_every_worker(
    harness: Harness,
) -> None:
    await run_steps(harness, 0, num_steps=1)
    await save_over(harness, SAMPLER_PATH)
    await harness.run_until_idle()
    old = await sampled(harness)
    cached: Any = harness.workers[-1]
    await harness.start_worker()
    await harness.train(cross_entropy([90], seed=7), 0, "tenant-0")
    await save_over(harness, SAMPLER_PATH)
    await harness.run_until_idle()
    new = await sampled(harness)
    assert new != old
    harness.workers.append(cached)  # it is back, with the old weights in its memory
    await cached.register()

    assert await sampled(harness) == new


async def test_an_export_that_is_run_again_is_not_encrypted_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encrypting draws a new key each time: files written twice would be other files."""
    await run_steps(harness, 0, num_steps=1)
    path = CheckpointPath(MODEL, CheckpointKind.EXTERNAL, "hf")
    recipient = str(age_identity().to_public())
    body = SaveWeightsBody(str(path), ttl_s=3600, age_recipients=[recipient])
    kind = OperationKind.SAVE_WEIGHTS_EXTERNAL
    request = await harness.submit(kind, body, tenant_id="tenant-0")

    async def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            await harness.run_until_idle()
    folder = harness.storage.checkpoint_dir(path, "3")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    await harness.start_worker()
    await harness.run_until_idle()

    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    checkpoint = await harness.store.checkpoints.get(str(path))
    assert checkpoint is not None
    assert not checkpoint.has_optimizer
    assert checkpoint.expires_at_ms == harness.store.clock.now_ms() + 3_600_000
    future = await harness.future(request)
    assert future.result is not None
    result = SaveWeightsResult.from_payload(payload.decode(future.result))
    assert result == SaveWeightsResult(str(path), num_bytes=checkpoint.num_bytes)
    assert checkpoint.num_bytes == sum(len(data) for data in before.values())


async def test_an_ephemeral_save_does_not_take_over_the_sampling_session_of_another(
    harness: Harness,
) -> None:
    await run_steps(harness, 0, num_steps=1)
    saves: list[str] = []
    for name in ("first", "second"):
        path = CheckpointPath(MODEL, CheckpointKind.SAMPLER, name)
        session_id = ids.sampling_session_id(SESSION_ID, 0)
        body = SaveWeightsBody(str(path), sampling_session_id=session_id)
        kind = OperationKind.SAVE_WEIGHTS_FOR_SAMPLER
        saves.append(await harness.submit(kind, body, tenant_id="tenant-0"))
        await harness.run_until_idle()

    assert (await harness.future(saves[0])).error is None
    error = (await harness.future(saves[1])).error
    assert error is not None
    assert "first" in error.message


async def test_a_save_that_finds_no_room_says_so_and_leaves_nothing_behind(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = await run_steps(harness, 1, num_steps=2)
    first = await run_steps(harness, 0, num_steps=1)

    def no_room(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(durable, "write_file", no_room)
        request = await save_over(harness)
        await harness.run_until_idle()
    again = await save_over(harness)
    second = await harness.train(cross_entropy([7, 13, 1, 9], seed=1), 0, "tenant-0")
    await harness.run_until_idle()

    error = (await harness.future(request)).error
    assert error is not None
    assert "no room" in error.message
    assert (await harness.future(again)).error is None
    assert len(folders(harness)) == 1
    rest = [await harness.pass_result(second)]
    assert all(same(a, b) for a, b in zip(undisturbed, first + rest, strict=True))


async def test_an_expired_checkpoint_is_neither_loaded_nor_sampled(
    harness: Harness, clock: ManualClock
) -> None:
    """A load that was accepted just before must not depend on when the files are deleted."""
    await run_steps(harness, 0, num_steps=1)
    body = SaveWeightsBody(str(PATH), ttl_s=3600)
    await harness.submit(OperationKind.SAVE_WEIGHTS, body, tenant_id="tenant-0")
    await harness.run_until_idle()
    await harness.create(1, tenant="tenant-0")
    clock.advance(3600)

    load_body = LoadWeightsBody(str(PATH), False, harness.base_model.name, LORA)
    load_request = await harness.submit(
        OperationKind.LOAD_WEIGHTS, load_body, model=1, tenant_id="tenant-0"
    )
    params = SamplingParams(max_tokens=2, seed=11)
    sample = SampleBody(np.array([5], np.int32), 1, params, str(PATH))
    owner = ids.sampling_session_id(SESSION_ID, 0)
    sample_request = await harness.submit(OperationKind.SAMPLE, sample, owner_id=owner)
    await harness.run_until_idle()

    for request in (load_request, sample_request):
        error = (await harness.future(request)).error
        assert error is not None
        assert "was deleted or has expired" in error.message


async def test_a_save_that_is_run_again_keeps_what_was_changed_of_its_checkpoint_meanwhile(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_steps(harness, 0, num_steps=1)
    await save_over(harness)
    real = Checkpoints.put

    async def recorded_then_killed(self: Checkpoints, checkpoint: Any) -> bool:
        await real(self, checkpoint)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "put", recorded_then_killed)
        with pytest.raises(KeyboardInterrupt):
            await harness.run_until_idle()
    assert await harness.store.checkpoints.set_public(str(PATH), True)
    await harness.start_worker()

    await harness.run_until_idle()

    checkpoint = await harness.store.checkpoints.get(str(PATH))
    assert checkpoint is not None
    assert checkpoint.is_public
