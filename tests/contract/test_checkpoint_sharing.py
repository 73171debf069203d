"""Publishing, taking back and copying checkpoints through the official SDK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import tinker
from tinker import types
from tinker.lib.public_interfaces.api_future import APIFuture

from contract.builders import datum, logprobs, train
from contract.conftest import Running
from contract.storage import files_of

pytestmark = pytest.mark.contract

NewModel = Callable[..., tinker.TrainingClient]
PROMPT = types.ModelInput.from_ints([5, 6, 7, 8])


def trained(new_model: NewModel, tenant: str = "owner") -> tinker.TrainingClient:
    model = new_model(tenant)
    train(model, [datum()], 2)
    return model


def reads_of(up: Running, path: str, tenant: str) -> list[Callable[[], APIFuture[Any]]]:
    """Everything that another tenant may do with a published state."""
    service, rest = up.service(tenant), up.rest(tenant)
    run = path.split("/")[2]
    return [
        lambda: rest.get_weights_info_by_tinker_path(path),
        lambda: rest.list_checkpoints(run),
        lambda: rest.get_training_run(run, access_scope="accessible"),
        lambda: rest.copy_weights(path, "proj"),
        lambda: service.create_sampling_client(model_path=path),
        lambda: service.create_training_client_from_state(path),
        lambda: service.create_training_client_from_state_with_optimizer(path),
    ]


def test_others_use_a_checkpoint_from_when_it_is_published_until_it_is_taken_back(
    up: Running, new_model: NewModel
) -> None:
    model = trained(new_model)
    path = model.save_state("shared").result().path
    owner = up.rest("owner")

    for use in reads_of(up, path, "reader"):
        with pytest.raises(tinker.NotFoundError):
            use().result()
    for _ in range(2):
        owner.publish_checkpoint_from_tinker_path(path).result(timeout=10)
    for use in reads_of(up, path, "reader"):
        assert use().result()
    for _ in range(2):
        owner.unpublish_checkpoint_from_tinker_path(path).result(timeout=10)
    for use in reads_of(up, path, "reader"):
        with pytest.raises(tinker.NotFoundError):
            use().result()
    assert owner.get_weights_info_by_tinker_path(path).result().is_lora


def test_what_others_made_of_a_checkpoint_stays_theirs_and_what_reads_it_ends(
    up: Running, new_model: NewModel
) -> None:
    model = trained(new_model)
    path = model.save_state("lent").result().path
    expected = logprobs(model.forward([datum()], "cross_entropy").result())
    up.rest("owner").publish_checkpoint_from_tinker_path(path).result()
    reader = up.service("reader")
    loaded = reader.create_training_client_from_state_with_optimizer(path).result()
    copied = up.rest("reader").copy_weights(path, "proj").result()
    sampler = reader.create_sampling_client(model_path=path).result()
    before = sampler.compute_logprobs(PROMPT).result()

    up.rest("owner").unpublish_checkpoint_from_tinker_path(path).result()

    with pytest.raises(tinker.RequestFailedError, match="does not exist or has expired"):
        sampler.compute_logprobs(PROMPT).result()
    assert logprobs(loaded.forward([datum()], "cross_entropy").result()) == expected
    own = reader.create_sampling_client(model_path=copied).result()
    assert own.compute_logprobs(PROMPT).result() == before


def test_others_change_nothing_of_a_published_checkpoint(up: Running, new_model: NewModel) -> None:
    path = new_model("owner").save_state("fixed").result().path
    up.rest("owner").publish_checkpoint_from_tinker_path(path).result()
    reader = up.rest("reader")
    changes: list[Callable[[], APIFuture[None]]] = [
        lambda: reader.delete_checkpoint_from_tinker_path(path),
        lambda: reader.unpublish_checkpoint_from_tinker_path(path),
        lambda: reader.publish_checkpoint_from_tinker_path(path),
        lambda: reader.set_checkpoint_ttl_from_tinker_path(path, 3600),
    ]

    for change in changes:
        with pytest.raises(tinker.NotFoundError):
            change().result()

    assert up.rest("reader").get_weights_info_by_tinker_path(path).result().is_lora


def test_published_runs_are_listed_for_others_who_ask_for_them(
    up: Running, new_model: NewModel
) -> None:
    model = new_model("owner")
    model.save_state("private").result()
    path = model.save_state("public").result().path
    mine = new_model("browser").model_id
    up.rest("owner").publish_checkpoint_from_tinker_path(path).result()
    rest = up.rest("browser")

    owned = rest.list_training_runs().result()
    everything = rest.list_training_runs(access_scope="accessible", limit=100).result()
    checkpoints = rest.list_checkpoints(model.model_id).result().checkpoints

    assert [run.training_run_id for run in owned.training_runs] == [mine]
    listed = [run.training_run_id for run in everything.training_runs]
    assert {mine, model.model_id} <= set(listed)
    assert everything.cursor.total_count == len(listed)
    assert [each.checkpoint_id for each in checkpoints] == ["weights/public"]
    assert rest.list_user_checkpoints().result().checkpoints == []
    up.rest("owner").unpublish_checkpoint_from_tinker_path(path).result()
    after = rest.list_training_runs(access_scope="accessible", limit=100).result()
    assert model.model_id not in {run.training_run_id for run in after.training_runs}


@pytest.mark.parametrize("kind", ["weights", "sampler_weights"])
def test_a_copy_has_its_sources_files_and_outlives_it(
    up: Running, new_model: NewModel, kind: str
) -> None:
    model = trained(new_model)
    save = model.save_state if kind == "weights" else model.save_weights_for_sampler
    path = save("original", user_metadata={"step": "7"}, ttl_seconds=3600).result().path
    files = files_of(up, path)
    rest = up.rest("owner")

    copied = rest.copy_weights(path, "archive", ttl_seconds=7200).result()
    rest.delete_checkpoint_from_tinker_path(path).result()

    run = copied.split("/")[2]
    assert copied == f"tinker://{run}/{kind}/original"
    assert run != model.model_id
    assert files_of(up, copied) == files
    [listed] = rest.list_checkpoints(run).result().checkpoints
    assert listed.user_metadata == {"step": "7"}
    assert listed.size_bytes == sum(map(len, files.values()))
    assert listed.expires_at is not None
    assert (listed.expires_at - listed.time).total_seconds() == 7200
    in_project = rest.list_training_runs(project_id="archive").result().training_runs
    assert run in {each.training_run_id for each in in_project}


def test_a_copy_goes_on_training_with_the_numbers_of_its_source(
    up: Running, new_model: NewModel
) -> None:
    model = trained(new_model)
    path = model.save_state("both").result().path
    service = tinker.ServiceClient(
        base_url=up.base_url, api_key=up.api_key("owner"), project_id="archive"
    )

    copied = service.copy_weights(path).result()
    resumed = service.create_training_client_from_state_with_optimizer(copied).result()

    assert train(resumed, [datum()], 3) == train(model, [datum()], 3)


def test_every_copy_is_another_one_but_a_retry_is_not(up: Running, new_model: NewModel) -> None:
    path = new_model("owner").save_state("source").result().path
    rest = up.rest("owner")
    by_sdk = [rest.copy_weights(path, "proj").result() for _ in range(2)]
    headers = {"X-API-Key": up.api_key("owner"), "X-Idempotency-Key": "again"}
    body = {"source_path": path, "destination_project_id": "proj"}

    retried = [
        httpx.post(f"{up.base_url}/api/v1/copy_weights", json=body, headers=headers).json()
        for _ in range(2)
    ]

    assert len(set(by_sdk)) == 2
    assert retried[0] == retried[1]
    assert retried[0]["tinker_path"] not in by_sdk


def test_a_copys_run_cannot_be_trained_on(up: Running, new_model: NewModel) -> None:
    path = new_model("owner").save_state("source").result().path
    run = up.rest("owner").copy_weights(path, "proj").result().split("/")[2]

    answer = httpx.post(
        f"{up.base_url}/api/v1/optim_step",
        json={"model_id": run, "seq_id": 1, "adam_params": {}},
        headers={"X-API-Key": up.api_key("owner")},
    )

    assert answer.status_code == 410
    assert "create a new one, from a checkpoint" in answer.json()["detail"]


def test_a_weights_access_token_is_refused_by_name(up: Running, new_model: NewModel) -> None:
    path = new_model("owner").save_state("source").result().path
    service, token = up.service("reader"), "tml-not-mine"
    uses: list[Callable[[], APIFuture[Any]]] = [
        lambda: up.rest("reader").copy_weights(path, "proj", weights_access_token=token),
        lambda: service.create_training_client_from_state(path, weights_access_token=token),
    ]

    for use in uses:
        with pytest.raises(tinker.BadRequestError, match="weights_access_token") as caught:
            use().result()
        assert token not in str(caught.value)
