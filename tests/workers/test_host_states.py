"""States in host memory: read ahead of their cycle, or kept when they left a GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.operations import LoraConfig
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from cyclora_core.types import ModelRecord
from cyclora_workers import host_states, snapshot
from cyclora_workers.base_model import BaseModel
from cyclora_workers.host_states import HostStates
from workers.builders import cross_entropy
from workers.harness import SESSION_ID, Harness, run_steps, same

RECORD = ModelRecord(
    ids.model_id(SESSION_ID, 0), "t", SESSION_ID, "b", LoraConfig(4), 0, 0, 9, 9, 5, 2, "w", 2, {}
)


class Reads:
    """Counts what is read of storage."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folders: list[str] = []
        real = snapshot.load

        def load(folder: Path) -> dict[str, Tensor]:
            self.folders.append(str(folder))
            return real(folder)

        monkeypatch.setattr(snapshot, "load", load)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


def state(value: float, num_elements: int = 100) -> dict[str, Tensor]:
    return {"master_P": torch.full((num_elements,), value)}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = Storage(tmp_path)
    snapshot.write(state(5.0), made.snapshot_dir(RECORD.model_id, 5, 2))
    snapshot.write(state(7.0), made.snapshot_dir(RECORD.model_id, 7, 2))
    return made


async def taken(host: HostStates, record: ModelRecord = RECORD) -> float:
    return (await host.take(record))["master_P"][0].item()


async def test_a_state_that_is_not_here_is_read_from_storage(
    storage: Storage, reads: Reads
) -> None:
    assert await taken(HostStates(storage, 10_000)) == 5.0
    assert len(reads.folders) == 1


async def test_a_state_is_read_ahead_once(storage: Storage, reads: Reads) -> None:
    host = HostStates(storage, 10_000)
    host.read_ahead(RECORD)
    host.read_ahead(RECORD)

    assert await taken(host) == 5.0
    assert len(reads.folders) == 1


async def test_a_state_read_ahead_of_an_older_snapshot_is_not_taken_for_the_newer(
    storage: Storage,
) -> None:
    host = HostStates(storage, 10_000)
    host.read_ahead(RECORD)

    assert await taken(host, dataclasses.replace(RECORD, snapshot_seq_id=7)) == 7.0


async def test_a_kept_state_of_another_epoch_is_not_taken(storage: Storage, reads: Reads) -> None:
    host = HostStates(storage, 10_000)
    host.put(RECORD.model_id, 5, 1, state(1.0))

    assert await taken(host) == 5.0


async def test_a_kept_state_needs_no_storage(storage: Storage, reads: Reads) -> None:
    host = HostStates(storage, 10_000)
    host.put(RECORD.model_id, 5, 2, state(1.0))

    assert await taken(host) == 1.0
    assert reads.folders == []


async def test_beyond_the_bound_the_oldest_go(storage: Storage) -> None:
    host = HostStates(storage, 1000)
    for number in range(4):
        host.put(f"m{number}", 5, 2, state(1.0))
    host.put("larger than all", 5, 2, state(1.0, 1000))

    assert host.num_bytes == 800
    assert list(host._states) == ["m2", "m3"]  # pyright: ignore[reportPrivateUsage]


async def test_a_model_without_a_snapshot_is_not_read(storage: Storage, reads: Reads) -> None:
    HostStates(storage, 1000).read_ahead(dataclasses.replace(RECORD, snapshot_seq_id=-1))

    assert reads.folders == []


async def test_only_some_snapshots_are_read_at_one_time(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_states, "MAX_READS", 1)
    host = HostStates(storage, 10_000)
    other = dataclasses.replace(RECORD, model_id=ids.model_id(SESSION_ID, 1))
    host.read_ahead(RECORD)
    host.read_ahead(other)

    assert list(host._reads) == [RECORD.model_id]  # pyright: ignore[reportPrivateUsage]
    assert await taken(host) == 5.0


async def test_a_snapshot_that_is_gone_says_so_to_whoever_needs_it(storage: Storage) -> None:
    host = HostStates(storage, 10_000)
    gone = dataclasses.replace(RECORD, snapshot_seq_id=6)
    host.read_ahead(gone)

    with pytest.raises(FileNotFoundError):
        await host.take(gone)


async def two_tenants_in_turn(harness: Harness, num_turns: int) -> list[list[Any]]:
    """Steps of models 0 and 1, never in one cycle."""
    for model in (0, 1):
        await harness.create(model, tenant=f"tenant-{model}")
    results: list[list[Any]] = [[], []]
    for turn in range(num_turns):
        for model in (0, 1):
            body = cross_entropy([7, 13, 1, 9], seed=turn)
            request = await harness.train(body, model, f"tenant-{model}")
            await harness.run_until_idle()
            results[model].append(await harness.pass_result(request))
    return results


@pytest.mark.parametrize("has_host_copies", [False, True])
async def test_evicted_models_come_back_with_the_same_bits(
    store: Store,
    clock: ManualClock,
    tmp_path: Path,
    base_model: BaseModel,
    reads: Reads,
    has_host_copies: bool,
) -> None:
    """With copies in host memory, as beside a GPU, nothing is read from storage."""
    harness = Harness(store, clock, tmp_path, base_model)
    await harness.start_worker()
    undisturbed = await run_steps(harness, 2, num_steps=4)
    worker: Any = await harness.start_worker(max_adapter_bytes=1)
    worker._keeper._has_host_copies = has_host_copies

    for found in await two_tenants_in_turn(harness, 4):
        assert all(same(a, b) for a, b in zip(undisturbed, found, strict=True))
    assert not any(worker._engine.has(ids.model_id(SESSION_ID, model)) for model in (0, 1))
    assert bool(reads.folders) is not has_host_copies


async def test_a_model_that_waits_is_read_while_another_runs(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel
) -> None:
    harness = Harness(store, clock, tmp_path, base_model, min_cycle_tokens=30)
    worker: Any = await harness.start_worker(max_adapter_bytes=1)
    await two_tenants_in_turn(harness, 1)
    ahead: list[str] = []
    real = worker._keeper.host.read_ahead

    def read_ahead(record: ModelRecord) -> None:
        ahead.append(f"{record.model_id[-1]} in cycle of {running[0]}")
        real(record)

    worker._keeper.host.read_ahead = read_ahead
    running = [""]
    execute = worker._executor.execute

    async def noted(cycle: Any) -> None:
        running[0] = "".join(model.model_id[-1] for model in cycle.models)
        await execute(cycle)

    worker._executor.execute = noted
    for model in (0, 1):
        await harness.train(cross_entropy([30], seed=9), model, f"tenant-{model}")
    await harness.run_until_idle()

    assert ahead[:2] in (
        ["0 in cycle of 0", "1 in cycle of 0"],
        ["1 in cycle of 1", "0 in cycle of 1"],
    )
