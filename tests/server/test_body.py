from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
import zstandard

from server.doubles.builders import SESSION

HEARTBEAT = json.dumps({"session_id": SESSION}).encode()
PATH = "/api/v1/session_heartbeat"


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "zstd": zstandard.compress,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}


@pytest.mark.parametrize("encoding", COMPRESS)
async def test_a_compressed_body_is_read(client: httpx.AsyncClient, encoding: str) -> None:
    answer = await client.post(
        PATH, content=COMPRESS[encoding](HEARTBEAT), headers={"Content-Encoding": encoding}
    )

    assert answer.status_code == 200


@pytest.mark.parametrize("encoding", ["zstd", "gzip", "deflate"])
async def test_a_bomb_is_refused(client: httpx.AsyncClient, encoding: str) -> None:
    bomb = COMPRESS[encoding](bytes(1_000_000))

    answer = await client.post(PATH, content=bomb, headers={"Content-Encoding": encoding})

    assert answer.status_code == 413


async def test_a_bomb_that_does_not_tell_its_size_is_refused(client: httpx.AsyncClient) -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1_000_000))

    answer = await client.post(PATH, content=bomb, headers={"Content-Encoding": "zstd"})

    assert answer.status_code == 413


@pytest.mark.parametrize("encoding", ["zstd", "gzip", "deflate"])
async def test_a_body_that_is_not_what_its_encoding_says_is_refused(
    client: httpx.AsyncClient, encoding: str
) -> None:
    answer = await client.post(PATH, content=b"plain", headers={"Content-Encoding": encoding})

    assert answer.status_code == 400
    assert f"not valid {encoding}" in answer.json()["detail"]


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_a_truncated_body_is_refused(client: httpx.AsyncClient, encoding: str) -> None:
    truncated = COMPRESS[encoding](HEARTBEAT)[:-6]

    answer = await client.post(PATH, content=truncated, headers={"Content-Encoding": encoding})

    assert answer.status_code == 400


async def test_an_unknown_encoding_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, content=HEARTBEAT, headers={"Content-Encoding": "br"})

    assert answer.status_code == 400
    assert "use zstd, gzip or deflate" in answer.json()["detail"]


async def test_a_body_of_declared_size_above_the_bound_is_refused(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.post(PATH, content=b" " * 8193)).status_code == 413


async def test_a_body_of_undeclared_size_above_the_bound_is_refused(
    client: httpx.AsyncClient,
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b" " * 1024

    assert (await client.post(PATH, content=chunks())).status_code == 413


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
async def test_what_is_no_json_object_is_refused(client: httpx.AsyncClient, content: bytes) -> None:
    assert (await client.post(PATH, content=content)).status_code == 422
