"""What one tenant does is invisible to another, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import tinker
from tinker import types

from contract.builders import datum, logprobs, train
from contract.conftest import BASE_MODEL, Running

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]


def adam(learning_rate: float = 1e-2, weight_decay: float = 0.0) -> types.AdamParams:
    return types.AdamParams(learning_rate=learning_rate, weight_decay=weight_decay)


def own_run(model: tinker.TrainingClient) -> list[list[list[float]]]:
    """Six pipelined steps; the logprobs of each."""
    futures = []
    for step in range(6):
        data = [datum(7 + 3 * step, seed=step), datum(31, seed=99)]
        futures.append(model.forward_backward(data, "cross_entropy"))
        model.optim_step(adam())
    return [logprobs(future.result()) for future in futures]


def test_logprobs_are_bit_identical_alone_and_beside_three_others(
    up: Running, new_model: NewModel
) -> None:
    alone = own_run(new_model("lone", rank=8))
    models = [new_model(f"other-{i}", rank=rank) for i, rank in enumerate((4, 16, 32))]
    mine = new_model("lone", rank=8)
    cycles_before = len(up.cycles())

    with ThreadPoolExecutor(4) as threads:
        others = [
            threads.submit(train, model, [datum(50 * i + 1, seed=i), datum(1, seed=i)], 12)
            for i, model in enumerate(models)
        ]
        beside = own_run(mine)
        for other in others:
            other.result()

    assert any(row["num_tenants"] >= 2 for row in up.cycles()[cycles_before:])
    assert beside == alone


def test_another_tenants_optimizer_step_leaves_my_idle_adapter_as_it_was(
    new_model: NewModel,
) -> None:
    mine, other = new_model("idle"), new_model("busy")
    train(mine, [datum()], 2)
    before = logprobs(mine.forward([datum(40)], "cross_entropy").result())

    for _ in range(3):
        other.forward_backward([datum(40)], "cross_entropy").result()
        other.optim_step(adam(0.1, weight_decay=0.5)).result()

    assert logprobs(mine.forward([datum(40)], "cross_entropy").result()) == before


def test_sampling_an_older_snapshot_leaves_the_training_weights_alone(
    new_model: NewModel,
) -> None:
    model = new_model()
    train(model, [datum()], 2)
    sampler = model.save_weights_and_get_sampling_client().result()
    prompt = types.ModelInput.from_ints([5, 6, 7])
    old = sampler.compute_logprobs(prompt).result()
    train(model, [datum()], 2)
    before = logprobs(model.forward([datum()], "cross_entropy").result())

    params = types.SamplingParams(max_tokens=8, seed=1)
    sampler.sample(prompt, num_samples=4, sampling_params=params).result()

    assert sampler.compute_logprobs(prompt).result() == old
    assert logprobs(model.forward([datum()], "cross_entropy").result()) == before


def gradient_norm(model: tinker.TrainingClient, *batches: list[types.Datum]) -> float:
    for batch in batches:
        model.forward_backward(batch, "cross_entropy")
    metrics = model.optim_step(adam(0.0)).result().metrics
    assert metrics is not None
    return metrics["grad_norm"]


def test_losses_are_sums(new_model: NewModel) -> None:
    model = new_model(seed=3)
    once = gradient_norm(model, [datum(10)])

    assert gradient_norm(model, [datum(10)] * 2) == pytest.approx(2 * once, rel=1e-5)
    assert gradient_norm(model, [datum(10)], [datum(10)]) == pytest.approx(2 * once, rel=1e-5)
    half = datum(10, weights=[0.5] * 10)
    assert gradient_norm(model, [half]) == pytest.approx(once / 2, rel=1e-5)
    minus = datum(10, weights=[-1.0] * 10)
    assert gradient_norm(model, [minus]) == pytest.approx(once, rel=1e-5)
    assert gradient_norm(model, [datum(10), minus]) == pytest.approx(0.0, abs=1e-4 * once)
    assert gradient_norm(model, [datum(10, weights=[1.0, -1.0] * 5)]) > 0


def test_a_stranger_polling_my_future_gets_nothing_and_destroys_nothing(
    up: Running, new_model: NewModel
) -> None:
    model = new_model("victim")
    future = model.forward_backward([datum()], "cross_entropy")
    request_id = f"{model.model_id}:1"
    poll = {"request_id": request_id, "allow_metadata_only": False}
    url = f"{up.base_url}/api/v1/retrieve_future"

    for _ in range(3):
        stranger = httpx.post(url, json=poll, headers={"X-API-Key": up.api_key("stranger")})
        assert stranger.status_code == 404
        unknown = httpx.post(
            url,
            json={**poll, "request_id": request_id.replace(":1", ":77")},
            headers={"X-API-Key": up.api_key("stranger")},
        )
        assert unknown.status_code == 404
        assert stranger.json()["detail"] == unknown.json()["detail"].replace(":77", ":1")

    assert future.result().metrics["loss:sum"] > 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("get_info", {}),
        ("optim_step", {"seq_id": 1, "adam_params": {}}),
        ("save_weights", {"seq_id": 1, "path": "stolen"}),
        ("save_weights_for_sampler", {"seq_id": 1, "path": "stolen"}),
        ("unload_model", {"seq_id": 1}),
    ],
)
def test_another_tenants_model_does_not_exist_for_me(
    up: Running, new_model: NewModel, path: str, body: dict[str, object]
) -> None:
    model = new_model("victim")

    answer = httpx.post(
        f"{up.base_url}/api/v1/{path}",
        json={"model_id": model.model_id, **body},
        headers={"X-API-Key": up.api_key("stranger")},
    )

    assert answer.status_code == 404
    assert model.get_info().model_id == model.model_id


def test_another_tenants_checkpoint_cannot_be_sampled_or_loaded(
    up: Running, new_model: NewModel
) -> None:
    model = new_model("victim")
    path = model.save_weights_for_sampler("mine").result().path
    state = model.save_state("mine").result().path
    stranger = up.service("stranger")

    with pytest.raises(tinker.NotFoundError):
        stranger.create_sampling_client(model_path=path).result()
    with pytest.raises(Exception, match=r"does not exist|not found|404"):
        stranger.create_training_client_from_state(state).result()


def test_a_wrong_or_missing_key_is_refused(up: Running) -> None:
    service = tinker.ServiceClient(base_url=up.base_url, api_key="tml-wrong")

    with pytest.raises(tinker.AuthenticationError):
        service.create_lora_training_client(BASE_MODEL, rank=8).result()
    answer = httpx.get(f"{up.base_url}/api/v1/training_runs")
    assert answer.status_code == 401
