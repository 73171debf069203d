"""Saving and loading through the official SDK."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tinker
from tinker import types

from contract.builders import datum, logprobs, train
from contract.conftest import BASE_MODEL, Running
from contract.storage import files_of, moments_of, revisions_of

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


def test_a_state_goes_on_to_the_same_bytes_as_if_it_had_never_stopped(
    up: Running, service: tinker.ServiceClient, new_model: NewModel
) -> None:
    """Weights, moments and step count; each client saves between its steps or not."""
    straight = new_model(seed=5)
    train(straight, [datum()], 5)
    expected = files_of(up, straight.save_state("end").result().path)
    model = new_model(seed=5)
    for _ in range(5):
        train(model, [datum()], 1)
        path = model.save_state("rolling", overwrite=True).result().path
        model = service.create_training_client_from_state_with_optimizer(path).result()

    assert files_of(up, model.save_state("end").result().path) == expected


def test_a_state_comes_back_with_its_moments_or_with_none(
    up: Running, service: tinker.ServiceClient, new_model: NewModel
) -> None:
    model = new_model()
    train(model, [datum()], 2)
    path = model.save_state("trained").result().path
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    fresh = service.create_training_client_from_state(path).result()

    again, anew = [each.save_state("again").result().path for each in (resumed, fresh)]

    trained = files_of(up, path)
    assert files_of(up, again) == trained
    weights = "adapter_model.safetensors"
    assert files_of(up, anew)[weights] == trained[weights]
    assert all(not moments.any() for moments in moments_of(up, anew).values())
    assert all(moments.any() for moments in moments_of(up, path).values())


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


def test_overwriting_replaces_files_metadata_and_lifetime_as_a_whole(
    up: Running, service: tinker.ServiceClient, new_model: NewModel
) -> None:
    model = new_model("over")
    rest = up.rest("over")
    first = model.save_state("best", ttl_seconds=7200, user_metadata={"step": "1", "loss": "2.5"})
    path = first.result().path
    rest.publish_checkpoint_from_tinker_path(path).result()
    train(model, [datum()], 1)
    before = files_of(up, path)

    model.save_state("best", overwrite=True, user_metadata={"step": "2"}).result()

    [listed] = rest.list_checkpoints(model.model_id).result().checkpoints
    assert listed.user_metadata == {"step": "2"}
    assert (listed.expires_at, listed.public) == (None, False)
    assert len(revisions_of(up, path)) == 1
    assert files_of(up, path) != before
    model.save_state("best", overwrite=True).result()
    [listed] = rest.list_checkpoints(model.model_id).result().checkpoints
    assert listed.user_metadata == {}


def test_a_checkpoint_can_be_loaded_while_it_is_saved_over_again_and_again(
    service: tinker.ServiceClient, new_model: NewModel
) -> None:
    model = new_model()
    path = model.save_state("busy").result().path
    saves = [model.save_state("busy", overwrite=True) for _ in range(10)]

    loads = [service.create_training_client_from_state_with_optimizer(path) for _ in range(5)]

    for load in loads:
        assert load.result().get_info().lora_rank == 8
    assert {save.result().path for save in saves} == {path}


def test_both_kinds_of_checkpoint_may_have_the_same_name(new_model: NewModel) -> None:
    model = new_model()

    paths = {
        model.save_state("000002").result().path,
        model.save_weights_for_sampler("000002").result().path,
    }

    assert paths == {
        f"tinker://{model.model_id}/weights/000002",
        f"tinker://{model.model_id}/sampler_weights/000002",
    }


def test_a_model_samples_from_either_kind_of_checkpoint_alike(
    service: tinker.ServiceClient, new_model: NewModel
) -> None:
    model = new_model()
    train(model, [datum()], 3)
    prompt = types.ModelInput.from_ints([5, 6, 7, 8])
    samplers = [
        service.create_sampling_client(model_path=path).result()
        for path in (
            model.save_state("either").result().path,
            model.save_weights_for_sampler("either").result().path,
        )
    ]

    first, second = [sampler.compute_logprobs(prompt).result() for sampler in samplers]

    assert first == second
    assert (
        first
        != service.create_sampling_client(base_model=BASE_MODEL)
        .result()
        .compute_logprobs(prompt)
        .result()
    )


def test_only_a_state_can_be_trained_on(service: tinker.ServiceClient, new_model: NewModel) -> None:
    path = new_model().save_weights_for_sampler("no-state").result().path

    with pytest.raises(tinker.BadRequestError, match="holds sampler_weights"):
        service.create_training_client_from_state(path).result()


@pytest.mark.parametrize("ttl_s", [60, 3599, 315_360_001])
def test_a_lifetime_out_of_bounds_is_refused(up: Running, new_model: NewModel, ttl_s: int) -> None:
    model = new_model()
    path = model.save_state("lasting").result().path

    for save in (model.save_state, model.save_weights_for_sampler):
        with pytest.raises(tinker.RequestFailedError, match=f"ttl_seconds is {ttl_s}; expected"):
            save("short", ttl_seconds=ttl_s).result()
    with pytest.raises(tinker.BadRequestError, match=f"ttl_seconds is {ttl_s}; expected"):
        up.rest().set_checkpoint_ttl_from_tinker_path(path, ttl_s).result()
    with pytest.raises(tinker.BadRequestError, match=f"ttl_seconds is {ttl_s}; expected"):
        up.rest().copy_weights(path, "proj", ttl_seconds=ttl_s).result()


def test_a_lifetime_is_set_with_the_save_changed_and_removed(
    up: Running, new_model: NewModel
) -> None:
    model = new_model("ttl")
    rest = up.rest("ttl")
    path = model.save_weights_for_sampler("rolling", ttl_seconds=7200).result().path

    def left_s() -> float | None:
        [listed] = rest.list_checkpoints(model.model_id).result().checkpoints
        return listed.expires_at and (listed.expires_at - listed.time).total_seconds()

    assert left_s() == 7200
    rest.set_checkpoint_ttl_from_tinker_path(path, 604_800).result()
    assert left_s() == pytest.approx(604_800, abs=60)
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert left_s() is None


@pytest.mark.parametrize("name", ["a", "Final_1.0-rc", "000002", "-_-", "x" * 128])
def test_a_name_of_the_allowed_characters_comes_back_in_the_path(
    up: Running, new_model: NewModel, name: str
) -> None:
    model = new_model()

    path = model.save_state(name).result().path

    assert path == f"tinker://{model.model_id}/weights/{name}"
    up.rest().delete_checkpoint_from_tinker_path(path).result()


@pytest.mark.parametrize(
    "name", ["../escape", "a/b", ".hidden", "sp ace", "ephemeral-1", "x" * 129]
)
def test_a_name_that_could_leave_its_folder_is_refused(new_model: NewModel, name: str) -> None:
    model = new_model()

    for save in (model.save_state, model.save_weights_for_sampler):
        with pytest.raises(tinker.RequestFailedError, match=r"not allowed|is reserved"):
            save(name).result()

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
    # Nothing behind a load needs what lies before it, so it waits for files that are still written.
    state = model.save_state("state").result().path
    with pytest.warns((DeprecationWarning, FutureWarning)):
        model.load_state(state).result()  # pyright: ignore[reportDeprecated]
    folder = up.folder / "storage" / "checkpoints" / model.model_id / "sampler_weights"
    assert len(list(folder.iterdir())) == 3

    service.close("success").result()

    assert [each.name for each in folder.iterdir()] == [kept.rpartition("/")[2]]
