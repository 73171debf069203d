"""A worker that is killed comes back, and no future hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker
from tinker import types

from contract.builders import datum, logprobs, train
from contract.conftest import BASE_MODEL, Running, run_up

pytestmark = [pytest.mark.contract, pytest.mark.slow]


@pytest.fixture(scope="module")
def own_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_up(tmp_path_factory.mktemp("killed") / "data") as running:
        yield running


def new_model(up: Running, seed: int = 0) -> tinker.TrainingClient:
    return up.service().create_lora_training_client(BASE_MODEL, rank=8, seed=seed).result()


def run_steps(model: tinker.TrainingClient) -> list[list[list[float]]]:
    futures = []
    for step in range(8):
        data = [datum(120, seed=step + i) for i in range(16)]
        futures.append(model.forward_backward(data, "cross_entropy"))
        model.optim_step(types.AdamParams(learning_rate=1e-2))
    return [logprobs(future.result(timeout=120)) for future in futures]


def test_training_and_sampling_survive_a_killed_worker_with_the_same_numbers(
    own_up: Running,
) -> None:
    undisturbed = run_steps(new_model(own_up))
    model = new_model(own_up)
    sampler = own_up.service().create_sampling_client(base_model=BASE_MODEL).result()
    prompt = types.ModelInput.from_ints([5, 6, 7])
    params = types.SamplingParams(max_tokens=200, seed=3, stop=[])
    expected = sampler.sample(prompt, num_samples=4, sampling_params=params).result()
    (worker_pid,) = own_up.ready["pids"]["workers"]

    futures = []
    for step in range(8):
        data = [datum(120, seed=step + i) for i in range(16)]
        futures.append(model.forward_backward(data, "cross_entropy"))
        model.optim_step(types.AdamParams(learning_rate=1e-2))
    sampling = sampler.sample(prompt, num_samples=4, sampling_params=params)
    futures[1].result(timeout=120)
    os.kill(worker_pid, signal.SIGKILL)

    assert [logprobs(future.result(timeout=120)) for future in futures] == undisturbed
    again = sampling.result(timeout=120)
    assert [s.tokens for s in again.sequences] == [s.tokens for s in expected.sequences]


def test_runs_and_checkpoints_are_found_again_on_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with run_up(folder) as first:
        service = tinker.ServiceClient(base_url=first.base_url, api_key=first.ready["api_key"])
        model = service.create_lora_training_client(BASE_MODEL, rank=8).result()
        train(model, [datum()], 2)
        path = model.save_state("kept").result().path
        expected = logprobs(model.forward([datum()], "cross_entropy").result())

    with run_up(folder) as second:
        assert second.ready["api_key"] == first.ready["api_key"]
        service = tinker.ServiceClient(base_url=second.base_url, api_key=second.ready["api_key"])
        rest = tinker.RestClient(base_url=second.base_url, api_key=second.ready["api_key"])
        runs = rest.list_training_runs().result().training_runs
        assert [run.training_run_id for run in runs] == [model.model_id]
        listed = rest.list_checkpoints(model.model_id).result().checkpoints
        assert [each.tinker_path for each in listed] == [path]
        resumed = service.create_training_client_from_state(path).result()
        assert logprobs(resumed.forward([datum()], "cross_entropy").result()) == expected
