"""Tokenizers through the SDK's own lookup, in a process of its own, with a hub that says no.

``hub`` stands for the Hugging Face hub: it answers every question with "no such repository", as the
real one does for a name that only our server knows, and it counts the questions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import tinker

from client.builders import serve_tokenizers, tokenizer_files
from cyclora_client import connect
from cyclora_client.tokenizers import write_snapshot

PROGRAM = """
import json, os, sys
from pathlib import Path
import tinker
from cyclora_client.connect import connect
from tinker.lib.public_interfaces import sampling_client, training_client

base_url, cache, *names = sys.argv[1:]
for _ in range(2):
    service = connect(base_url, "tml-key", tokenizer_cache=Path(cache), project_id="p")
assert type(service) is tinker.ServiceClient

for module in (training_client, sampling_client):
    for name in names:
        load = module._load_tokenizer_from_model_info
        tokenizer = load(name) if module is sampling_client else load(name, None)
        print(json.dumps(tokenizer.encode("hello world")))
sys.stdout.flush()
os._exit(0)  # Threads of the SDK may abort a process that shuts down (tests/conftest.py).
"""


class Server:
    """A local HTTP server that answers with a handler made for httpx, and keeps the paths."""

    def __init__(self, models: dict[str, dict[str, bytes]]) -> None:
        paths: list[str] = []
        answer = serve_tokenizers(models)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                paths.append(self.path)
                response = answer(httpx.Request("GET", f"http://server{self.path}"))
                self.send_response(response.status_code)
                if response.status_code == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", str(len(response.content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(response.content)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Keep the test's output clean."""

        self.paths = paths
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server() -> Generator[Server]:
    files = tokenizer_files()
    started = Server({"cyclora/tiny-chat": files, "org/model/variant": files})
    yield started
    started.close()


@pytest.fixture
def hub() -> Generator[Server]:
    started = Server({})
    yield started
    started.close()


def load_in_subprocess(
    server: Server, hub: Server, folder: Path, names: list[str], *, offline: bool
) -> list[list[int]]:
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_CACHE": str(folder / "users"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "1" if offline else "0",
    }
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, server.url, str(folder / "ours"), *names],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("offline", [True, False])
def test_the_sdk_finds_our_tokenizers_without_asking_the_hub(
    server: Server, hub: Server, tmp_path: Path, offline: bool
) -> None:
    """Also a name of three parts, which the SDK would cut, and one with a suffix."""
    names = ["cyclora/tiny-chat", "cyclora/tiny-chat:latest", "org/model/variant"]

    encoded = load_in_subprocess(server, hub, tmp_path, names, offline=offline)

    assert encoded == [[1, 2]] * 6
    assert hub.paths == []
    assert not (tmp_path / "users").exists()


@pytest.mark.slow
def test_other_names_are_still_looked_up_in_the_users_own_cache(
    server: Server, hub: Server, tmp_path: Path
) -> None:
    write_snapshot(tmp_path / "users", "somebody/else", tokenizer_files())
    names = ["somebody/else", "cyclora/tiny-chat"]

    encoded = load_in_subprocess(server, hub, tmp_path, names, offline=True)

    assert encoded == [[1, 2]] * 4


def test_what_is_not_given_comes_from_the_environment_as_in_the_sdk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("TINKER_API_KEY", "tml-key")
    monkeypatch.setattr(connect, "_sources", [])

    connect.connect(tokenizer_cache=tmp_path)

    sources = connect._sources  # pyright: ignore[reportPrivateUsage]
    assert [source.base_url for source in sources] == ["http://127.0.0.1:9"]


def test_without_a_server_it_is_the_sdks_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    monkeypatch.setattr(connect, "_sources", [])

    service = connect.connect(api_key="tml-key")

    assert type(service) is tinker.ServiceClient
    assert connect._sources == []  # pyright: ignore[reportPrivateUsage]
