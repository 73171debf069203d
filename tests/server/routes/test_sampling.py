from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tinker import types

from cyclora_core import ids, payload
from cyclora_core.ids import CheckpointKind
from cyclora_core.operations import OperationKind
from cyclora_core.samples import SampleBody, SamplingParams
from cyclora_core.store.memory import MemoryReading
from cyclora_server.submission import derived_seed
from server.doubles.builders import BASE, KEY, MODEL, SAMPLER, SESSION, STRANGER_KEY, checkpoint
from server.doubles.store import StoreDouble

REQUEST = f"{SAMPLER}:7"
CREATE = {"session_id": SESSION, "sampling_session_seq_id": 1}
CREATED = ids.sampling_session_id(SESSION, 1)


def sdk_sample(tokens: list[int] | None = None, **changes: Any) -> dict[str, Any]:
    params = changes.pop("params", {"max_tokens": 4})
    request = types.SampleRequest(
        prompt=types.ModelInput.from_ints([1, 2, 3] if tokens is None else tokens),
        sampling_params=types.SamplingParams(**params),
        sampling_session_id=SAMPLER,
        seq_id=changes.pop("seq_id", 7),
    )
    return request.model_dump(mode="json", exclude_none=True) | changes


async def asample(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    return await client.post("/api/v1/asample", json=body)


def submitted(store: StoreDouble, request_id: str = REQUEST) -> SampleBody:
    submission = store.submitted(request_id)
    assert submission.error is None
    return SampleBody.from_payload(payload.decode(submission.body))


async def test_a_sampling_session_opens_on_a_base_model(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    answer = await client.post(
        "/api/v1/create_sampling_session", json=CREATE | {"base_model": BASE.name}
    )

    assert answer.json() == {
        "type": "create_sampling_session",
        "sampling_session_id": CREATED,
    }
    record = store.sampling.records[CREATED]
    assert (record.base_model, record.weights_path, record.model_path) == (BASE.name, None, None)


@pytest.mark.parametrize("kind", [CheckpointKind.TRAINING, CheckpointKind.SAMPLER])
@pytest.mark.parametrize("named", [{}, {"base_model": BASE.name}])
async def test_a_sampling_session_opens_on_a_checkpoint(
    client: httpx.AsyncClient, store: StoreDouble, kind: CheckpointKind, named: dict[str, str]
) -> None:
    path = store.checkpoints.put(checkpoint(kind=kind)).path

    await client.post("/api/v1/create_sampling_session", json=CREATE | named | {"model_path": path})

    record = store.sampling.records[CREATED]
    assert (record.base_model, record.weights_path, record.model_path) == (BASE.name, path, path)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 400),
        ({"base_model": "org/other"}, 404),
        ({"model_path": "final"}, 400),
        ({"model_path": checkpoint().path}, 404),
        ({"model_path": f"tinker://{MODEL}/external_weights/a"}, 400),
        ({"base_model": BASE.name, "session_id": "nope"}, 404),
        ({"base_model": BASE.name, "sampling_session_seq_id": None}, 422),
    ],
)
async def test_a_sampling_session_on_nothing_is_refused(
    client: httpx.AsyncClient, store: StoreDouble, changes: dict[str, Any], status: int
) -> None:
    answer = await client.post("/api/v1/create_sampling_session", json=CREATE | changes)

    assert answer.status_code == status
    assert list(store.sampling.records) == [SAMPLER]


