"""Clients that trickle: their connections end, and others notice nothing."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from cyclora_core.store import Store

NUM_SLOW = 200
GRACE_S = "1"
ENDED_S = 30.0


@dataclass
class ServerProcess:
    port: int
    api_key: str

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
async def server(redis_url: str, tmp_path: Path) -> AsyncGenerator[ServerProcess]:
    """A server that is impatient."""
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    store = await Store.open(redis_url, prefix)
    tenant = await store.tenants.create("lab")
    key, _ = await store.api_keys.create(tenant.tenant_id, "test")
    await store.close()
    ready = tmp_path / "ready.json"
    environment = {
        **os.environ,
        "CYCLORA_REDIS_URL": redis_url,
        "CYCLORA_KEY_PREFIX": prefix,
        "CYCLORA_STORAGE_URL": str(tmp_path),
        "CYCLORA_PORT": "0",
        "CYCLORA_READY_FILE": str(ready),
        "CYCLORA_HEADER_TIMEOUT_S": GRACE_S,
        "CYCLORA_BODY_GRACE_S": GRACE_S,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cyclora_server", env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        while line := await process.stderr.readline():
            if line.startswith(b"{") and json.loads(line)["event"] == "server listening":
                break
        draining = asyncio.create_task(process.stderr.read())
        yield ServerProcess(json.loads(ready.read_text())["port"], key)
        process.terminate()
        await process.wait()
        await draining
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Whatever the server says until it closes the connection."""
    async with asyncio.timeout(ENDED_S):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize("begun", [b"", b"POST /api/v1/session_heartbeat HTTP/1.1\r\nHost: x\r\n"])
async def test_connections_that_never_finish_a_request_are_closed_while_others_are_served(
    server: ServerProcess, begun: bytes
) -> None:
    slow = [await server.connect() for _ in range(NUM_SLOW)]
    for _, writer in slow:
        writer.write(begun)
        await writer.drain()

    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        served = await client.get("/api/v1/sessions", headers={"X-API-Key": server.api_key})
    assert served.status_code == 200
    assert await asyncio.gather(*(ended(reader) for reader, _ in slow)) == [b""] * NUM_SLOW
    for _, writer in slow:
        writer.close()


async def test_a_body_that_stops_coming_is_answered_and_its_connection_closed(
    server: ServerProcess,
) -> None:
    reader, writer = await server.connect()
    head = (
        "POST /api/v1/session_heartbeat HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
        f"X-API-Key: {server.api_key}\r\n\r\n"
    )
    writer.write(head.encode() + b"{")
    await writer.drain()

    answer = await ended(reader)
    writer.close()

    assert answer.startswith(b"HTTP/1.1 408")
    assert b"too slowly" in answer
