"""Runs, checkpoints and sessions as the SDK's REST client reads and deletes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tinker

from contract.builders import datum, train
from contract.conftest import BASE_MODEL, Running

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]


@pytest.fixture
def saved(new_model: NewModel) -> tuple[tinker.TrainingClient, str]:
    """A model and the path of its only checkpoint."""
    model = new_model("rest", rank=4)
    path = model.save_state("kept").result().path
    assert path is not None
    return model, path


def test_a_run_is_found_by_its_id_and_by_a_path(
    up: Running, saved: tuple[tinker.TrainingClient, str]
) -> None:
    model, path = saved

    run = up.rest("rest").get_training_run(model.model_id).result()
    by_path = up.rest("rest").get_training_run_by_tinker_path(path).result()

    assert run == by_path
    assert run.training_run_id == model.model_id
    assert run.base_model == BASE_MODEL
    assert run.lora_rank == 4
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.tinker_path == path


def test_runs_are_listed_page_by_page(up: Running, new_model: NewModel) -> None:
    names = [new_model("leafer").model_id for _ in range(3)]
    rest = up.rest("leafer")

    first = rest.list_training_runs(limit=2).result()
    second = rest.list_training_runs(limit=2, offset=2).result()

    found = [run.training_run_id for run in (*first.training_runs, *second.training_runs)]
    assert found == names[::-1]
    assert first.cursor.total_count == 3


def test_checkpoints_of_all_runs_are_listed_together(up: Running, new_model: NewModel) -> None:
    models = [new_model("collector") for _ in range(2)]
    for model in models:
        model.save_weights_for_sampler("mine").result()

    found = up.rest("collector").list_user_checkpoints().result()

    expected = {f"tinker://{model.model_id}/sampler_weights/mine" for model in models}
    assert {each.tinker_path for each in found.checkpoints} == expected


def test_weights_info_tells_what_a_checkpoint_was_made_of(
    up: Running, saved: tuple[tinker.TrainingClient, str]
) -> None:
    info = up.rest("rest").get_weights_info_by_tinker_path(saved[1]).result()

    assert (info.base_model, info.is_lora, info.lora_rank) == (BASE_MODEL, True, 4)


def test_a_deleted_checkpoint_is_gone_whichever_way_it_was_named(
    up: Running, new_model: NewModel
) -> None:
    model, rest = new_model("deleter"), up.rest("deleter")
    paths = [model.save_state(name).result().path for name in ("one", "two")]
    assert paths[1] is not None

    rest.delete_checkpoint(model.model_id, "weights/one").result()
    rest.delete_checkpoint_from_tinker_path(paths[1]).result()

    assert rest.list_checkpoints(model.model_id).result().checkpoints == []
    with pytest.raises(tinker.NotFoundError):
        rest.delete_checkpoint(model.model_id, "weights/one").result()


def test_a_session_lists_its_models_and_samplers(up: Running) -> None:
    service = up.service("lister-of-sessions")
    model = service.create_lora_training_client(BASE_MODEL, rank=4).result()
    service.create_sampling_client(base_model=BASE_MODEL).result()
    session_id = model.model_id.split(":")[0]
    rest = up.rest("lister-of-sessions")

    session = rest.get_session(session_id).result()
    sampler = rest.get_sampler(session.sampler_ids[0]).result()

    assert rest.list_sessions().result().sessions == [session_id]
    assert session.training_run_ids == [model.model_id]
    assert sampler.base_model == BASE_MODEL
    assert sampler.model_path is None


def test_metadata_comes_back_as_text(up: Running) -> None:
    model = (
        up.service("noter")
        .create_lora_training_client(BASE_MODEL, rank=4, user_metadata={"renderer_name": "plain"})
        .result()
    )
    train(model, [datum()], 1)

    run = up.rest("noter").get_training_run(model.model_id).result()

    assert run.user_metadata == {"renderer_name": "plain"}
