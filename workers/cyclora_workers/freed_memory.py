"""What becomes of memory that tensors on a CPU free: kept for the next ones, not given back.

A training step makes and frees thousands of tensors, many of some MB. As delivered, glibc gives
much of that back to the kernel, which zeroes every page again at its next use (decision 0048).
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Parameters of glibc's mallopt; their values are part of its binary interface (malloc.h)."""

_KEPT_BYTES = 2**30
"""A single tensor of more goes back when it is freed, as does what lies free above as much."""

_OLD_MAX_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> bool:
    """Let this process reuse what it frees; False where the C library is not glibc.

    One arena for all threads: in those of threads glibc gives every free 64 MiB back whatever it is
    told. The process then holds what its largest microbatch took, which a bound on its memory must
    allow for anyway.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    done = [
        mallopt(_M_ARENA_MAX, 1),
        # An old glibc refuses more than half of a thread's heap here.
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES) or mallopt(_M_MMAP_THRESHOLD, _OLD_MAX_THRESHOLD),
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES),
    ]
    return all(done)
