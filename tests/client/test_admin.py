from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from cyclora_client.admin import AdminClient, ApiKey, AuditEntry, NewKey, Project, Tenant, Worker
from cyclora_core.accounts import Scope
from cyclora_core.errors import (
    CycloraError,
    Forbidden,
    NotFound,
    ServerError,
    Unauthorized,
    Unavailable,
    UserError,
)
from cyclora_core.types import BaseModelInfo

AT = "2026-01-02T03:04:05+00:00"
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TENANT = {"tenant_id": "tenant-1", "name": "first", "created_at": AT}
KEY = {
    "key_id": "key-1",
    "tenant_id": "tenant-1",
    "name": "laptop",
    "scopes": ["read", "sample", "train"],
    "created_at": AT,
    "revoked_at": None,
}
WORKER = {
    "worker_id": "worker-0",
    "base_model": "cyclora/tiny-chat",
    "registered_at": AT,
    "is_alive": True,
    "cycle_id": None,
    "info": {"device": "cpu"},
}
SCOPES = [Scope.READ, Scope.SAMPLE, Scope.TRAIN]
BASE_MODEL = BaseModelInfo("cyclora/tiny-chat", 100, 2048, [1], "qwen3", 1000, 64, "/tokenizer")


class Recorder:
    """A server with one answer, which keeps the last request."""

    def __init__(self, answer: Any, status: int = 200) -> None:
        self._answer = answer
        self._status = status
        self.request = httpx.Request("GET", "http://none")

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.request = request
        if self._answer is None:
            return httpx.Response(204)
        return httpx.Response(self._status, json=self._answer)

    @property
    def sent(self) -> tuple[str, str, Any]:
        content = self.request.content
        path = self.request.url.raw_path.decode()
        return self.request.method, path, json.loads(content) if content else None


def call(server: Callable[[httpx.Request], httpx.Response]) -> AdminClient:
    return AdminClient("http://server/", "tml-admin", httpx.MockTransport(server))


def test_create_tenant_sends_its_name_and_the_admin_key() -> None:
    server = Recorder(TENANT)
    with call(server) as client:
        tenant = client.tenants.create("first")

    assert server.sent == ("POST", "/admin/v1/tenants", {"name": "first"})
    assert server.request.headers["x-api-key"] == "tml-admin"
    assert tenant == Tenant("tenant-1", "first", MOMENT)


def test_a_change_of_a_tenant_sends_what_changes() -> None:
    server = Recorder(TENANT)
    with call(server) as client:
        client.tenants.update("tenant-1", name="second")

    assert server.sent == ("PATCH", "/admin/v1/tenants/tenant-1", {"name": "second"})


def test_a_tenant_is_disabled_with_a_reason_and_enabled_again() -> None:
    server = Recorder(TENANT)
    with call(server) as client:
        client.tenants.update("tenant-1", is_enabled=False, disabled_reason="invoice")
        disabled = server.sent
        client.tenants.update("tenant-1", is_enabled=True, disabled_reason="")

    assert disabled[2] == {"is_enabled": False, "disabled_reason": "invoice"}
    assert server.sent[2] == {"is_enabled": True, "disabled_reason": ""}


@pytest.mark.parametrize(("force", "query"), [(False, ""), (True, "?force=true")])
def test_a_tenant_with_live_sessions_is_deleted_only_by_force(force: bool, query: str) -> None:
    server = Recorder(None)
    with call(server) as client:
        client.tenants.delete("tenant-1", force=force)

    assert server.sent == ("DELETE", f"/admin/v1/tenants/tenant-1{query}", None)


def test_projects_are_those_of_one_tenant() -> None:
    project = Project("alpha", 1, 2, 3, 400)
    server = Recorder({"projects": [dataclasses.asdict(project)]})
    with call(server) as client:
        assert client.tenants.projects("tenant-1") == [project]

    assert server.sent[1] == "/admin/v1/tenants/tenant-1/projects"


def test_the_audit_log_is_asked_for_what_fits() -> None:
    entry = {"at": AT, "tenant_id": None, "event": "worker_drain", "details": {"worker_id": "w"}}
    server = Recorder({"entries": [entry]})
    with call(server) as client:
        found = client.audit.list("tenant-1", event="worker", from_=MOMENT, limit=5)

    assert found == [AuditEntry(MOMENT, None, "worker_drain", None, {"worker_id": "w"})]
    assert dict(server.request.url.params) == {
        "tenant_id": "tenant-1",
        "event": "worker",
        "from": MOMENT.astimezone().isoformat(),
        "limit": "5",
    }


