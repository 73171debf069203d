from __future__ import annotations

from typing import Any

import httpx
import pytest
from tinker.types.weights_info_response import WeightsInfoResponse

from core.builders import age_identity
from cyclora_core import ids, payload
from cyclora_core.clock import ManualClock
from cyclora_core.ids import CheckpointKind
from cyclora_core.operations import LoadWeightsBody, LoraConfig, OperationKind, SaveWeightsBody
from cyclora_core.optimizers import OptimizerType
from server.doubles.builders import BASE, MODEL, SESSION, STRANGER, STRANGER_KEY, checkpoint
from server.doubles.store import StoreDouble

REQUEST = f"{MODEL}:5"
RECIPIENT = str(age_identity().to_public())
FINAL = f"tinker://{MODEL}/weights/final"


async def post(client: httpx.AsyncClient, route: str, **body: Any) -> httpx.Response:
    return await client.post(f"/api/v1/{route}", json={"model_id": MODEL, "seq_id": 5, **body})


def saved(store: StoreDouble) -> SaveWeightsBody:
    submission = store.submitted(REQUEST)
    assert submission.error is None
    return SaveWeightsBody.from_payload(payload.decode(submission.body))


def loaded(store: StoreDouble, request_id: str = REQUEST) -> LoadWeightsBody:
    submission = store.submitted(request_id)
    assert submission.error is None
    return LoadWeightsBody.from_payload(payload.decode(submission.body))


def complaint(store: StoreDouble) -> str:
    error = store.submitted(REQUEST).error
    assert error is not None
    return error.message


async def test_a_named_save_gets_its_path(client: httpx.AsyncClient, store: StoreDouble) -> None:
    answer = await post(
        client, "save_weights", path="final", ttl_seconds=7200, user_metadata={"a": "b"}
    )

    assert answer.json()["request_id"] == REQUEST
    assert store.submitted(REQUEST).kind is OperationKind.SAVE_WEIGHTS
    assert saved(store) == SaveWeightsBody(FINAL, ttl_s=7200, user_metadata={"a": "b"})


