"""Sessions, audit log and billing through the SDK's RestClient and AdminClient."""

from __future__ import annotations

import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import tinker
from tinker import types

from contract.builders import datum, train
from contract.conftest import BASE_MODEL, Running

pytestmark = pytest.mark.contract

TENANT = "rest sessions"


@pytest.fixture(scope="module")
def service(up: Running) -> tinker.ServiceClient:
    return up.service(TENANT)


@pytest.fixture(scope="module")
def model(service: tinker.ServiceClient) -> tinker.TrainingClient:
    made = service.create_lora_training_client(BASE_MODEL, rank=4).result()
    train(made, [datum()], 1)
    made.save_state("state").result()
    return made


@pytest.fixture
def rest(up: Running) -> tinker.RestClient:
    return up.rest(TENANT)


@pytest.fixture
def admin(up: Running) -> tinker.AdminClient:
    return tinker.AdminClient(base_url=up.base_url, api_key=up.api_key(TENANT))


def session_of(model: tinker.TrainingClient) -> str:
    return model.model_id.partition(":")[0]


def search(rest: tinker.RestClient, **filters: Any) -> list[types.SessionSummary]:
    request = types.SessionSearchRequest(**filters)
    with pytest.warns(tinker.ExperimentalWarning):
        found = rest.search_sessions(request)  # pyright: ignore[reportDeprecated]
    return found.result().sessions


def test_a_session_is_listed_shown_and_found(
    rest: tinker.RestClient, model: tinker.TrainingClient
) -> None:
    session_id = session_of(model)
    assert session_id in rest.list_sessions(access_scope="accessible").result().sessions
    assert rest.get_session(session_id).result().training_run_ids == [model.model_id]

    [found] = search(rest, session_id=session_id)

    assert found.checkpoints_count == 1
    assert found.status is not None
    assert found.status.type == "active"


def test_a_session_moves_into_a_project_with_its_runs(
    rest: tinker.RestClient, model: tinker.TrainingClient
) -> None:
    rest.assign_session_project(session_of(model), "paper").result()

    runs = rest.list_training_runs(project_id="paper").result().training_runs
    assert [run.training_run_id for run in runs] == [model.model_id]
    found = search(rest, project_ids=["paper"])
    assert [each.session_id for each in found] == [session_of(model)]


def test_a_trace_is_read_by_its_url_alone(
    rest: tinker.RestClient, model: tinker.TrainingClient
) -> None:
    url = rest.export_session_trace(session_of(model)).result()

    with urllib.request.urlopen(url, timeout=30) as answer:
        assert b"forward_backward" in answer.read()


def test_whoami_needs_tokens(rest: tinker.RestClient) -> None:
    with pytest.raises(RuntimeError, match="JWT"):
        rest.whoami().result()


def test_the_audit_log_tells_who_did_what(
    admin: tinker.AdminClient, rest: tinker.RestClient, model: tinker.TrainingClient
) -> None:
    path = model.save_state("audited").result().path
    rest.publish_checkpoint_from_tinker_path(path).result()
    rest.delete_checkpoint_from_tinker_path(path).result()

    entries = admin.get_audit_log("checkpoints").result().entries

    events = [each.event for each in entries if each.tinker_path == path]
    assert events == ["checkpoint_create", "checkpoint_publish", "checkpoint_delete"]


def test_usage_is_what_was_used(admin: tinker.AdminClient, model: tinker.TrainingClient) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    window = (hour - timedelta(hours=1), hour + timedelta(hours=1))

    def trained() -> int:
        data = admin.get_billing_usage(*window).result().data
        infos = [each.event_info for each in data if each.session_id == session_of(model)]
        return sum(
            each.token_count for each in infos if isinstance(each, types.TrainingBillingEvent)
        )

    before = trained()
    train(model, [datum(num_tokens=12)], 1)

    assert trained() == before + 12


def test_storage_is_what_is_stored(
    admin: tinker.AdminClient, rest: tinker.RestClient, model: tinker.TrainingClient
) -> None:
    sizes = [each.size_bytes for each in rest.list_checkpoints(model.model_id).result().checkpoints]

    found = admin.get_current_checkpoint_storage_usage().result().data

    assert sum(each.size_bytes for each in found) == sum(size or 0 for size in sizes)


def test_what_moved_to_the_admin_client_is_still_read_the_old_way(
    admin: tinker.AdminClient, rest: tinker.RestClient, model: tinker.TrainingClient
) -> None:
    window = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
    assert model.model_id
    with pytest.warns(FutureWarning, match="Use AdminClient"):
        entries = rest.get_audit_log().result().entries  # pyright: ignore[reportDeprecated]
    with pytest.warns(FutureWarning, match="Use AdminClient"):
        usage = rest.get_billing_usage(*window).result()  # pyright: ignore[reportDeprecated]
    with pytest.warns(FutureWarning, match="Use AdminClient"):
        found = rest.get_current_checkpoint_storage_usage()  # pyright: ignore[reportDeprecated]

    assert entries == admin.get_audit_log().result().entries
    assert usage.data == []
    assert found.result().data == admin.get_current_checkpoint_storage_usage().result().data


def test_a_finished_session_says_so_and_takes_no_more(up: Running, rest: tinker.RestClient) -> None:
    service = up.service(TENANT)
    model = service.create_lora_training_client(BASE_MODEL, rank=4).result()
    service.close("errored", "out of ideas").result()

    [found] = search(rest, session_id=session_of(model))

    assert isinstance(found.status, types.ClientSessionFinished)
    assert (found.status.reason.type, found.status.detail) == ("errored", "out of ideas")
