"""A server process as it is run, against a real Valkey."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
import uuid
from pathlib import Path

import httpx
import pytest
import uvicorn

from cyclora_core.store import Store
from cyclora_server.__main__ import serve
from cyclora_server.settings import Settings

HEARTBEAT_INTERVAL_S = 10
"""Of the SDK."""

FEW_FILES = 256
"""As a shell may allow; a client that holds hundreds of polls would use them up."""


async def next_event(process: asyncio.subprocess.Process, event: str) -> None:
    """Read the log up to a line; a process that ends first fails the test."""
    assert process.stderr is not None
    log = b""
    while line := await process.stderr.readline():
        log += line
        if line.startswith(b"{") and json.loads(line).get("event") == event:
            return
    pytest.fail(log.decode()[-3000:])


async def test_a_server_tells_its_port_may_open_many_files_and_ends_in_order_when_it_is_stopped(
    redis_url: str, tmp_path: Path
) -> None:
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    store = await Store.open(redis_url, prefix)
    tenant = await store.tenants.create("lab")
    key, _ = await store.api_keys.create(tenant.tenant_id, "test")
    ready_file = tmp_path / "ready.json"
    environment = {
        **os.environ,
        "CYCLORA_REDIS_URL": redis_url,
        "CYCLORA_KEY_PREFIX": prefix,
        "CYCLORA_STORAGE_URL": str(tmp_path),
        "CYCLORA_PORT": "0",
        "CYCLORA_READY_FILE": str(ready_file),
    }
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        f'ulimit -S -n {FEW_FILES} && exec "$0" -m cyclora_server',
        sys.executable,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await next_event(process, "server listening")
        ready = json.loads(ready_file.read_text())
        assert ready["pid"] == process.pid
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0] > FEW_FILES

        url = f"http://127.0.0.1:{ready['port']}"
        async with httpx.AsyncClient(base_url=url, headers={"X-API-Key": key}) as client:
            assert (await client.get("/api/v1/sessions")).status_code == 200

        process.send_signal(signal.SIGTERM)
        output, _ = await process.communicate()
        assert process.returncode == 0
        assert output == b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await store.close()


async def test_a_connection_outlives_the_time_between_two_heartbeats(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[uvicorn.Config] = []

    async def note(server: uvicorn.Server, sockets: object = None) -> None:
        used.append(server.config)

    monkeypatch.setattr(uvicorn.Server, "serve", note)
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    await serve(Settings(redis_url=redis_url, key_prefix=prefix, storage_url=str(tmp_path), port=0))

    assert [each.timeout_keep_alive > 2 * HEARTBEAT_INTERVAL_S for each in used] == [True]
