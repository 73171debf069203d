"""Sampling sessions through the SDK: cancelling, clones in other processes, in-flight weights."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
from tinker import types

from contract.builders import datum, tokens, train
from contract.conftest import BASE_MODEL, Running

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]
PROMPT = types.ModelInput.from_ints(tokens(8, 1))


def params(**options: Any) -> types.SamplingParams:
    settings: dict[str, Any] = {"max_tokens": 8, "seed": 7, "stop": [], **options}
    return types.SamplingParams(**settings)


def sample(client: tinker.SamplingClient, **options: Any) -> types.SampleResponse:
    return client.sample(PROMPT, num_samples=1, sampling_params=params(**options)).result()


def logprobs(client: tinker.SamplingClient) -> list[float | None]:
    return client.compute_logprobs(PROMPT).result()[1:]


def http(up: Running, tenant: str) -> httpx.Client:
    headers = {"X-API-Key": up.api_key(tenant)}
    return httpx.Client(base_url=f"{up.base_url}/api/v1", headers=headers, timeout=60)


class Raw:
    """A sampling session spoken to without the SDK's patience."""

    def __init__(self, up: Running, tenant: str) -> None:
        self.client = http(up, tenant)
        session = self._post("create_session", {})["session_id"]
        body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": BASE_MODEL}
        self.session_id = self._post("create_sampling_session", body)["sampling_session_id"]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def sample(self, seq_id: int, **sampling: Any) -> str:
        body = {
            "sampling_session_id": self.session_id,
            "seq_id": seq_id,
            "prompt": {"chunks": [{"tokens": tokens(8, 1)}]},
            "sampling_params": {"max_tokens": 4, "stop": [], **sampling},
        }
        return self._post("asample", body)["request_id"]

    def cancel(self, request_id: str) -> None:
        self._post("cancel_future", {"request_id": request_id})

    def result(self, request_id: str) -> Any:
        return self._post("retrieve_future", {"request_id": request_id})

    def completions(self, clone_id: int = 0, **body: Any) -> Any:
        target = {
            "type": "sampling_session",
            "sampling_session_id": self.session_id,
            "cloned_sampler_id": clone_id,
        }
        return self._post("retrieve_futures", {"target": target, **body})


@pytest.fixture
def raw(up: Running) -> Raw:
    return Raw(up, "poller")


def test_a_cancelled_sample_ends_at_once_and_others_go_on(raw: Raw) -> None:
    """The long one would take minutes."""
    endless = raw.sample(0, max_tokens=None)
    short = raw.sample(1)

    raw.cancel(endless)
    raw.cancel(endless)

    assert raw.result(endless) == {
        "error": "the sample was cancelled by its client",
        "category": "user",
    }
    assert raw.result(short)["sequences"]
    raw.cancel(short)
    assert raw.result(short)["sequences"]


def test_another_tenants_sample_cannot_be_cancelled(up: Running, raw: Raw) -> None:
    request_id = raw.sample(0, max_tokens=2000)

    answer = http(up, "stranger").post("cancel_future", json={"request_id": request_id})

    assert answer.status_code == 404
    raw.cancel(request_id)


def wait_until_held(client: httpx.Client, body: dict[str, Any]) -> None:
    """A poll for what is not there is answered at once; for what is pending it is held."""
    with contextlib.suppress(httpx.ReadTimeout):
        while client.post("retrieve_future", json=body, timeout=0.3).status_code == 410:
            pass


def test_a_future_that_the_sdk_gives_up_is_cancelled_on_the_server(up: Running) -> None:
    client = up.service("impatient").create_sampling_client(base_model=BASE_MODEL).result()
    session_id, seq_id, _ = sample(client).sequences[0].sequence_id.rsplit(":", 2)
    body = {"request_id": f"{session_id}:{int(seq_id) + 1}"}
    raw = http(up, "impatient")

    future: Any = client.sample(PROMPT, num_samples=12, sampling_params=params(max_tokens=None))
    wait_until_held(raw, body)
    future.future().cancel()

    answer = raw.post("retrieve_future", json=body).json()
    assert answer == {"error": "the sample was cancelled by its client", "category": "user"}


def test_the_poller_sees_each_end_once_in_order_and_per_clone(raw: Raw) -> None:
    first, other = raw.sample(0), raw.sample(5_000_000_000)
    raw.result(first)
    raw.result(other)

    seen = raw.completions(timeout=0)
    again = raw.completions(timeout=0, prev_cursor=seen["cursor"])
    clone = raw.completions(clone_id=5, timeout=0)

    assert seen["completions"] == [{"state": "finished", "request_id": first}]
    assert again == {"completions": [], "cursor": seen["cursor"]}
    assert [each["request_id"] for each in clone["completions"]] == [other]


