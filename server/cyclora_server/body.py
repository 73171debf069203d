"""Request bodies: read within bounds, inflated within bounds, and only after authentication."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import zstandard
from fastapi import Request

from cyclora_core import payload
from cyclora_core.errors import PayloadTooLarge, UserError
from cyclora_server.intake import in_time
from cyclora_server.services import Services, ServicesDep
from cyclora_server.wire.reading import Body, parse, read_json

BodyT = TypeVar("BodyT", bound=Body)
ResultT = TypeVar("ResultT")

OFFLOAD_BYTES = 64 * 1024
"""Larger bodies are decoded in a thread, so that heartbeats and polls do not wait for them."""

_WBITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


async def read_body(request: Request, services: Services) -> bytes:
    """The request's body, decompressed; held for its tenant until the request is answered.

    Raises:
        PayloadTooLarge: it exceeds a bound, as received or decompressed.
        UserError: its Content-Encoding is unknown, or does not fit the bytes.
        Overloaded: there is no memory for it beside the bodies of other requests.
        TooSlow: its client took too long.
    """
    settings = services.settings
    limit = settings.max_body_bytes
    declared = request.headers.get("Content-Length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise PayloadTooLarge(f"the body has {declared} bytes; at most {limit} are accepted")
    parts: list[bytes] = []
    total = 0
    held = services.bodies.hold(request.state.tenant_id)
    request.state.held_body = held
    async for part in in_time(request.stream(), settings.body_grace_s):
        held.take(len(part))
        total += len(part)
        if total > limit:
            raise PayloadTooLarge(f"the body has more than the accepted {limit} bytes")
        parts.append(part)
    data = b"".join(parts)
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity") or not data:
        return data
    inflated = await offload(len(data), _inflate, data, encoding, settings.max_decoded_bytes)
    held.take(len(inflated))
    return inflated


async def offload(size: int, work: Callable[..., ResultT], *args: Any) -> ResultT:
    """Run something whose time grows with ``size`` where it blocks nobody."""
    if size < OFFLOAD_BYTES:
        return work(*args)
    return await asyncio.to_thread(work, *args)


def json_body(model: type[BodyT]) -> Callable[[Request, ServicesDep], Awaitable[BodyT]]:
    """A dependency that reads the body as JSON whatever its Content-Type says."""

    async def read(request: Request, services: ServicesDep) -> BodyT:
        raw = await read_body(request, services)
        return parse(model, await offload(len(raw), read_json, raw))

    return read


def documented(model: type[Body]) -> dict[str, Any]:
    """``openapi_extra`` for a route that reads its body itself."""
    schema = model.model_json_schema()
    content = {"application/json": {"schema": _inlined(schema, schema.get("$defs", {}))}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A JSON schema without references, which would not resolve inside the OpenAPI document."""
    if isinstance(schema, list):
        items: list[Any] = schema
        return [_inlined(item, definitions) for item in items]
    if not isinstance(schema, dict):
        return schema
    fields: dict[str, Any] = schema
    if "$ref" in fields:
        return _inlined(definitions[fields["$ref"].rsplit("/", 1)[-1]], definitions)
    return {name: _inlined(value, definitions) for name, value in fields.items() if name != "$defs"}


def _inflate(data: bytes, encoding: str, max_bytes: int) -> bytes:
    try:
        if encoding == "zstd":
            return payload.decompress(data, max_bytes)
        if encoding in _WBITS:
            return _inflate_zlib(data, _WBITS[encoding], max_bytes)
    except (zstandard.ZstdError, zlib.error) as error:
        raise UserError(f"the body is not valid {encoding}: {error}") from None
    raise UserError(
        f"Content-Encoding {encoding[:60]!r} is not supported; use zstd, gzip or deflate"
    )


def _inflate_zlib(data: bytes, wbits: int, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj(wbits)
    # One byte past the bound is enough to know; a bomb is never inflated further.
    inflated = inflater.decompress(data, max_bytes + 1)
    if len(inflated) > max_bytes:
        raise PayloadTooLarge(f"body decompresses to more than the accepted {max_bytes} bytes")
    if not inflater.eof:
        raise zlib.error("incomplete stream")
    return inflated
