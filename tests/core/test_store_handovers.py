"""Which worker has sampler weights that storage has not got yet."""

from __future__ import annotations

import dataclasses

from core.builders import BASE_MODEL, SESSION_ID, model_id, sample, submission, submit
from cyclora_core import ids
from cyclora_core.operations import OperationKind
from cyclora_core.store import Store

PATH = f"tinker://{model_id()}/sampler_weights/ephemeral-1"


async def assign(store: Store, worker_id: str) -> None:
    await submit(store, submission(OperationKind.CREATE_MODEL, 0))
    redis, keys = store.handovers._redis, store.handovers._keys  # pyright: ignore[reportPrivateUsage]
    await redis.hset(keys.model(model_id()), "worker_id", worker_id)


async def holder(store: Store, path: str | None) -> str | None:
    owner = ids.sampling_session_id(SESSION_ID, 0)
    await submit(store, dataclasses.replace(sample(0), owner_id=owner, weights_path=path))
    (waiting,) = (await store.cycles.gather(BASE_MODEL, 10, 10)).samples
    return waiting.worker_id


async def test_a_sample_of_handed_over_weights_belongs_to_their_models_worker(store: Store) -> None:
    await assign(store, "worker-7")
    await store.handovers.begin(model_id(), 1, PATH)

    assert await holder(store, PATH) == "worker-7"


async def test_once_they_are_in_storage_any_worker_will_do(store: Store) -> None:
    await assign(store, "worker-7")
    await store.handovers.begin(model_id(), 1, PATH)
    await store.handovers.end(model_id(), 1)

    assert await holder(store, PATH) is None


async def test_other_weights_of_the_model_and_the_base_model_belong_to_nobody(
    store: Store,
) -> None:
    await assign(store, "worker-7")
    await store.handovers.begin(model_id(), 1, PATH)

    assert await holder(store, PATH.replace("ephemeral-1", "kept")) is None
    assert await store.handovers.holders([]) == {}


async def test_what_a_model_has_handed_over_comes_in_the_order_of_its_saves(store: Store) -> None:
    for seq_id in (10, 9, 100):
        await store.handovers.begin(model_id(), seq_id, f"{PATH}{seq_id}")

    assert list(await store.handovers.of_model(model_id())) == [9, 10, 100]
