"""Custom losses in a real Valkey: numbered, bounded, gone with their session."""

from __future__ import annotations

import dataclasses

import pytest

from core.builders import SESSION_ID
from core.losses import custom_loss, method, ref
from core.test_store_records import session
from cyclora_core import codec, ids, payload
from cyclora_core.clock import ManualClock
from cyclora_core.operations import CustomLossResult, OperationKind
from cyclora_core.records import FutureState
from cyclora_core.store import Store, custom_losses
from cyclora_core.store.custom_losses import CreateLossOutcome

LOSS = custom_loss(
    method("total", "sum", ref("logprobs"), dim={"float": "inf"}), advantages=1, beta=0
)
OTHER = dataclasses.replace(LOSS, name="other")
TENANT = "tenant-a"
TWO_AND_A_HALF = len(codec.dump(LOSS)) * 5 // 2
SECOND = "22222222-2222-3333-4444-555555555555"


@pytest.fixture
async def store(store: Store) -> Store:
    for session_id in (SESSION_ID, SECOND):
        await store.sessions.create(session(session_id))
    return store


async def create(
    store: Store, number: int = 0, loss: object = LOSS, session_id: str = SESSION_ID
) -> CreateLossOutcome:
    assert isinstance(loss, type(LOSS))
    return await store.custom_losses.create(TENANT, session_id, number, loss)


async def test_a_loss_is_found_by_the_id_that_its_future_gives(store: Store) -> None:
    assert await create(store, 3) is CreateLossOutcome.ACCEPTED

    loss_id = ids.loss_id(SESSION_ID, 3)
    future = await store.futures.get(loss_id)
    assert future is not None
    assert (future.state, future.kind) == (FutureState.DONE, OperationKind.CREATE_CUSTOM_LOSS)
    assert future.result is not None
    assert CustomLossResult.from_payload(payload.decode(future.result)).loss_id == loss_id
    assert future.tenant_id == TENANT
    assert await store.custom_losses.get(loss_id) == LOSS


async def test_the_same_loss_again_changes_nothing_and_another_one_is_refused(
    store: Store,
) -> None:
    outcomes = [await create(store), await create(store), await create(store, loss=OTHER)]

    assert outcomes == ["accepted", "duplicate", "conflict"]
    assert await store.custom_losses.get(ids.loss_id(SESSION_ID, 0)) == LOSS


async def test_a_late_retry_finds_a_future_again(store: Store) -> None:
    await create(store)
    loss_id = ids.loss_id(SESSION_ID, 0)
    redis, keys = store.futures._redis, store.futures._keys  # pyright: ignore[reportPrivateUsage]
    await redis.delete(keys.future(loss_id))

    assert await create(store) is CreateLossOutcome.DUPLICATE

    future = await store.futures.get(loss_id)
    assert future is not None
    assert future.state is FutureState.DONE


async def test_losses_go_with_their_session_and_none_comes_after_it(store: Store) -> None:
    await create(store, 0)
    await create(store, 0, session_id=SECOND)

    await store.sessions.finish(SESSION_ID, "success")

    assert await store.custom_losses.get(ids.loss_id(SESSION_ID, 0)) is None
    assert await store.custom_losses.get(ids.loss_id(SECOND, 0)) == LOSS
    assert await create(store, 1) is CreateLossOutcome.FINISHED
    assert await create(store, 0) is CreateLossOutcome.FINISHED
    unknown = "33333333-2222-3333-4444-555555555555"
    assert await create(store, 0, session_id=unknown) is CreateLossOutcome.FINISHED


async def test_a_session_finishes_once_with_the_first_reason(
    store: Store, clock: ManualClock
) -> None:
    await store.sessions.finish(SESSION_ID, "errored")
    await store.sessions.finish(SESSION_ID, "success")
    await store.sessions.finish("44444444-2222-3333-4444-555555555555", "success")

    found = await store.sessions.get(SESSION_ID)
    assert found is not None
    assert found.finished_reason == "errored"


@pytest.mark.parametrize(
    ("limit", "value", "expected"),
    [
        ("MAX_LOSSES_PER_SESSION", 2, ["accepted", "accepted", "session_full", "accepted"]),
        (
            "MAX_BYTES_PER_SESSION",
            TWO_AND_A_HALF,
            ["accepted", "accepted", "session_full", "accepted"],
        ),
        ("MAX_LOSSES_PER_TENANT", 2, ["accepted", "accepted", "tenant_full", "tenant_full"]),
        (
            "MAX_BYTES_PER_TENANT",
            TWO_AND_A_HALF,
            ["accepted", "accepted", "tenant_full", "tenant_full"],
        ),
    ],
)
async def test_losses_are_bounded_by_session_and_tenant(
    store: Store, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, expected: list[str]
) -> None:
    """In count and bytes. A retry needs no room."""
    monkeypatch.setattr(custom_losses, limit, value)

    outcomes = [await create(store, number) for number in range(3)]
    outcomes.append(await create(store, 0, session_id=SECOND))

    assert outcomes == expected
    assert await create(store, 1) is CreateLossOutcome.DUPLICATE


async def test_finishing_a_session_makes_room_for_the_tenant(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custom_losses, "MAX_LOSSES_PER_TENANT", 1)
    await create(store, 0)
    assert await create(store, 0, session_id=SECOND) is CreateLossOutcome.TENANT_FULL

    await store.sessions.finish(SESSION_ID, "success")

    assert await create(store, 0, session_id=SECOND) is CreateLossOutcome.ACCEPTED
