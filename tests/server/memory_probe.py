"""How far one request can push a server's memory; a program, because a peak is a process's own.

Sends the bomb on its standard input to the application as it is configured by default, and prints
the status of the answer and by how many MiB the process's peak has grown.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
import sys
from collections.abc import Callable

import httpx
import zstandard

from cyclora_server.app import create_app
from cyclora_server.settings import Settings
from cyclora_server.wire import schema
from server.doubles.builders import KEY, MODEL, manual_clock
from server.doubles.checkpoints import StorageDouble
from server.doubles.store import StoreDouble

_MIB = 1024 * 1024
_PROTOBUF = "application/x-protobuf"


def _zstd_stream(num_mib: int, *, declares_size: bool) -> bytes:
    size = num_mib * _MIB if declares_size else -1
    writer = zstandard.ZstdCompressor(write_content_size=declares_size).compressobj(size)
    zeros = bytes(_MIB)
    return b"".join([*(writer.compress(zeros) for _ in range(num_mib)), writer.flush()])


def _huge_sparse() -> bytes:
    message = schema.ForwardBackwardRequest(model_id=MODEL, seq_id=1, loss_fn="cross_entropy")
    tensor = message.data.add().loss_fn_inputs["target_tokens"]
    tensor.dtype = schema.DTYPE_INT64
    tensor.shape.extend([2**31, 2**31])
    tensor.sparse_csr.values = b""
    return message.SerializeToString()


BOMBS: dict[str, Callable[[], tuple[bytes, str, str]]] = {
    "zstd of 8 GiB": lambda: (_zstd_stream(8192, declares_size=False), "zstd", _PROTOBUF),
    "zstd that tells its size": lambda: (
        _zstd_stream(2048, declares_size=True),
        "zstd",
        _PROTOBUF,
    ),
    "gzip of 2 GiB": lambda: (gzip.compress(bytes(2048 * _MIB), 1), "gzip", _PROTOBUF),
    "sparse tensor of 2^62 cells": lambda: (_huge_sparse(), "identity", _PROTOBUF),
    "protobuf of empty data": lambda: (b"\x1a\x00" * (32 * _MIB), "identity", _PROTOBUF),
    "json of empty objects": lambda: (
        b'{"data":[' + b"{}," * (21 * _MIB) + b"{}]}",
        "identity",
        "application/json",
    ),
    "json of brackets": lambda: (b"[" * (60 * _MIB), "identity", "application/json"),
}


async def _send(body: bytes, encoding: str, media_type: str) -> int:
    settings = Settings(poll_hold_s=0.0)
    app = create_app(settings, StoreDouble(), StorageDouble(), manual_clock())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client,
    ):
        answer = await client.post(
            "/api/v1/forward_backward",
            content=body,
            headers={
                "X-API-Key": KEY,
                "Content-Encoding": encoding,
                "Content-Type": media_type,
            },
        )
    return answer.status_code


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    # Built by another process, which --build makes this one: building takes memory too.
    name = sys.argv[1]
    if sys.argv[2:] == ["--build"]:
        body, encoding, media_type = BOMBS[name]()
        sys.stdout.buffer.write(json.dumps([encoding, media_type]).encode() + b"\n" + body)
        return
    encoding, media_type = json.loads(sys.stdin.buffer.readline())
    body = sys.stdin.buffer.read()
    before_mib = _peak_mib()
    status = asyncio.run(_send(body, encoding, media_type))
    print(json.dumps({"status": status, "grown_mib": _peak_mib() - before_mib}))


if __name__ == "__main__":
    main()
