"""deploy/Caddyfile as it is, in front of servers of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sysconfig
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.native import DEADLINE_S, free_port

FILE = Path(__file__).parents[2] / "deploy" / "Caddyfile"


@dataclass(frozen=True, slots=True)
class Proxy:
    port: int
    authority: Path
    """The certificate of its own authority, which clients of localhost are to trust."""

    @property
    def base_url(self) -> str:
        return f"https://localhost:{self.port}"

    def post(self, path: str, content: bytes, api_key: str = "tml-none") -> httpx.Response:
        return httpx.post(
            self.base_url + path,
            content=content,
            headers={"X-API-Key": api_key},
            verify=ssl.create_default_context(cafile=str(self.authority)),
            timeout=DEADLINE_S,
        )


def find_program(name: str) -> str:
    """A program beside our Python or on PATH; without it a skip on a laptop, a failure in CI."""
    path = shutil.which(name, path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed; the dev extra brings it")
    return path


@contextmanager
def proxied(folder: Path, server_port: int, *, is_patient: bool = True) -> Generator[Proxy]:
    """Run Caddy with its ports and the address of the servers put in place of a container's.

    ``is_patient`` false does not wait for a server that is away.
    """
    caddy = find_program("caddy")
    folder.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "DOMAIN": "localhost"}
    environment |= {
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_CONFIG_HOME": str(folder / "config"),
    }
    command = [caddy, "adapt", "--config", str(FILE), "--adapter", "caddyfile"]
    adapted = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=30)
    config: Any = json.loads(adapted.stdout)
    port, http_port = free_port(), free_port()
    config["apps"]["http"] |= {"http_port": http_port, "https_port": port}
    text = json.dumps(config).replace('":443"', f'":{port}"')
    assert text.count('"server:8000"') == 1
    if not is_patient:
        text = re.sub(r'"try_duration": \d+, ', "", text)
    config_file = folder / "caddy.json"
    config_file.write_text(text.replace("server:8000", f"127.0.0.1:{server_port}"))
    authority = folder / "data" / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    with (folder / "caddy.log").open("wb") as log:
        process = subprocess.Popen(
            [caddy, "run", "--config", str(config_file)],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline_s = time.monotonic() + DEADLINE_S
        while not _has_certificate(port, authority):
            assert process.poll() is None, log_of(folder)
            assert time.monotonic() < deadline_s, log_of(folder)
            time.sleep(0.05)
        yield Proxy(port, authority)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(DEADLINE_S)
        finally:
            process.kill()


def _has_certificate(port: int, authority: Path) -> bool:
    """Whether a client would be served; Caddy listens before its certificate is made."""
    if not authority.exists():
        return False
    try:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            context = ssl.create_default_context(cafile=str(authority))
            with context.wrap_socket(connection, server_hostname="localhost"):
                return True
    except OSError:
        return False


def log_of(folder: Path) -> str:
    return (folder / "caddy.log").read_text()[-4000:]