def test_a_key_is_made_for_a_project_and_a_time() -> None:
    server = Recorder({**KEY, "api_key": "tml-new", "project_id": "alpha", "expires_at": AT})
    with call(server) as client:
        made = client.keys.create("tenant-1", "ci", [Scope.TRAIN], project_id="alpha", lifetime_s=9)
        assert server.sent[2]["lifetime_s"] == 9
        client.keys.create("tenant-1", "ci", [Scope.TRAIN], project_id="alpha", expires_at=MOMENT)

    assert (made.project_id, made.expires_at) == ("alpha", MOMENT)
    assert server.sent[2] == {
        "tenant_id": "tenant-1",
        "name": "ci",
        "scopes": ["train"],
        "project_id": "alpha",
        "expires_at": AT,
    }


def test_acts_on_workers_and_models_are_posts() -> None:
    sent: list[tuple[str, str, Any]] = []
    server = Recorder({})
    with call(server) as client:
        for act in (
            lambda: client.workers.drain("w/1"),
            lambda: client.workers.resume("w"),
            lambda: client.models.load("m:1"),
            lambda: client.models.unload("m"),
            lambda: client.models.move("m", "w"),
        ):
            act()
            sent.append(server.sent)

    assert sent == [
        ("POST", "/admin/v1/workers/w%2F1/drain", None),
        ("POST", "/admin/v1/workers/w/resume", None),
        ("POST", "/admin/v1/models/m%3A1/load", None),
        ("POST", "/admin/v1/models/m/unload", None),
        ("POST", "/admin/v1/models/m/move", {"worker_id": "w"}),
    ]


def test_create_key_gives_the_key_that_is_shown_once() -> None:
    server = Recorder({**KEY, "api_key": "tml-new", "unknown": "ignored"})
    with call(server) as client:
        key = client.keys.create("tenant-1", "laptop")

    body = {"tenant_id": "tenant-1", "name": "laptop", "scopes": ["read", "sample", "train"]}
    assert server.sent == ("POST", "/admin/v1/keys", body)
    assert key == NewKey("tml-new", "key-1", "tenant-1", "laptop", SCOPES)


def test_revoke_key_needs_no_answer() -> None:
    server = Recorder(None)
    with call(server) as client:
        client.keys.revoke("key-1")

    assert server.sent == ("DELETE", "/admin/v1/keys/key-1", None)


def test_an_identifier_cannot_change_the_route() -> None:
    server = Recorder({})
    with call(server) as client:
        client.keys.revoke("../x?y")

    assert server.sent == ("DELETE", "/admin/v1/keys/..%2Fx%3Fy", None)


def test_lists_become_records() -> None:
    with call(Recorder({"tenants": [TENANT]})) as client:
        assert client.tenants.list() == [Tenant("tenant-1", "first", MOMENT)]
    with call(Recorder({"keys": [KEY]})) as client:
        assert client.keys.list() == [ApiKey("key-1", "tenant-1", "laptop", SCOPES, MOMENT)]
    with call(Recorder({"workers": [WORKER]})) as client:
        worker = Worker("worker-0", "cyclora/tiny-chat", MOMENT, True, None, {"device": "cpu"})
        assert client.workers.list() == [worker]
    with call(Recorder({"base_models": [BASE_MODEL.to_json()]})) as client:
        assert [model.name for model in client.base_models.list()] == ["cyclora/tiny-chat"]


def test_keys_of_one_tenant_are_asked_for_by_its_id() -> None:
    server = Recorder({"keys": []})
    with call(server) as client:
        client.keys.list("tenant-1")

    assert server.sent == ("GET", "/admin/v1/keys?tenant_id=tenant-1", None)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, UserError),
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (422, UserError),
        (429, Unavailable),
        (500, ServerError),
        (503, Unavailable),
    ],
)
def test_an_error_keeps_its_kind_and_the_servers_words(
    status: int, kind: type[CycloraError]
) -> None:
    with (
        call(Recorder({"detail": "what was wrong"}, status)) as client,
        pytest.raises(kind, match=rf"what was wrong \(status {status}\)") as caught,
    ):
        client.tenants.list()

    assert type(caught.value) is kind


def test_no_answer_is_unavailable() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    with call(refuse) as client, pytest.raises(Unavailable, match="no answer from http://server"):
        client.tenants.list()


@pytest.mark.parametrize(
    "answer", [{"tenants": 5}, {"other": []}, "text", [TENANT], {"tenants": [{"name": "x"}]}]
)
def test_an_answer_of_another_shape_is_not_guessed_at(answer: Any) -> None:
    with call(Recorder(answer)) as client, pytest.raises(ServerError, match="the server sent"):
        client.tenants.list()


def test_an_answer_that_is_no_json_is_a_server_error() -> None:
    def page(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="<html>")

    with call(page) as client, pytest.raises(ServerError, match="no JSON"):
        client.tenants.list()
