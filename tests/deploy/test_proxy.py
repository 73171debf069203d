"""What deploy/Caddyfile promises beside passing everything on."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cyclora_server.__main__ import _KEEP_ALIVE_S  # pyright: ignore[reportPrivateUsage]
from deploy.compose_file import seconds
from deploy.native import free_port
from deploy.proxy import FILE, find_program, proxied


def value(name: str) -> str:
    [line] = [line for line in FILE.read_text().splitlines() if line.split()[:1] == [name]]
    return line.split()[1]


def test_the_file_is_valid_and_laid_out_as_caddy_does() -> None:
    caddy = find_program("caddy")
    for command in (["fmt", str(FILE)], ["adapt", "--adapter", "caddyfile", "--config", str(FILE)]):
        ran = subprocess.run([caddy, *command], capture_output=True, check=False, timeout=30)
        assert ran.returncode == 0, ran.stderr.decode()
        assert b"warn" not in ran.stderr


def test_a_poll_with_no_server_left_gets_429_and_everything_else_503(tmp_path: Path) -> None:
    """The SDK repeats a poll that got a 5xx without a pause."""
    with proxied(tmp_path / "caddy", free_port(), is_patient=False) as proxy:
        poll = proxy.post("/api/v1/retrieve_future", b"{}")
        submission = proxy.post("/api/v1/forward_backward", b"{}")

    assert (poll.status_code, submission.status_code) == (429, 503)
    for answer in (poll, submission):
        assert answer.headers["Retry-After"] == "1"
        assert answer.json()["detail"] == "no server can be reached; try again"


def test_no_connection_is_kept_beyond_what_the_server_keeps() -> None:
    assert seconds(value("keepalive")) < _KEEP_ALIVE_S


def test_streams_are_not_held_back() -> None:
    assert value("flush_interval") == "-1"
