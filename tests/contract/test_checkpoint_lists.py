"""Listing, describing and deleting checkpoints and training runs through the official SDK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tinker
from tinker.lib.public_interfaces.api_future import APIFuture

from contract.builders import datum, train
from contract.conftest import BASE_MODEL, Running
from contract.storage import files_of

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]


def test_every_size_is_that_of_the_files_and_they_add_up(up: Running, new_model: NewModel) -> None:
    paths: list[str] = []
    for rank in (1, 8):
        model = new_model("sizes", rank=rank)
        paths.append(model.save_state("state").result().path)
        paths.append(model.save_weights_for_sampler("sampler").result().path)
    train(model, [datum()], 1)
    model.save_state("state", overwrite=True).result()
    paths.append(up.rest("sizes").copy_weights(paths[0], "proj").result())

    listed = up.rest("sizes").list_user_checkpoints().result().checkpoints

    sizes = {each.tinker_path: each.size_bytes for each in listed}
    expected = {path: sum(map(len, files_of(up, path).values())) for path in paths}
    assert sizes == expected


def test_pages_of_checkpoints_are_newest_first_and_say_how_many_there_are(
    up: Running, new_model: NewModel
) -> None:
    model = new_model("pages")
    for index in range(5):
        model.save_state(f"step-{index}").result()
    rest = up.rest("pages")

    pages = [rest.list_user_checkpoints(limit=2, offset=at).result() for at in (0, 2, 4, 6)]

    names = [[each.checkpoint_id for each in page.checkpoints] for page in pages]
    assert names == [
        ["weights/step-4", "weights/step-3"],
        ["weights/step-2", "weights/step-1"],
        ["weights/step-0"],
        [],
    ]
    for page, offset in zip(pages, (0, 2, 4, 6), strict=True):
        assert page.cursor is not None
        assert page.cursor.model_dump() == {"offset": offset, "limit": 2, "total_count": 5}


def test_pages_of_training_runs_are_newest_first_and_say_how_many_there_are(
    up: Running, new_model: NewModel
) -> None:
    created = [new_model("runs").model_id for _ in range(3)]
    rest = up.rest("runs")

    pages = [rest.list_training_runs(limit=2, offset=at).result() for at in (0, 2)]

    listed = [run.training_run_id for page in pages for run in page.training_runs]
    assert listed == created[::-1]
    assert [page.cursor.total_count for page in pages] == [3, 3]


@pytest.mark.parametrize(
    "page", [{"limit": 0}, {"limit": 1001}, {"offset": -1}], ids=lambda page: str(page)
)
def test_a_page_that_cannot_be_is_refused_at_once(up: Running, page: dict[str, Any]) -> None:
    for ask in (up.rest().list_training_runs, up.rest().list_user_checkpoints):
        with pytest.raises(tinker.UnprocessableEntityError, match=next(iter(page))):
            ask(**page).result(timeout=30)


def test_a_run_shows_its_metadata_and_its_last_checkpoints(up: Running) -> None:
    service = up.service("notes")
    model = service.create_lora_training_client(
        BASE_MODEL, rank=4, user_metadata={"renderer_name": "plain"}
    ).result()
    model.save_state("first").result()
    path = model.save_state("second", user_metadata={"step": "7"}).result().path
    sampler = model.save_weights_for_sampler("only").result().path

    run = up.rest("notes").get_training_run_by_tinker_path(path).result()

    assert run == up.rest("notes").get_training_run(model.model_id).result()
    assert run.user_metadata == {"renderer_name": "plain"}
    assert (run.base_model, run.is_lora, run.lora_rank) == (BASE_MODEL, True, 4)
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.tinker_path == path
    assert run.last_checkpoint.user_metadata == {"step": "7"}
    assert run.last_sampler_checkpoint is not None
    assert run.last_sampler_checkpoint.tinker_path == sampler


def test_a_run_made_from_a_state_has_metadata_of_its_own(up: Running, new_model: NewModel) -> None:
    path = new_model("notes").save_state("seed").result().path

    resumed = (
        up.service("notes")
        .create_training_client_from_state(path, user_metadata={"resumed": "yes"})
        .result()
    )

    run = up.rest("notes").get_training_run(resumed.model_id).result()
    assert run.user_metadata == {"resumed": "yes"}


def test_runs_are_listed_by_the_project_of_their_session(up: Running) -> None:
    def new_run(project_id: str | None) -> str:
        service = tinker.ServiceClient(
            base_url=up.base_url, api_key=up.api_key("projects"), project_id=project_id
        )
        return service.create_lora_training_client(BASE_MODEL, rank=1).result().model_id

    red, _, other = new_run("red"), new_run("blue"), new_run("red")
    new_run(None)
    rest = up.rest("projects")

    listed = rest.list_training_runs(project_id="red").result()

    assert [run.training_run_id for run in listed.training_runs] == [other, red]
    assert listed.cursor.total_count == 2
    assert rest.list_training_runs(project_id="none").result().training_runs == []


@pytest.mark.parametrize("flags", [{}, {"train_mlp": False}, {"train_unembed": False}])
def test_weights_info_tells_what_a_checkpoint_of_either_kind_was_made_of(
    up: Running, flags: dict[str, Any]
) -> None:
    model = up.service().create_lora_training_client(BASE_MODEL, rank=2, **flags).result()
    paths = [
        model.save_state("told").result().path,
        model.save_weights_for_sampler("told").result().path,
    ]

    for path in paths:
        info = up.rest().get_weights_info_by_tinker_path(path).result()

        assert (info.base_model, info.is_lora, info.lora_rank) == (BASE_MODEL, True, 2)
        trained = (info.train_attn, info.train_mlp, info.train_unembed)
        assert trained == (True, flags.get("train_mlp", True), flags.get("train_unembed", True))


def test_a_deleted_checkpoint_is_gone_with_its_files_and_its_name_is_free(
    up: Running, new_model: NewModel
) -> None:
    model = new_model()
    path = model.save_state("passing").result().path
    kept = model.save_state("kept").result().path
    rest = up.rest()
    folder = up.folder / "storage" / "checkpoints" / model.model_id / "weights"

    rest.delete_checkpoint_from_tinker_path(path).result()

    assert [each.name for each in folder.iterdir()] == ["kept"]
    uses: list[Callable[[], APIFuture[Any]]] = [
        lambda: rest.delete_checkpoint(model.model_id, "weights/passing"),
        lambda: rest.get_weights_info_by_tinker_path(path),
        lambda: rest.copy_weights(path, "proj"),
        lambda: rest.publish_checkpoint_from_tinker_path(path),
        lambda: up.service().create_sampling_client(model_path=path),
        lambda: up.service().create_training_client_from_state(path),
    ]
    for use in uses:
        with pytest.raises(tinker.NotFoundError, match="does not exist or has expired"):
            use().result()
    listed = rest.list_checkpoints(model.model_id).result().checkpoints
    assert [each.tinker_path for each in listed] == [kept]
    assert model.save_state("passing").result().path == path


def test_a_sampling_client_of_a_deleted_checkpoint_is_told_so(
    up: Running, new_model: NewModel
) -> None:
    path = new_model().save_weights_for_sampler("short").result().path
    sampler = up.service().create_sampling_client(model_path=path).result()
    prompt = tinker.ModelInput.from_ints([5, 6, 7])
    sampler.compute_logprobs(prompt).result()

    up.rest().delete_checkpoint_from_tinker_path(path).result()

    with pytest.raises(tinker.RequestFailedError, match="was deleted or has expired"):
        sampler.compute_logprobs(prompt).result()