def test_a_long_poll_ends_with_the_sample(raw: Raw) -> None:
    before = raw.completions(timeout=0)["cursor"]
    request_id = raw.sample(0, max_tokens=64)

    seen = raw.completions(prev_cursor=before, retrieved_request_ids=["not ours"])

    assert [each["request_id"] for each in seen["completions"]] == [request_id]
    assert seen["cursor"] > before


def test_a_cancelled_sample_shows_as_failed_to_the_poller(raw: Raw) -> None:
    request_id = raw.sample(0, max_tokens=None)
    raw.cancel(request_id)

    seen = raw.completions(timeout=0)

    assert seen["completions"] == [{"state": "failed", "request_id": request_id}]


def test_an_acknowledged_result_can_still_be_fetched_for_a_while(raw: Raw) -> None:
    request_id = raw.sample(0)
    expected = raw.result(request_id)

    raw.completions(timeout=0, retrieved_request_ids=[request_id])

    assert raw.result(request_id) == expected


def test_clones_of_a_pickled_client_get_ids_of_their_own(up: Running) -> None:
    client = up.service("forker").create_sampling_client(base_model=BASE_MODEL).result()
    expected = sample(client)

    clones = [pickle.loads(pickle.dumps(client)) for _ in range(2)]
    responses = [sample(clone) for clone in clones]

    assert [list(r.sequences[0].tokens) for r in responses] == [expected.sequences[0].tokens] * 2
    found = {r.sequences[0].sequence_id for r in [expected, *responses]}
    assert len(found) == 3
    raw = http(up, "forker")
    join = {"sampling_session_id": expected.sequences[0].sequence_id.rsplit(":", 2)[0]}
    assert raw.post("join_sampling_session", json=join).json()["client_counter"] == 3


def test_a_handle_without_credentials_samples_with_a_key_of_its_tenant(up: Running) -> None:
    client = up.service("holder").create_sampling_client(base_model=BASE_MODEL).result()
    expected = sample(client)

    handle = client.get_sampler_handle()
    mine = tinker.SamplingClient.from_sampler_handle(handle, api_key=up.api_key("holder"))

    assert list(sample(mine).sequences[0].tokens) == list(expected.sequences[0].tokens)


def test_in_flight_samplers_move_with_the_model_and_snapshots_do_not(new_model: NewModel) -> None:
    model = new_model("rollouts")
    first = model.save_weights_and_get_sampling_client(kind="inflight").result()
    snapshot = model.save_weights_and_get_sampling_client().result()
    before = logprobs(snapshot)
    assert logprobs(first) == before
    train(model, [datum(8, 1)], 3)

    second = model.save_weights_and_get_sampling_client(kind="inflight").result()

    newest = logprobs(second)
    assert not np.allclose(np.asarray(newest, float), np.asarray(before, float), atol=1e-3)
    assert logprobs(first) == newest
    assert logprobs(snapshot) == before
    frozen = model.save_weights_and_get_sampling_client().result()
    assert logprobs(frozen) == newest


@pytest.mark.parametrize("stop", ["string", "strings", "ids"])
def test_every_form_of_stop_ends_the_sample(up: Running, new_model: NewModel, stop: str) -> None:
    tokenizer: Any = new_model().get_tokenizer()
    client = up.service().create_sampling_client(base_model=BASE_MODEL).result()
    question = types.ModelInput.from_ints(
        tokenizer.encode("<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n")
    )

    def greedy(**options: Any) -> types.SampledSequence:
        drawing = params(temperature=0.0, max_tokens=30, **options)
        return client.sample(question, num_samples=1, sampling_params=drawing).result().sequences[0]

    free = list(greedy().tokens)
    text = tokenizer.decode(free)
    forms: dict[str, Any] = {
        "string": text[2:5],
        "strings": ["no such text", text[2:5]],
        "ids": [free[2]],
    }

    stopped = greedy(stop=forms[stop])

    assert stopped.stop_reason == "stop"
    assert list(stopped.tokens) == free[: len(stopped.tokens)]
    assert len(stopped.tokens) < 30


def test_what_is_left_out_is_the_servers_default(up: Running) -> None:
    """The end of the sequence stops, and nothing truncates."""
    client = up.service().create_sampling_client(base_model=BASE_MODEL).result()

    response = client.sample(
        PROMPT, num_samples=2, sampling_params=types.SamplingParams(max_tokens=400)
    ).result()

    assert all(s.stop_reason == "stop" or len(s.tokens) == 400 for s in response.sequences)
