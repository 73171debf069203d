from __future__ import annotations

from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from client.test_admin import AT, MOMENT, Recorder, call
from cyclora_client.admin import CycleRow, QueueLength, WaitingOperation
from cyclora_client.cli import app
from cyclora_core.errors import CycloraError

LENGTH = {
    "tenant_id": "tenant-1",
    "base_model": "base",
    "num_models": 1,
    "num_operations": 2,
    "num_samples": 3,
    "num_tokens": 40,
    "num_running": 1,
    "oldest_s": 2.5,
}
OPERATION = {
    "request_id": "m:1",
    "state": "queued",
    "kind": "forward",
    "tenant_id": "tenant-1",
    "owner_id": "m",
    "seq_id": 1,
    "base_model": "base",
    "num_tokens": 10,
    "submitted_at": AT,
}
CYCLE = {
    "cycle_id": 4,
    "base_model": "base",
    "worker_id": "worker-1",
    "tenants": ["tenant-1"],
    "num_models": 1,
    "num_operations": 2,
    "num_samples": 0,
    "num_tokens": None,
    "dispatched_at": AT,
    "started_at": None,
    "ended_at": None,
}


def test_what_waits_becomes_records() -> None:
    with call(Recorder({"queue": [LENGTH], "num_tokens": 40})) as client:
        assert client.queue.lengths() == [QueueLength("tenant-1", "base", 1, 2, 3, 40, 1, 2.5)]
    server = Recorder({"operations": [OPERATION], "total": 7})
    with call(server) as client:
        [found] = client.queue.list("tenant-1", limit=5)
    assert found == WaitingOperation(
        "m:1", "queued", "forward", "tenant-1", "m", 1, "base", 10, MOMENT
    )
    assert server.sent[1] == "/admin/v1/queue/operations?limit=5&offset=0&tenant_id=tenant-1"


def test_cancelling_names_one_thing_and_tells_how_many() -> None:
    server = Recorder({"num_cancelled": 3})
    with call(server) as client:
        assert client.queue.cancel(model_id="m") == 3

    assert server.sent == ("POST", "/admin/v1/queue/cancel", {"model_id": "m"})


def test_a_cycle_that_runs_has_no_end() -> None:
    server = Recorder({"cycles": [CYCLE]})
    with call(server) as client:
        [found] = client.cycles.list(worker_id="worker-1")

    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    expected = CycleRow(4, "base", "worker-1", ["tenant-1"], 1, 2, 0, None, moment, None, None)
    assert found == expected
    assert server.sent[1] == "/admin/v1/cycles?limit=50&worker_id=worker-1"


@pytest.mark.parametrize("named", [[], ["--tenant", "t", "--model", "m"]])
def test_the_command_cancels_one_thing_at_a_time(named: list[str]) -> None:
    command = ["admin", "queue", "cancel", "--admin-key", "tml-admin", *named]

    result = CliRunner().invoke(app, command)

    assert result.exit_code == 2
    assert "exactly one" in result.output
    assert not isinstance(result.exception, CycloraError)
