"""Saving and loading through the official SDK."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tinker
from tinker import types

from contract.builders import datum, logprobs, train
from contract.conftest import BASE_MODEL, Running

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]


def test_going_on_from_a_state_equals_never_having_stopped(
    service: tinker.ServiceClient, new_model: NewModel
) -> None:
    straight = train(new_model(seed=5), [datum()], 6)
    stopped = new_model(seed=5)
    first = train(stopped, [datum()], 3)
    path = stopped.save_state("half-way").result().path

    resumed = service.create_training_client_from_state_with_optimizer(path).result()

    assert first + train(resumed, [datum()], 3) == straight


def test_a_state_without_its_optimizer_starts_with_fresh_moments(
    service: tinker.ServiceClient, new_model: NewModel
) -> None:
    model = new_model(seed=5)
    train(model, [datum()], 3)
    path = model.save_state("weights-only").result().path
    with_optimizer = service.create_training_client_from_state_with_optimizer(path).result()
    fresh = service.create_training_client_from_state(path).result()

    a, b = train(with_optimizer, [datum()], 3), train(fresh, [datum()], 3)

    assert a[0] == b[0]
    assert a[2] != b[2]


def test_loading_into_the_same_client_brings_its_numbers_back(new_model: NewModel) -> None:
    model = new_model()
    train(model, [datum()], 2)
    path = model.save_state("back").result().path
    before = logprobs(model.forward([datum()], "cross_entropy").result())
    train(model, [datum()], 2)

    with pytest.warns((DeprecationWarning, FutureWarning)):
        model.load_state_with_optimizer(path).result()  # pyright: ignore[reportDeprecated]

    assert logprobs(model.forward([datum()], "cross_entropy").result()) == before


def test_a_resumed_model_has_the_rank_of_its_checkpoint(
    service: tinker.ServiceClient, new_model: NewModel
) -> None:
    model = new_model(rank=4)
    path = model.save_state("rank-four").result().path

    resumed = service.create_training_client_from_state(path).result()

    assert resumed.get_info().lora_rank == 4
    assert resumed.get_info().model_data.model_name == BASE_MODEL


def test_a_name_is_not_overwritten_unless_asked(new_model: NewModel) -> None:
    model = new_model()
    model.save_state("once").result()

    with pytest.raises(tinker.RequestFailedError, match="once"):
        model.save_state("once").result()

    assert train(model, [datum()], 1)[0] > 0
    assert model.save_state("once", overwrite=True).result().path.endswith("/weights/once")


@pytest.mark.parametrize("name", ["../escape", "a/b", ".hidden", "sp ace"])
def test_a_name_that_could_leave_its_folder_is_refused(new_model: NewModel, name: str) -> None:
    model = new_model()

    with pytest.raises(tinker.RequestFailedError, match="not allowed"):
        model.save_state(name).result()

    assert train(model, [datum()], 1)[0] > 0


def test_a_path_that_does_not_exist_is_named(service: tinker.ServiceClient) -> None:
    path = "tinker://11111111-2222-3333-4444-555555555555:train:0/weights/nothing"

    with pytest.raises(Exception, match="nothing"):
        service.create_training_client_from_state(path).result()


def test_checkpoints_are_listed_with_their_training_run(up: Running, new_model: NewModel) -> None:
    model = new_model()
    model.save_state("listed-state", user_metadata={"step": "7"}).result()
    model.save_weights_for_sampler("listed-sampler").result()
    model.save_weights_and_get_sampling_client().result()  # ephemeral: not listed

    listed = up.rest().list_checkpoints(model.model_id).result().checkpoints

    assert {each.checkpoint_id for each in listed} == {
        "weights/listed-state",
        "sampler_weights/listed-sampler",
    }


def test_an_adapter_of_attention_only_trains_only_attention(
    service: tinker.ServiceClient,
) -> None:
    model = service.create_lora_training_client(
        BASE_MODEL, rank=8, train_mlp=False, train_unembed=False
    ).result()

    losses = train(model, [datum()], 3)

    assert losses[-1] < losses[0]
    metrics = model.optim_step(types.AdamParams(learning_rate=1e-3)).result().metrics
    assert metrics is not None


def test_ephemeral_weights_go_with_the_session_that_made_them(up: Running) -> None:
    service = up.service("tidy")
    model = service.create_lora_training_client(BASE_MODEL, rank=8).result()
    kept = model.save_weights_for_sampler("kept").result().path
    for _ in range(2):
        model.save_weights_and_get_sampling_client().result()
    folder = up.folder / "storage" / "checkpoints" / model.model_id / "sampler_weights"
    assert len(list(folder.iterdir())) == 3

    service.close("success").result()

    assert [each.name for each in folder.iterdir()] == [kept.rpartition("/")[2]]
