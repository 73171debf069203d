"""Memory sizes: how a person writes them, and what this machine has."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cyclora_client.up.errors import UpError

MIN_STORE_BYTES = 64 * 1024**2
"""An empty store takes a few MiB; with less than this a single large request would not fit."""

_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def parse_store_memory(text: str) -> int:
    """Bytes of a size such as ``512m`` or ``4g``; units are powers of 1024.

    Raises:
        UpError: it is no size, or less than ``MIN_STORE_BYTES``.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UpError(f"--store-memory {text!r} is not a size such as 512m or 4g")
    num_bytes = round(float(match[1]) * _UNITS[match[2].lower()])
    if num_bytes < MIN_STORE_BYTES:
        raise UpError(
            f"--store-memory {text!r} is {num_bytes} bytes; the store needs at least "
            f"{MIN_STORE_BYTES // 1024**2}m"
        )
    return num_bytes


def default_store_bytes() -> int:
    """A quarter of the memory this machine, or this container, has.

    The workers need the rest; and while the store rewrites its append-only file it may for a while
    take twice of what it holds.
    """
    return max(MIN_STORE_BYTES, _memory_bytes() // 4)


def _memory_bytes() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
    except OSError:  # no control groups here
        return physical
    return min(physical, int(limit)) if limit.isdecimal() else physical