async def test_a_finished_session_opens_no_sampling_session(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    await store.sessions.finish(SESSION, "success")

    answer = await client.post(
        "/api/v1/create_sampling_session", json=CREATE | {"base_model": BASE.name}
    )

    assert answer.status_code == 410
    assert list(store.sampling.records) == [SAMPLER]


async def test_a_checkpoint_of_another_base_model_than_named_is_refused(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    path = store.checkpoints.put(checkpoint()).path
    body = CREATE | {"model_path": path, "base_model": "org/other"}

    answer = await client.post("/api/v1/create_sampling_session", json=body)

    assert answer.status_code == 400


async def test_the_sdk_understands_get_sampler(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/api/v1/samplers/{SAMPLER}")

    response = types.GetSamplerResponse.model_validate(answer.json())
    assert response.sampler_id == SAMPLER
    assert response.base_model == BASE.name
    assert response.model_path is None


async def test_every_clone_that_joins_gets_an_id_of_its_own(client: httpx.AsyncClient) -> None:
    body = {"sampling_session_id": SAMPLER}
    answers = [await client.post("/api/v1/join_sampling_session", json=body) for _ in range(2)]

    assert [each.json()["client_counter"] for each in answers] == [1, 2]


async def test_a_sample_of_the_sdk_is_submitted(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    body = sdk_sample(params={"max_tokens": 4, "temperature": 0.5, "seed": 9}, num_samples=2)

    answer = await asample(client, body)

    assert answer.json()["request_id"] == REQUEST
    assert answer.json()["sample_sequence_ids"] == [f"{REQUEST}:0", f"{REQUEST}:1"]
    submission = store.submitted(REQUEST)
    assert submission.kind is OperationKind.SAMPLE
    assert submission.num_tokens == 3 + 2 * 4
    sample = submitted(store)
    assert sample.prompt_tokens.tolist() == [1, 2, 3]
    assert sample.num_samples == 2
    assert sample.params == SamplingParams(
        max_tokens=4, seed=9, temperature=0.5, stop_token_ids=[], stop_strings=[]
    )


async def test_a_sample_without_max_tokens_is_sized_by_the_context(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    await asample(client, sdk_sample(params={}))

    assert submitted(store).params.max_tokens is None
    assert store.submitted(REQUEST).num_tokens == BASE.max_context_length


async def test_a_sample_without_a_seed_gets_the_same_one_at_every_try(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    """A retry after a crash must draw the same tokens."""
    answers = [await asample(client, sdk_sample()) for _ in range(2)]

    assert answers[0].json() == answers[1].json()
    assert submitted(store).params.seed == derived_seed(REQUEST)


async def test_samples_of_different_numbers_get_different_seeds(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    for seq_id in (1, 2):
        await asample(client, sdk_sample(seq_id=seq_id))

    seeds = {submitted(store, f"{SAMPLER}:{seq_id}").params.seed for seq_id in (1, 2)}
    assert len(seeds) == 2


async def test_a_sample_carries_the_weights_of_its_session(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    path = store.checkpoints.put(checkpoint(kind=CheckpointKind.SAMPLER)).path
    await client.post("/api/v1/create_sampling_session", json=CREATE | {"model_path": path})

    await asample(client, sdk_sample() | {"sampling_session_id": CREATED})

    assert submitted(store, f"{CREATED}:7").weights_path == path


async def test_what_a_sample_is_to_report_reaches_the_worker(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    body = sdk_sample(
        prompt_logprobs=True,
        topk_prompt_logprobs=1,
        topk_sample_logprobs=2,
        prompt_alt_tokens_k=3,
        prompt_logprobs_last_n=1,
        record_stability_info=True,
        target_prompt_logprobs={"data": [5, -1], "dtype": "int64", "shape": [2, 1]},
    )

    await asample(client, body)

    sample = submitted(store)
    assert sample.prompt_logprobs
    assert (sample.topk_prompt_logprobs, sample.topk_sample_logprobs) == (1, 2)
    assert (sample.prompt_alt_tokens_k, sample.prompt_logprobs_last_n) == (3, 1)
    assert sample.targets is not None
    assert sample.targets.tokens.tolist() == [5, -1]


async def test_a_full_server_pushes_back_and_the_same_number_is_taken_later(
    client: httpx.AsyncClient, store: StoreDouble, app: FastAPI
) -> None:
    """The SDK takes a 429 as back-pressure and sends the same seq_id again."""
    roomy = store.memory.reading
    store.memory.reading = MemoryReading(used_bytes=999, limit_bytes=1000)
    await app.state.services.capacity.measure()
    refused = await asample(client, sdk_sample())
    store.memory.reading = roomy
    await app.state.services.capacity.measure()

    taken = await asample(client, sdk_sample())

    assert refused.status_code == 429
    assert taken.json()["request_id"] == REQUEST
    assert store.submitted(REQUEST).error is None


async def test_the_seq_id_of_a_clone_needs_64_bits(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    seq_id = 880_723_432_000_000_001

    await asample(client, sdk_sample(seq_id=seq_id))

    assert store.submitted(f"{SAMPLER}:{seq_id}").seq_id == seq_id


@pytest.mark.parametrize(
    "body",
    [
        sdk_sample([]),
        sdk_sample([100]),
        sdk_sample(params={"max_tokens": 30}),
        sdk_sample(params={"temperature": -1}),
        sdk_sample(num_samples=0),
        sdk_sample(num_samples="many"),
        sdk_sample(prompt=None),
        sdk_sample(topk_sample_logprobs=101),
        sdk_sample(prompt_logprobs_last_n=3, prompt_logprobs=True),
        sdk_sample(prompt_logprobs_last_n=1),
        sdk_sample(prompt_alt_tokens_k=-1),
        sdk_sample(target_prompt_logprobs={"data": [1], "dtype": "int64", "shape": [1, 1]}),
        sdk_sample(target_prompt_logprobs="all"),
        sdk_sample(prompt={"chunks": [{"tokens": [1]}, {"tokens": []}]}),
        sdk_sample(prompt={"chunks": [{"type": "image", "data": "x", "format": "png"}]}),
    ],
)
async def test_a_refused_sample_becomes_a_failed_future(
    client: httpx.AsyncClient, store: StoreDouble, body: dict[str, Any]
) -> None:
    answer = await asample(client, body)

    assert answer.status_code == 200
    assert answer.json()["sample_sequence_ids"]
    assert store.submitted(REQUEST).error is not None


@pytest.mark.parametrize("num_samples", [3, 3.0, "3"])
async def test_a_sample_is_promised_an_id_for_each_of_its_sequences(
    client: httpx.AsyncClient, store: StoreDouble, num_samples: Any
) -> None:
    answer = await asample(client, sdk_sample(num_samples=num_samples))

    assert submitted(store).num_samples == 3
    assert len(set(answer.json()["sample_sequence_ids"])) == 3


@pytest.mark.parametrize(
    "changes", [{"sampling_session_id": None}, {"seq_id": None}, {"seq_id": 2**63}]
)
async def test_a_sample_without_a_readable_number_is_refused_at_once(
    client: httpx.AsyncClient, store: StoreDouble, changes: dict[str, Any]
) -> None:
    assert (await asample(client, sdk_sample() | changes)).status_code == 422
    assert not store.operations.submissions


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/v1/asample", sdk_sample()),
        ("POST", "/api/v1/join_sampling_session", {"sampling_session_id": SAMPLER}),
        ("GET", f"/api/v1/samplers/{SAMPLER}", None),
    ],
)
async def test_another_tenants_sampling_session_looks_missing(
    client: httpx.AsyncClient, store: StoreDouble, method: str, path: str, body: object
) -> None:
    answer = await client.request(method, path, json=body, headers={"X-API-Key": STRANGER_KEY})

    assert answer.status_code == 404
    assert answer.json() == {"detail": f"sampling session {SAMPLER!r} does not exist"}
    assert store.sampling.num_clones == 0


async def test_a_stranger_does_not_sample_from_a_checkpoint(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    path = store.checkpoints.put(checkpoint()).path
    headers = {"X-API-Key": STRANGER_KEY}
    session = (await client.post("/api/v1/create_session", json={}, headers=headers)).json()
    body = CREATE | {"session_id": session["session_id"], "model_path": path}

    answer = await client.post("/api/v1/create_sampling_session", json=body, headers=headers)

    assert answer.status_code == 404


async def cancel(client: httpx.AsyncClient, request_id: str, **headers: str) -> httpx.Response:
    body = {"request_id": request_id}
    return await client.post("/api/v1/cancel_future", json=body, headers=headers)


async def test_a_cancelled_sample_ends_in_an_error_and_once(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    await asample(client, sdk_sample())

    answers = [await cancel(client, REQUEST) for _ in range(2)]

    assert [each.status_code for each in answers] == [200, 200]
    assert store.cancellations.cancelled == [REQUEST]
    got = await client.post("/api/v1/retrieve_future", json={"request_id": REQUEST})
    assert got.json() == {"error": "cancelled", "category": "user"}


@pytest.mark.parametrize("seq_id", ["8", "x", "", "9" * 30])
async def test_cancelling_what_never_was_is_harmless(
    client: httpx.AsyncClient, store: StoreDouble, seq_id: str
) -> None:
    answer = await cancel(client, f"{SAMPLER}:{seq_id}")

    assert answer.status_code == 200
    assert not store.cancellations.cancelled


async def test_a_stranger_cancels_nothing(client: httpx.AsyncClient, store: StoreDouble) -> None:
    await asample(client, sdk_sample())

    answer = await cancel(client, REQUEST, **{"X-API-Key": STRANGER_KEY})

    assert answer.status_code == 404
    assert not store.cancellations.cancelled


@pytest.mark.parametrize(("key", "status"), [(KEY, 400), (STRANGER_KEY, 404)])
async def test_only_samples_can_be_cancelled(
    client: httpx.AsyncClient, key: str, status: int
) -> None:
    answer = await cancel(client, f"{MODEL}:3", **{"X-API-Key": key})

    assert answer.status_code == status


async def test_a_number_that_names_another_sampling_session_is_refused(
    client: httpx.AsyncClient, store: StoreDouble
) -> None:
    body = {"session_id": SESSION, "sampling_session_seq_id": 4, "base_model": BASE.name}
    first = await client.post("/api/v1/create_sampling_session", json=body)
    again = await client.post("/api/v1/create_sampling_session", json=body)
    path = store.checkpoints.put(checkpoint(kind=CheckpointKind.SAMPLER)).path

    other = await client.post(
        "/api/v1/create_sampling_session",
        json=body | {"base_model": None, "model_path": path},
    )

    assert first.json() == again.json()
    assert other.status_code == 400
    assert BASE.name in other.json()["detail"]
