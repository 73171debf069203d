"""API keys: random, shown once, and kept only as a hash.

A key has 256 bits of entropy, so one round of SHA-256 is a safe hash at rest: there is nothing
to guess, and a slow password hash would only slow every request down.
"""

from __future__ import annotations

import hashlib
import secrets

KEY_PREFIX = "tml-"
"""The SDK refuses keys that start with anything else."""


def new_api_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_api_key(api_key: str) -> str:
    return hashlib.sha256(api_key.encode()).hexdigest()


def new_id(kind: str) -> str:
    """A short random identifier such as ``tenant-3f9c...``."""
    return f"{kind}-{secrets.token_hex(8)}"
