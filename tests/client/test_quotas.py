"""Quotas on the command line and in ``AdminClient``."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from cyclora_client.admin import AdminClient
from cyclora_client.admin.quotas import rows_of
from cyclora_client.cli import app

ANSWER: dict[str, Any] = {
    "tenant_id": "t",
    "quotas": {"max_rank": 32, "tokens_per_minute": 600, "tokens_per_day": 1000},
    "use": {"adapters": 2, "tokens_today": 40, "startable_tokens": -100},
    "rate_pause_s": 10.0,
    "day_renews_at": "2026-11-23T00:00:00+00:00",
    "month_renews_at": "2026-12-01T00:00:00+00:00",
}


class Server:
    """Answers everything with the same quotas, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.asked.append((request.method, request.url.path, body))
        return httpx.Response(200, json=ANSWER)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    real = httpx.Client

    def client(**options: Any) -> httpx.Client:
        merged: dict[str, Any] = {**options, "transport": httpx.MockTransport(found)}
        return real(**merged)

    monkeypatch.setattr(httpx, "Client", client)
    return found


def run(*arguments: str) -> Any:
    keys = {"CYCLORA_ADMIN_KEY": "tml-admin", "TINKER_API_KEY": "tml-key"}
    return CliRunner().invoke(app, list(arguments), env=keys)


def test_the_table_has_each_quota_beside_its_use(server: Server) -> None:
    with AdminClient("http://server", "tml-admin") as admin:
        rows = {row.quota: row for row in rows_of(admin.quotas.get("t/1"))}

    assert server.asked == [("GET", "/admin/v1/tenants/t/1/quotas", None)]
    assert (rows["max_rank"].limit, rows["max_adapters"].limit) == (32, None)
    assert (rows["max_adapters"].used, rows["tokens_per_minute"].used) == (2, 700)
    assert rows["tokens_per_day"].renews_at is not None


def test_only_what_is_given_is_changed(server: Server) -> None:
    result = run("admin", "quotas", "set", "t", "--max-rank", "32", "--tokens-per-day", "none")

    assert result.exit_code == 0, result.output
    assert "tokens_per_minute" in result.output
    changes = {"max_rank": 32, "tokens_per_day": None}
    assert server.asked == [("PUT", "/admin/v1/tenants/t/quotas", changes)]


@pytest.mark.parametrize("arguments", [[], ["--max-rank", "many"], ["--max-rank", "-1"]])
def test_what_is_no_quota_is_refused_before_it_is_sent(
    server: Server, arguments: list[str]
) -> None:
    result = run("admin", "quotas", "set", "t", *arguments)

    assert result.exit_code == 1
    assert "error:" in result.output
    assert server.asked == []


def test_a_tenant_sees_its_own(server: Server) -> None:
    result = run("quotas", "--json")

    assert result.exit_code == 0, result.output
    assert server.asked == [("GET", "/api/v1/quotas", None)]
    assert {"quota": "max_rank", "limit": 32, "used": None, "renews_at": None} in json.loads(
        result.output
    )
