from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from client.test_admin import AT, MOMENT, Recorder, call
from cyclora_client.admin import http
from cyclora_client.admin.settings import ProcessSettings
from cyclora_client.admin.storage import CheckpointRow, DeletedRun, GarbageRow, RunRow
from cyclora_client.cli import app

RUN = {
    "model_id": "m",
    "tenant_id": "tenant-1",
    "project_id": "default",
    "base_model": "base",
    "lora_rank": 8,
    "is_ended": True,
    "worker_id": None,
    "created_at": AT,
    "last_request_at": AT,
    "num_waiting": 0,
    "num_checkpoints": 2,
    "num_bytes": 30,
}
CHECKPOINT = {
    "path": "tinker://m/weights/a",
    "tenant_id": "tenant-1",
    "model_id": "m",
    "kind": "weights",
    "name": "a",
    "base_model": "base",
    "num_bytes": 30,
    "created_at": AT,
    "expires_at": None,
    "is_expired": False,
    "is_public": False,
}
FOUND = {"checkpoints": [CHECKPOINT], "num": 7, "num_bytes": 210}
REPORT = {
    "is_dry_run": True,
    "digest": "d" * 64,
    "num": 1,
    "num_bytes": 5,
    "totals": {},
    "garbage": [{"kind": "snapshot", "name": "m/1-1", "tenant_id": None, "num_bytes": 5}],
}
SETTINGS = {
    "server": {"port": 8000},
    "processes": [{"kind": "worker", "name": "w", "started_at": AT, "settings": {"threads": None}}],
}


def test_runs_are_found_by_what_was_asked_for() -> None:
    server = Recorder({"runs": [RUN], "num": 1})
    with call(server) as client:
        before = datetime(2026, 1, 2, tzinfo=UTC)
        [found] = client.runs.find(tenant_id="tenant-1", base_model=None, created_before=before)

    assert isinstance(found, RunRow)
    assert (found.created_at, found.num_bytes) == (MOMENT, 30)
    query = dict(server.request.url.params)
    assert query == {"tenant_id": "tenant-1", "created_before": "2026-01-02T00:00:00+00:00"}


def test_deleting_a_run_tells_what_was_done() -> None:
    server = Recorder({"num_cancelled": 1, "num_checkpoints": 2, "is_forgotten": False})
    with call(server) as client:
        assert client.runs.delete("a:train:0") == DeletedRun(1, 2, False)

    assert server.sent[:2] == ("DELETE", "/admin/v1/runs/a%3Atrain%3A0")


def test_checkpoints_are_found_with_the_size_of_all_and_deleted_by_path() -> None:
    server = Recorder(FOUND)
    with call(server) as client:
        found = client.checkpoints.find(name="a")
        client.checkpoints.delete("tinker://m/weights/a")

    assert (found.num, found.num_bytes) == (7, 210)
    row: Any = {**CHECKPOINT, "created_at": MOMENT}
    assert found.checkpoints == [CheckpointRow(**row)]
    assert server.request.method == "DELETE"
    assert server.request.url.params["path"] == "tinker://m/weights/a"


def test_garbage_is_only_looked_for_unless_asked_to_free_it() -> None:
    server = Recorder(REPORT)
    with call(server) as client:
        report = client.garbage.collect()
        assert server.sent == ("POST", "/admin/v1/garbage", {"dry_run": True})
        client.garbage.collect(dry_run=False, grace_s=600, digest=report.digest)

    assert report.garbage == [GarbageRow("snapshot", "m/1-1", None, 5)]
    assert server.sent[2] == {"dry_run": False, "grace_s": 600, "digest": "d" * 64}


def test_settings_are_told_by_process() -> None:
    with call(Recorder(SETTINGS)) as client:
        found = client.settings.get()

    assert found.server == {"port": 8000}
    assert found.processes == [ProcessSettings("worker", "w", MOMENT, {"threads": None})]


def run(monkeypatch: pytest.MonkeyPatch, answer: Any, *command: str) -> tuple[Recorder, str]:
    """A command against a server with one answer; the request, and what was printed."""
    server = Recorder(answer)
    original: Any = http.httpx.Client

    def mocked(**options: Any) -> httpx.Client:
        return original(**{**options, "transport": httpx.MockTransport(server)})

    with monkeypatch.context() as patched:
        patched.setattr(http.httpx, "Client", mocked)
        result = CliRunner().invoke(app, ["admin", *command, "--admin-key", "tml-admin"])
    assert result.exit_code == 0, result.output
    return server, result.output


def test_the_commands_print_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    server, output = run(monkeypatch, FOUND, "checkpoints", "find", "--public", "--min-bytes", "5")
    assert output.splitlines()[-1] == "7 checkpoints, 210 bytes"
    query = server.request.url.params
    assert (query["is_public"], query["min_bytes"], query["limit"]) == ("true", "5", "100")

    _, output = run(monkeypatch, {"runs": [RUN], "num": 1}, "runs", "find", "--json")
    assert json.loads(output)[0]["model_id"] == "m"


def test_the_garbage_command_frees_nothing_unless_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    server, output = run(monkeypatch, REPORT, "garbage")
    assert server.sent[2] == {"dry_run": True, "grace_s": 86400}
    assert "1 things, 5 bytes could be freed" in output

    freed = {**REPORT, "is_dry_run": False}
    server, output = run(monkeypatch, freed, "garbage", "--free", "--grace-hours", "1")
    assert server.sent[2] == {"dry_run": False, "grace_s": 3600}
    assert "were freed" in output


def test_the_settings_command_has_a_line_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    _, output = run(monkeypatch, SETTINGS, "settings", "--json")

    assert json.loads(output) == [
        {"process": "server", "name": "http://127.0.0.1:8000", "setting": "port", "value": "8000"},
        {"process": "worker", "name": "w", "setting": "threads", "value": "null"},
    ]
