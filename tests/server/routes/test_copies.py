from __future__ import annotations

import errno
from typing import Any

import httpx
import pytest

from cyclora_core.clock import ManualClock
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.records import Checkpoint
from server.doubles.builders import MODEL, SESSION, STRANGER, STRANGER_KEY, TENANT, checkpoint
from server.doubles.checkpoints import StorageDouble
from server.doubles.store import StoreDouble

FINAL = checkpoint().path
COPY = {"source_path": FINAL, "destination_project_id": "proj-archive"}
STRANGE = {"X-API-Key": STRANGER_KEY}


async def copied(
    client: httpx.AsyncClient, key: str = "once", **changes: Any
) -> tuple[int, str, str]:
    """Status, path of the copy, and why there is none."""
    headers = {"X-Idempotency-Key": key, **changes.pop("headers", {})}
    answer = await client.post("/api/v1/copy_weights", json=COPY | changes, headers=headers)
    body = answer.json()
    return answer.status_code, body.get("tinker_path", ""), body.get("detail", "")


async def test_a_copy_is_a_checkpoint_of_its_own_in_a_run_that_has_ended(
    client: httpx.AsyncClient, store: StoreDouble, storage: StorageDouble, clock: ManualClock
) -> None:
    store.checkpoints.put(checkpoint(expires_at_ms=50_000, is_public=True, request_id="r"))

    status, path, _ = await copied(client, ttl_seconds=7200)

    assert status == 200
    parsed = CheckpointPath.parse(path)
    assert (parsed.kind, parsed.name) == (CheckpointKind.TRAINING, "final")
    assert parsed.model_id != MODEL
    copy = store.checkpoints.records[path]
    assert (copy.tenant_id, copy.is_public) == (TENANT, False)
    assert copy.expires_at_ms == clock.now_ms() + 7_200_000
    assert copy.has_optimizer
    run = store.models.records[parsed.model_id]
    assert (run.is_ended, run.project_id, run.copied_from) == (True, "proj-archive", FINAL)
    assert storage.copied == [(FINAL, path)]


async def test_a_repeated_copy_is_the_same_copy(
    client: httpx.AsyncClient, store: StoreDouble, storage: StorageDouble
) -> None:
    store.checkpoints.put(checkpoint())

    first = await copied(client)
    await store.checkpoints.delete(first[1])
    again = await copied(client)
    other = await copied(client, "twice")

    assert first == again
    assert other[1] != first[1]
    assert len(storage.copied) == 2


async def test_an_idempotency_key_is_not_shared_between_tenants(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint(is_public=True))

    mine, theirs = await copied(client), await copied(client, headers=STRANGE)

    assert mine[0] == theirs[0] == 200
    assert mine[1] != theirs[1]
    assert store.checkpoints.records[theirs[1]].tenant_id == STRANGER


async def test_an_idempotency_key_of_another_copy_is_refused(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint())
    other = store.checkpoints.put(checkpoint("other")).path
    await copied(client)

    status, _, reason = await copied(client, source_path=other)

    assert status == 400
    assert "is no copy of" in reason


async def test_a_copy_may_go_into_a_slot_of_a_session(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint())
    slot: dict[str, Any] = {
        "destination_project_id": None,
        "session_id": SESSION,
        "model_seq_id": 7,
    }

    first, again = await copied(client, **slot), await copied(client, "other key", **slot)

    assert first == again
    assert first[1] == f"tinker://{SESSION}:train:7/weights/final"


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"source_path": "final"}, 400, "is not a checkpoint"),
        ({"source_path": checkpoint("none").path}, 404, "does not exist or has expired"),
        ({"source_path": f"tinker://{MODEL}/external_weights/a"}, 400, "is an export"),
        ({"destination_project_id": None}, 400, "destination_project_id is missing"),
        ({"destination_project_id": "../x"}, 400, "is not allowed"),
        ({"ttl_seconds": 60}, 400, "ttl_seconds is 60"),
        ({"weights_access_token": "tok"}, 400, "weights_access_token is not supported"),
        ({"session_id": SESSION}, 422, "session_id and model_seq_id"),
        ({"session_id": SESSION, "model_seq_id": 1}, 422, "either destination_project_id"),
        (
            {"destination_project_id": None, "session_id": SESSION, "model_seq_id": 0},
            400,
            "is no copy of",
        ),
        ({"source_path": None}, 422, "source_path"),
    ],
)
async def test_a_copy_that_cannot_be_made_leaves_nothing(
    client: httpx.AsyncClient,
    store: StoreDouble,
    storage: StorageDouble,
    changes: dict[str, Any],
    status: int,
    reason: str,
) -> None:
    store.checkpoints.put(checkpoint())

    got, _, detail = await copied(client, **changes)

    assert got == status
    assert reason in detail
    assert storage.copied == []
    assert len(store.models.records) == 1


async def test_a_finished_session_gets_no_copy(
    client: httpx.AsyncClient, store: StoreDouble, storage: StorageDouble
) -> None:
    store.checkpoints.put(checkpoint())
    await store.sessions.finish(SESSION, "success")

    status, _, _ = await copied(
        client, destination_project_id=None, session_id=SESSION, model_seq_id=7
    )

    assert (status, storage.copied) == (410, [])


async def test_an_access_token_in_the_header_is_refused_and_not_repeated(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint())

    status, _, reason = await copied(client, headers={"X-Tinker-Weights-Access-Token": "s3cret"})

    assert status == 400
    assert "s3cret" not in reason


async def test_what_is_not_published_cannot_be_copied_by_a_stranger(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint())

    status, _, reason = await copied(client, headers=STRANGE)

    assert status == 404
    assert "does not exist or has expired" in reason


@pytest.mark.parametrize(
    ("error", "status"),
    [(FileNotFoundError(errno.ENOENT, "gone"), 404), (OSError(errno.ENOSPC, "full"), 429)],
)
async def test_a_copy_that_fails_half_way_is_not_recorded_and_its_files_are_doomed(
    client: httpx.AsyncClient,
    store: StoreDouble,
    storage: StorageDouble,
    error: OSError,
    status: int,
) -> None:
    store.checkpoints.put(checkpoint())
    storage.error = error

    got, _, _ = await copied(client)

    assert got == status
    assert list(store.checkpoints.records) == [FINAL]
    assert len(store.checkpoints.doomed) == 1


@pytest.mark.parametrize(
    ("after", "status"), [(None, 404), (checkpoint(revision="9"), 503), (checkpoint(), 200)]
)
async def test_a_source_that_changes_while_it_is_read_is_not_recorded_as_a_copy(
    client: httpx.AsyncClient,
    store: StoreDouble,
    storage: StorageDouble,
    after: Checkpoint | None,
    status: int,
) -> None:
    store.checkpoints.put(checkpoint())

    def change() -> None:
        del store.checkpoints.records[FINAL]
        if after is not None:
            store.checkpoints.put(after)

    storage.on_copy = change

    got, _, _ = await copied(client)

    assert got == status
    assert len(store.models.records) == (2 if status == 200 else 1)
