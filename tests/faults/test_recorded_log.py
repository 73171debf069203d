"""The command log of every released format replays to the state it had when it was recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
import torch

from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.operations import OperationKind
from cyclora_core.store import Store
from faults import recorded_log
from faults.recorded_log import MODELS
from workers.builders import cross_entropy
from workers.harness import SESSION_ID, Harness

RECORDINGS = sorted((Path(__file__).parent / "recorded").iterdir())
_TOLERANCE = 1e-5
"""Sums are ordered by the processor's kernels, so another machine may differ in the last bits."""


@asynccontextmanager
async def restored(
    recording: Path, redis_url: str, prefix: str, storage: Path
) -> AsyncGenerator[Harness]:
    """A new deployment of today's version that finds what the recorded one left."""
    recorded = json.loads((recording / "redis.json").read_text())
    async with aioredis.Redis.from_url(redis_url) as client:
        await recorded_log.restore(client, prefix, recorded)
    shutil.copytree(recording / "snapshots", storage / "snapshots")
    store = await Store.open(redis_url, prefix, ManualClock())
    base_model = recorded_log.load_base_model(recording)
    harness = Harness(store, ManualClock(), storage, base_model)
    await harness.start_worker()
    try:
        yield harness
    finally:
        await store.close()


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
@pytest.mark.parametrize("model", [0, 1], ids=["from its beginning", "from a snapshot"])
async def test_a_recorded_log_replays_to_its_recorded_state(
    recording: Path, model: int, redis_url: str, tmp_path: Path
) -> None:
    prefix = f"test-{tmp_path.name}-{recording.name}-{model}"
    async with restored(recording, redis_url, prefix, tmp_path) as harness:
        record = await harness.store.models.get(MODELS[model])
        assert record is not None
        assert (record.snapshot_seq_id >= 0) == (model == 1)
        harness.next_seq_ids[MODELS[model]] = record.applied_seq_id + 1

        request = await harness.submit(OperationKind.FORWARD, cross_entropy([5]), model=model)
        await harness.run_until_idle()

        assert (await harness.pass_result(request)).logprobs
        worker: Any = harness.workers[-1]
        state = worker._engine.export_state(ids.model_id(SESSION_ID, model))
        expected = recorded_log.expected_state(recording)
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(state[name], tensor, rtol=_TOLERANCE, atol=_TOLERANCE)
        assert float(state["gradient_P"].abs().max()) > 1e-3


def test_a_recording_holds_failures_and_a_log_that_was_cut() -> None:
    recorded = json.loads((RECORDINGS[0] / "redis.json").read_text())
    logs = [recorded[f":model:{model_id}:log"]["value"] for model_id in MODELS]

    assert len(logs[0]) > len(logs[1])
    assert all(recorded[f":model:{model_id}:failed"]["value"] for model_id in MODELS)