async def test_a_save_without_a_name_gets_one(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    await post(client, "save_weights", path=None)

    assert saved(store).path == f"tinker://{MODEL}/weights/seq-000005"


async def test_a_name_that_is_taken_fails_the_save(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint())

    await post(client, "save_weights", path="final")

    assert "exists; choose another name, delete it, or set overwrite" in complaint(store)


async def test_overwrite_takes_a_name_that_is_taken(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint())

    await post(client, "save_weights", path="final", overwrite=True)

    assert saved(store).overwrite


async def test_an_expired_checkpoint_takes_no_name(
    client: httpx.AsyncClient, store: StoreDouble, clock: ManualClock
) -> None:
    store.checkpoints.put(checkpoint(expires_at_ms=clock.now_ms()))

    await post(client, "save_weights", path="final")

    assert saved(store).path == FINAL


async def test_a_save_sent_again_is_not_refused_by_its_own_checkpoint(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    """The answer to the first POST may be lost after the save was executed."""
    first = await post(client, "save_weights", path="final")
    store.checkpoints.put(checkpoint())

    again = await post(client, "save_weights", path="final")

    assert again.status_code == 200
    assert again.json() == first.json()
    assert store.submitted(REQUEST).error is None


async def test_a_state_and_its_sampler_weights_may_share_a_name(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint())

    await post(client, "save_weights_for_sampler", path="final", kind="snapshot")

    assert saved(store).path == f"tinker://{MODEL}/sampler_weights/final"


async def test_an_export_is_named_and_encrypted_to_its_recipients(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    await post(
        client,
        "save_weights_external",
        path="hf",
        ttl_seconds=3600,
        age_encryption_recipients=[RECIPIENT],
    )

    assert store.submitted(REQUEST).kind is OperationKind.SAVE_WEIGHTS_EXTERNAL
    assert saved(store) == SaveWeightsBody(
        f"tinker://{MODEL}/external_weights/hf", ttl_s=3600, age_recipients=[RECIPIENT]
    )


async def test_an_export_does_not_replace_another(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint("hf", CheckpointKind.EXTERNAL))

    await post(client, "save_weights_external", path="hf")

    assert "exists; choose another name or delete it" in complaint(store)


async def test_an_ephemeral_save_names_the_sampling_session_it_creates(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    await post(client, "save_weights_for_sampler", sampling_session_seq_id=3)

    assert saved(store) == SaveWeightsBody(
        path=f"tinker://{MODEL}/sampler_weights/ephemeral-5",
        sampling_session_id=ids.sampling_session_id(SESSION, 3),
    )


async def test_every_in_flight_save_goes_into_the_models_one_slot(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    await post(client, "save_weights_for_sampler", sampling_session_seq_id=3, kind="inflight")

    assert saved(store) == SaveWeightsBody(
        path=f"tinker://{MODEL}/sampler_weights/ephemeral-inflight",
        sampling_session_id=ids.sampling_session_id(SESSION, 3),
        overwrite=True,
    )


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("save_weights_for_sampler", {"path": "a", "kind": "inflight"}, "use kind 'snapshot'"),
        ("save_weights", {"path": "a/b"}, "is not allowed"),
        ("save_weights", {"path": "ephemeral-1"}, "is reserved"),
        ("save_weights", {"path": "a", "ttl_seconds": 60}, "ttl_seconds is 60"),
        ("save_weights", {"path": ["a"]}, "path: "),
        ("save_weights_for_sampler", {"path": "a", "kind": "live"}, "kind is 'live'"),
        ("save_weights_external", {}, "path"),
        ("save_weights_external", {"path": "a", "ttl_seconds": 60}, "ttl_seconds is 60"),
        (
            "save_weights_external",
            {"path": "a", "age_encryption_recipients": [RECIPIENT] * 11},
            "has 11 entries; expected 1 to 10",
        ),
        (
            "save_weights_external",
            {"path": "a", "age_encryption_recipients": []},
            "has 0 entries; expected 1 to 10",
        ),
        (
            "save_weights_external",
            {"path": "a", "age_encryption_recipients": ["age1nobody"]},
            "'age1nobody', which is no public key",
        ),
        (
            "save_weights_for_sampler",
            {"path": "a", "sampling_session_seq_id": 1},
            "a save is either named or behind",
        ),
        ("save_weights_for_sampler", {"sampling_session_seq_id": -1}, "sampling_session_seq_id: "),
        ("load_weights", {"path": "final"}, "is not a checkpoint"),
        ("load_weights", {"path": FINAL}, "does not exist or has expired"),
        ("load_weights", {}, "path: "),
    ],
)
async def test_a_refused_save_or_load_uses_up_its_seq_id(
    client: httpx.AsyncClient, store: StoreDouble, path: str, body: dict[str, Any], reason: str
) -> None:
    answer = await post(client, path, **body)

    assert answer.status_code == 200
    assert reason in complaint(store)


async def test_a_load_carries_what_the_checkpoint_was_made_of(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint())

    await post(client, "load_weights", path=FINAL, optimizer=True)

    assert loaded(store) == LoadWeightsBody(FINAL, True, BASE.name, LoraConfig(lora_rank=8))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tenant_id": STRANGER}, "does not exist or has expired"),
        ({"expires_at_ms": 1}, "does not exist or has expired"),
        ({"has_optimizer": False}, "holds no optimizer state"),
        ({"base_model": "org/other"}, "belongs to base model 'org/other'"),
        ({"lora": LoraConfig(lora_rank=16)}, "has lora_rank 16; the model has 8"),
        (
            # Kept, it would be forgotten when the model is restored after a crash.
            {"lora": LoraConfig(lora_rank=8, lora_alpha=64.0)},
            "has lora_alpha 64.0; the model has 32",
        ),
        (
            {"lora": LoraConfig(lora_rank=8, train_mlp=False)},
            "has train_mlp False; the model has True",
        ),
        ({"optimizer_type": OptimizerType.DIMUON}, "is of dimuon; the model has adamw"),
    ],
)
async def test_a_checkpoint_that_does_not_fit_fails_the_load(
    client: httpx.AsyncClient, store: StoreDouble, changes: dict[str, Any], reason: str
) -> None:
    store.checkpoints.put(checkpoint(**changes))

    await post(client, "load_weights", path=FINAL, optimizer=True)

    assert reason in complaint(store)


async def test_a_model_does_not_load_sampler_weights(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    sampler = store.checkpoints.put(checkpoint(kind=CheckpointKind.SAMPLER))

    await post(client, "load_weights", path=sampler.path, optimizer=False)

    assert "holds sampler_weights; a model loads from weights" in complaint(store)


CREATE = {"session_id": SESSION, "model_seq_id": 4, "path": FINAL, "optimizer": False}
NEW_MODEL = ids.model_id(SESSION, 4)


async def test_a_load_can_be_the_first_request_of_a_new_model(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    lora = LoraConfig(lora_rank=16, train_unembed=False)
    store.checkpoints.put(checkpoint(lora=lora))

    answer = await client.post("/api/v1/load_weights", json=CREATE | {"user_metadata": {"a": 1}})

    assert answer.json()["request_id"] == f"{NEW_MODEL}:0"
    submission = store.submitted(f"{NEW_MODEL}:0")
    assert submission.seq_id == 0
    assert submission.new_model is not None
    assert submission.new_model.lora == lora
    assert submission.new_model.user_metadata == {"a": "1"}
    assert loaded(store, f"{NEW_MODEL}:0").lora == lora


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, OptimizerType.ADAMW),
        ({"optimizer": True}, OptimizerType.DIMUON),
        ({"optimizer_config": {"type": "dimuon"}}, OptimizerType.DIMUON),
    ],
)
async def test_a_creating_load_takes_the_optimizer_with_its_state_or_as_it_is_told(
    client: httpx.AsyncClient,
    store: StoreDouble,
    changes: dict[str, Any],
    expected: OptimizerType,
) -> None:
    store.checkpoints.put(checkpoint(optimizer_type=OptimizerType.DIMUON))

    await client.post("/api/v1/load_weights", json=CREATE | changes)

    new_model = store.submitted(f"{NEW_MODEL}:0").new_model
    assert new_model is not None
    assert new_model.optimizer_type is expected


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer_config": {"type": "sgd"}},
        {"optimizer_config": {"type": "dimuon"}, "optimizer": True},
    ],
)
async def test_a_creating_load_with_the_wrong_optimizer_leaves_no_training_run(
    client: httpx.AsyncClient, store: StoreDouble, changes: dict[str, Any]
) -> None:
    store.checkpoints.put(checkpoint())

    answer = await client.post("/api/v1/load_weights", json=CREATE | changes)

    assert answer.status_code == 400
    assert "optimizer" in answer.json()["detail"]
    assert list(store.models.records) == [MODEL]


