"""The port for Prometheus and probes, over real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest
from structlog.testing import capture_logs

from cyclora_core.clock import ManualClock
from cyclora_core.health import MAX_SILENCE_S, Health
from cyclora_core.metrics import Instruments
from cyclora_core.metrics_endpoint import MetricsEndpoint, metrics_served


@pytest.fixture
def instruments() -> Instruments:
    return Instruments("test")


@pytest.fixture
def health(clock: ManualClock, instruments: Instruments) -> Health:
    return Health(clock, instruments)


@pytest.fixture
def client(instruments: Instruments, health: Health) -> Iterator[httpx.Client]:
    endpoint = MetricsEndpoint("127.0.0.1", 0, instruments.registry, health)
    with httpx.Client(base_url=f"http://127.0.0.1:{endpoint.port}") as client:
        yield client
    endpoint.close()


def test_metrics_are_what_prometheus_reads(client: httpx.Client, instruments: Instruments) -> None:
    instruments.counter("things", "Things.").inc()

    answer = client.get("/metrics")

    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert "# HELP cyclora_things_total Things.\n" in answer.text
    assert "cyclora_things_total 1.0\n" in answer.text
    assert "process_resident_memory_bytes" in answer.text


def test_a_loop_that_hangs_is_told_while_it_hangs(
    client: httpx.Client, health: Health, clock: ManualClock
) -> None:
    health.is_serving = True
    health.beat()
    assert client.get("/healthz/live").json() == {"status": "ok"}

    clock.advance(MAX_SILENCE_S + 1)
    answer = client.get("/healthz/live")

    assert (answer.status_code, answer.json()) == (
        503,
        {"status": "unavailable", "failing": ["loop"]},
    )


def test_a_process_is_ready_once_it_says_so(client: httpx.Client, health: Health) -> None:
    answer = client.get("/healthz/ready")
    assert (answer.status_code, answer.json()["failing"]) == (503, ["serving"])

    health.is_serving = True
    assert client.get("/healthz/ready").status_code == 200


def test_there_is_nothing_else(client: httpx.Client) -> None:
    assert client.get("/").status_code == 404
    assert client.get("/metrics/../etc/passwd").status_code == 404
    assert client.post("/metrics").status_code == 501


def test_a_client_that_sends_nothing_holds_up_nobody(client: httpx.Client) -> None:
    port = client.base_url.port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port)) as silent:
        silent.sendall(b"GET /met")

        assert client.get("/metrics").status_code == 200


def test_a_metric_that_cannot_be_read_is_logged_and_stops_nothing(
    client: httpx.Client, instruments: Instruments
) -> None:
    def broken() -> float:
        raise RuntimeError("broken")

    instruments.read_gauge("level", "Level.", broken)
    with capture_logs() as logs, pytest.raises(httpx.RemoteProtocolError):
        client.get("/metrics")

    assert client.get("/healthz/live").status_code == 200
    assert [line["event"] for line in logs] == ["metrics not answered"]


def test_port_0_opens_none(instruments: Instruments, health: Health) -> None:
    with capture_logs() as logs, metrics_served("127.0.0.1", 0, instruments.registry, health):
        pass

    assert logs == []


def test_a_port_that_is_taken_is_an_error(instruments: Instruments, health: Health) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port: int = other.getsockname()[1]
        serving = metrics_served("127.0.0.1", port, instruments.registry, health)

        with pytest.raises(OSError, match="in use"), serving:
            pass
