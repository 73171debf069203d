from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from client.test_admin import Recorder, call
from cyclora_client.admin import http
from cyclora_client.admin.usage import UsageRow, own_usage
from cyclora_client.cli import app
from cyclora_core.usage import GroupBy

ANSWER = {
    "starting_on": "2026-01-01T00:00:00+00:00",
    "ending_before": "2026-01-02T00:00:00+00:00",
    "usage": [
        {"group": {"tenant": "tenant-1", "day": "2026-01-01"}, "amounts": {"trained_tokens": 7}},
        {"group": {"tenant": "tenant-2", "day": "2026-01-01"}, "amounts": {"trained_tokens": 8}},
    ],
}


def test_sums_are_asked_for_by_group_and_time() -> None:
    server = Recorder(ANSWER)
    with call(server) as client:
        rows = client.usage.sums(
            [GroupBy.TENANT, GroupBy.DAY],
            tenants=["tenant-1", "tenant-2"],
            starting_on=datetime(2026, 1, 1, tzinfo=UTC),
        )

    query = server.request.url.params
    assert server.request.url.path == "/admin/v1/usage"
    assert query.get_list("group_by") == ["tenant", "day"]
    assert query.get_list("tenant") == ["tenant-1", "tenant-2"]
    assert query["starting_on"] == "2026-01-01T00:00:00+00:00"
    assert rows[0] == UsageRow(
        {GroupBy.TENANT: "tenant-1", GroupBy.DAY: "2026-01-01"}, {"trained_tokens": 7}
    )


def test_a_tenant_asks_the_route_of_its_own() -> None:
    server = Recorder(ANSWER)
    usage, client = own_usage("http://server", "tml-key", httpx.MockTransport(server))

    assert len(usage.sums()) == 2
    client.close()

    assert server.request.url.path == "/api/v1/usage"
    assert server.request.headers["x-api-key"] == "tml-key"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Answers every client that a command makes."""
    server = Recorder(ANSWER)
    original: Any = http.httpx.Client

    def mocked(**options: Any) -> httpx.Client:
        return original(**{**options, "transport": httpx.MockTransport(server)})

    monkeypatch.setattr(http.httpx, "Client", mocked)
    return server


def test_the_commands_print_tables_json_and_csv(server: Recorder) -> None:
    command = ["admin", "usage", "--admin-key", "tml-admin", "--by", "tenant,day"]

    table = CliRunner().invoke(app, command)
    as_json = CliRunner().invoke(app, [*command, "--json"])
    as_csv = CliRunner().invoke(app, [*command, "--csv"])

    assert table.output.split()[:6] == [
        "tenant",
        "day",
        "trained_tokens",
        "tenant-1",
        "2026-01-01",
        "7",
    ]
    assert json.loads(as_json.output)[1] == {
        "tenant": "tenant-2",
        "day": "2026-01-01",
        "trained_tokens": 8,
    }
    assert as_csv.output.splitlines() == [
        "tenant,day,trained_tokens",
        "tenant-1,2026-01-01,7",
        "tenant-2,2026-01-01,8",
    ]


def test_a_tenant_asks_for_its_own_with_its_own_key(server: Recorder) -> None:
    command = ["usage", "--api-key", "tml-key", "--run", "r", "--from", "2026-01-01"]

    result = CliRunner().invoke(app, command)

    assert result.exit_code == 0
    assert server.request.url.path == "/api/v1/usage"
    query = server.request.url.params
    assert (query["run"], query["starting_on"]) == ("r", "2026-01-01T00:00:00+00:00")


def test_an_unknown_group_is_refused_before_anything_is_asked(server: Recorder) -> None:
    result = CliRunner().invoke(app, ["usage", "--api-key", "tml-key", "--by", "color"])

    assert result.exit_code == 2
    assert "color" in result.output
    assert server.request.url.host == "none"
