"""What the SDK's clients do besides training, sampling and listing."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable

import pytest
import tinker
from tinker import types
from tinker.lib.public_interfaces import sampling_client, training_client

from contract.builders import datum, logprobs, train
from contract.conftest import BASE_MODEL, Running
from cyclora_client.connect import connect

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]
PROMPT = types.ModelInput.from_ints([20, 21, 22])
SEEDED = types.SamplingParams(max_tokens=4, seed=7)


def sampled_tokens(sampler: tinker.SamplingClient) -> list[int]:
    return list(sampler.sample(PROMPT, 1, SEEDED).result().sequences[0].tokens)


def test_the_service_client_tells_the_capabilities_and_makes_a_rest_client(up: Running) -> None:
    service = up.service()

    with pytest.warns(FutureWarning, match="RestClient"):
        capabilities = service.get_server_capabilities()  # pyright: ignore[reportDeprecated]
    with pytest.warns(FutureWarning, match="RestClient"):
        rest = service.create_rest_client()  # pyright: ignore[reportDeprecated]

    names = [model.model_name for model in capabilities.supported_models]
    assert names == [BASE_MODEL]
    assert rest.get_server_capabilities().result() == capabilities


def test_what_clients_say_of_themselves(up: Running, new_model: NewModel) -> None:
    service, model = up.service(), new_model()
    sampler = service.create_sampling_client(base_model=BASE_MODEL).result()
    admin = tinker.AdminClient(base_url=up.base_url, api_key=up.api_key("tenant"))

    assert service.get_console_url() != model.get_console_url()
    for client in (service, model, sampler, up.rest(), admin):
        client.get_telemetry()
    assert sampler.get_base_model() == BASE_MODEL


def test_a_sampler_goes_to_another_process_as_a_handle_or_pickled(
    up: Running, service: tinker.ServiceClient
) -> None:
    sampler = service.create_sampling_client(base_model=BASE_MODEL).result()
    handle = sampler.get_sampler_handle()

    revived = tinker.SamplingClient.from_sampler_handle(handle, api_key=up.api_key("tenant"))
    unpickled = pickle.loads(pickle.dumps(sampler))

    assert sampled_tokens(revived) == sampled_tokens(sampler)
    assert sampled_tokens(unpickled) == sampled_tokens(sampler)


def test_a_sampling_client_is_made_by_its_class(service: tinker.ServiceClient) -> None:
    sampler = asyncio.run(
        tinker.SamplingClient.create(
            service.holder, sampling_session_id=None, base_model=BASE_MODEL
        ).result_async()
    )

    assert sampled_tokens(sampler)


def test_the_tokenizer_of_a_sampling_client_comes_from_the_server(
    up: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sampling_client, training_client):  # what ``connect`` wraps is put back
        loader = "_load_tokenizer_from_model_info"
        monkeypatch.setattr(module, loader, getattr(module, loader))
    service = connect(up.base_url, up.api_key("tenant"))
    sampler = service.create_sampling_client(base_model=BASE_MODEL).result()

    tokenizer = sampler.get_tokenizer()

    assert tokenizer.decode(tokenizer.encode("Who bakes bread?")) == "Who bakes bread?"


def test_a_loaded_state_without_its_optimizer_has_its_weights(new_model: NewModel) -> None:
    model = new_model()
    train(model, [datum()], 2)
    path = model.save_state("to-load").result().path
    before = logprobs(model.forward([datum()], "cross_entropy").result())
    train(model, [datum()], 2)

    with pytest.warns((DeprecationWarning, FutureWarning)):
        model.load_state(path).result()  # pyright: ignore[reportDeprecated]

    assert logprobs(model.forward([datum()], "cross_entropy").result()) == before


async def test_a_future_is_awaited_as_it_is_or_as_a_coroutine(new_model: NewModel) -> None:
    model = new_model()

    task = asyncio.create_task(model.forward([datum()], "cross_entropy").coroutine())
    awaited = await model.forward([datum()], "cross_entropy")

    assert logprobs(await task) == logprobs(awaited)


def test_the_credential_of_the_environment_is_found_and_accepted(
    up: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", up.base_url)
    monkeypatch.setenv("TINKER_API_KEY", up.api_key("tenant"))

    assert tinker.auth.get_tinker_token() == up.api_key("tenant")
    assert tinker.auth.tinker_has_credentials()
    tinker.auth.raise_if_tinker_not_accessible()


def test_a_wrong_credential_is_told_at_once(up: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", up.base_url)
    monkeypatch.setenv("TINKER_API_KEY", "tml-nobody")

    with pytest.raises(tinker.AuthenticationError):
        tinker.auth.raise_if_tinker_not_accessible()