async def test_a_creating_load_sent_again_survives_the_end_of_its_checkpoint(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint())
    first = await client.post("/api/v1/load_weights", json=CREATE)
    await store.checkpoints.delete(FINAL)

    again = await client.post("/api/v1/load_weights", json=CREATE)

    assert again.json() == first.json()


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 404),
        ({"model_seq_id": None}, 422),
        ({"model_id": MODEL, "seq_id": 1}, 422),
        ({"session_id": "nope"}, 404),
        ({"optimizer_config": {"type": "sgd"}}, 404),
        ({"path": "x"}, 400),
    ],
)
async def test_a_refused_creating_load_leaves_no_training_run(
    client: httpx.AsyncClient, store: StoreDouble, changes: dict[str, Any], status: int
) -> None:
    answer = await client.post("/api/v1/load_weights", json=CREATE | changes)

    assert answer.status_code == status
    assert list(store.models.records) == [MODEL]


async def test_a_finished_session_loads_nothing_into_a_new_model(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint())
    await store.sessions.finish(SESSION, "success")

    assert (await client.post("/api/v1/load_weights", json=CREATE)).status_code == 410
    assert list(store.models.records) == [MODEL]


async def test_a_creating_load_keeps_to_the_checkpoints_base_model(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint())

    answer = await client.post("/api/v1/load_weights", json=CREATE | {"base_model": "org/other"})

    assert answer.status_code == 400
    assert "does not fit 'org/other'" in answer.json()["detail"]


async def test_the_sdk_understands_weights_info(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.checkpoints.put(checkpoint(optimizer_type=OptimizerType.DIMUON))

    answer = await client.post("/api/v1/weights_info", json={"tinker_path": FINAL})

    info = WeightsInfoResponse.model_validate(answer.json())
    assert info.base_model == BASE.name
    assert info.lora_rank == 8
    assert info.optimizer_config.type == "dimuon"


async def test_weights_info_of_a_stranger_looks_missing(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    body = {"tinker_path": FINAL}
    missing = await client.post("/api/v1/weights_info", json=body)
    store.checkpoints.put(checkpoint())

    strange = await client.post(
        "/api/v1/weights_info", json=body, headers={"X-API-Key": STRANGER_KEY}
    )

    assert strange.status_code == 404
    assert strange.json() == missing.json()
