from __future__ import annotations

import asyncio
import stat
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

from client.builders import TIMEOUT_S, Events
from cyclora_client.up import specs, valkey
from cyclora_client.up.children import Child
from cyclora_client.up.errors import UpError
from cyclora_client.up.folder import DataFolder
from cyclora_client.up.memory import default_store_bytes
from cyclora_client.up.supervisor import Supervisor


@asynccontextmanager
async def running_store(data: Path) -> AsyncGenerator[tuple[Child, Path]]:
    """The embedded store of a data folder, started and stopped as ``cyclora up`` does."""
    folder = DataFolder(data)
    folder.create()
    with folder.lock() as lock, folder.socket_path() as socket_path:
        supervisor = Supervisor(Events())
        child = supervisor.start(specs.store_spec(folder, socket_path, lock))
        await asyncio.wait_for(child.ready.wait(), TIMEOUT_S)
        yield child, socket_path
        await supervisor.stop([child], TIMEOUT_S)


def open_client(socket_path: Path) -> redis.Redis:
    return redis.Redis.from_url(valkey.redis_url(socket_path))


# Spaces and quotes in the path must survive the configuration file and the URL.
@pytest.mark.parametrize("name", ["data", 'my "data" folder', "long" * 30])
async def test_what_was_stored_is_there_after_a_restart(tmp_path: Path, name: str) -> None:
    async with running_store(tmp_path / name) as (_, socket_path):
        with open_client(socket_path) as client:
            client.set("key", "value")
    async with running_store(tmp_path / name) as (_, socket_path):
        with open_client(socket_path) as client:
            assert client.get("key") == b"value"


async def test_it_survives_sigkill_with_everything_it_acknowledged(tmp_path: Path) -> None:
    async with running_store(tmp_path) as (child, socket_path):
        with open_client(socket_path) as client:
            client.set("key", "value")
        child.kill()
    async with running_store(tmp_path) as (_, socket_path):
        with open_client(socket_path) as client:
            assert client.get("key") == b"value"


async def test_it_is_durable_never_evicts_and_listens_on_its_socket_only(tmp_path: Path) -> None:
    async with running_store(tmp_path) as (_, socket_path):
        with open_client(socket_path) as client:
            config = client.config_get("*")
        mode = stat.S_IMODE(socket_path.stat().st_mode)

    expected = {
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "always",
        "aof-load-truncated": "yes",
        "maxmemory": str(default_store_bytes()),
        "maxmemory-policy": "noeviction",
        "dir": str(tmp_path),
    }
    assert {name: config[name] for name in expected} == expected
    assert mode == 0o600


async def test_it_stops_cleanly(tmp_path: Path) -> None:
    async with running_store(tmp_path) as (child, _):
        pass

    assert "bye bye" in child.log_tail()


def hide_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> None: ...

    monkeypatch.setattr("importlib.util.find_spec", find_spec)


def test_a_binary_on_path_serves_where_the_wheel_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "redis-server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    hide_the_wheel(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert valkey.find_binary() == str(binary)


def test_no_binary_at_all_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_the_wheel(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(UpError, match="install one of"):
        valkey.find_binary()


def test_the_found_binary_is_a_redis_of_some_kind() -> None:
    result = subprocess.run([valkey.find_binary(), "--version"], capture_output=True, check=True)

    assert b"server v=" in result.stdout.lower()
