"""Payloads: JSON and named arrays as zstd-compressed safetensors bytes.

Safetensors because reading it can run nothing; zstd because token ids and losses shrink well and
everything here is held in Redis memory until a snapshot covers it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy as st
import zstandard

from cyclora_core.errors import PayloadTooLarge

Array = npt.NDArray[Any]

MAX_PAYLOAD_BYTES = 256 * 1024 * 1024
"""Bound on a decompressed payload; larger than the largest body the server accepts."""

_LEVEL = 1
_MAX_SLICE_BYTES = 16384
_MAX_ZSTD_RATIO = 32768
_META_KEY = "json"


@dataclass(frozen=True, slots=True)
class Payload:
    """What an operation or its result consists of: small JSON beside large arrays."""

    meta: Mapping[str, Any]
    arrays: Mapping[str, Array]


def encode(payload: Payload) -> bytes:
    """Serialize; the same payload always gives the same bytes (retries compare digests)."""
    arrays = {name: np.ascontiguousarray(payload.arrays[name]) for name in sorted(payload.arrays)}
    text = json.dumps(payload.meta, sort_keys=True, separators=(",", ":"))
    raw = st.save(arrays, metadata={_META_KEY: text})
    return zstandard.ZstdCompressor(level=_LEVEL).compress(raw)


def decode(data: bytes) -> Payload:
    """Inverse of ``encode``.

    Raises:
        PayloadTooLarge: it would decompress to more than ``MAX_PAYLOAD_BYTES``.
    """
    raw = decompress(data, MAX_PAYLOAD_BYTES)
    header_size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + header_size])
    meta = json.loads(header.get("__metadata__", {}).get(_META_KEY, "{}"))
    return Payload(meta=meta, arrays=st.load(raw))


def decompress(data: bytes, max_bytes: int) -> bytes:
    """Inflate zstd bytes without ever holding more than the bound (a bomb is refused early).

    Raises:
        PayloadTooLarge: the frame inflates to more than ``max_bytes``.
        zstandard.ZstdError: the bytes are not one complete zstd frame.
    """
    declared = zstandard.frame_content_size(data)
    if declared > max_bytes:
        raise PayloadTooLarge(
            f"body decompresses to {declared} bytes; at most {max_bytes} are accepted"
        )
    inflater = zstandard.ZstdDecompressor().decompressobj()
    parts: list[bytes] = []
    total = start = 0
    while start < len(data):
        # One call inflates all it is fed, so a slice is small enough that it cannot inflate to
        # more than is still allowed: a run of one byte takes 4 bytes for 128 KiB.
        size = min(_MAX_SLICE_BYTES, 1 + (max_bytes - total) // _MAX_ZSTD_RATIO)
        part = inflater.decompress(data[start : start + size])
        start += size
        total += len(part)
        if total > max_bytes:
            raise PayloadTooLarge(f"body decompresses to more than the accepted {max_bytes} bytes")
        parts.append(part)
    if not inflater.eof:
        raise zstandard.ZstdError("incomplete zstd frame")
    return b"".join(parts)
