"""A port beside the process's own, for Prometheus and for probes: metrics and health.

It has threads of its own, so that it answers while the process's loop hangs and can say so. The
names of tenants are in the metrics, so it is never the port that tenants reach.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Any

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from cyclora_core.health import Health

_CLIENT_TIMEOUT_S = 5.0

_log = structlog.get_logger()


class MetricsEndpoint:
    """Serves ``/metrics``, ``/healthz/live`` and ``/healthz/ready`` until it is closed."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Health) -> None:
        """Listen at once; port 0 takes any free one.

        Raises:
            OSError: the port cannot be had.
        """

        class Handler(_Handler):
            timeout = _CLIENT_TIMEOUT_S

            def answer(self, path: str) -> tuple[int, str, bytes] | None:
                match path:
                    case "/metrics":
                        return 200, CONTENT_TYPE_LATEST, generate_latest(registry)
                    case "/healthz/live":
                        return _condition(health.not_alive())
                    case "/healthz/ready":
                        return _condition(health.not_ready())
                    case _:
                        return None

        self._server = (_Server6 if ":" in host else _Server)((host, port), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def metrics_served(
    host: str, port: int, registry: CollectorRegistry, health: Health
) -> Generator[None]:
    """Serve metrics meanwhile; port 0 serves none.

    Raises:
        OSError: the port cannot be had.
    """
    if port == 0:
        yield
        return
    endpoint = MetricsEndpoint(host, port, registry, health)
    _log.info("metrics served", host=host, port=endpoint.port)
    try:
        yield
    finally:
        endpoint.close()


def _condition(failing: list[str]) -> tuple[int, str, bytes]:
    body = {"status": "unavailable", "failing": failing} if failing else {"status": "ok"}
    return (503 if failing else 200), "application/json", json.dumps(body).encode()


class _Server(ThreadingHTTPServer):
    address_family = AF_INET
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Also when a client goes away in the middle of its answer.
        _log.warning("metrics not answered", exc_info=True)


class _Server6(_Server):
    address_family = AF_INET6


class _Handler(BaseHTTPRequestHandler):
    def answer(self, path: str) -> tuple[int, str, bytes] | None:
        raise NotImplementedError

    def do_GET(self) -> None:
        status, content_type, body = self.answer(self.path.partition("?")[0]) or (
            404,
            "text/plain",
            b"there are /metrics, /healthz/live and /healthz/ready\n",
        )
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: probes come every few seconds, and the standard line is not ours."""
