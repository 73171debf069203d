"""Names of prefixes: equal names mean equal keys and values, and a right to share them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count

import numpy as np
from torch.utils.weak import WeakTensorKeyDictionary

from cyclora_core.payload import Array
from cyclora_workers.adapter import AdapterWeights
from cyclora_workers.sampling.kv_pool import BLOCK_TOKENS

_KEY_BYTES = 16
"""A collision would show one prompt's content to another; nobody can construct one of 128 bits."""


class PrefixScopes:
    """Roots of chains of keys: a tenant and the weights that it samples.

    Weights are told apart as objects, by numbers that are never used again: weights that are read
    anew share nothing with what they were, and nobody is trusted to name them well.
    """

    def __init__(self) -> None:
        self._numbers = WeakTensorKeyDictionary()
        self._next_number = count(1)

    def root(self, tenant_id: str, adapter: AdapterWeights | None) -> bytes:
        """What the first block's key is chained to; ``adapter`` None is the bare base model."""
        number = 0
        if adapter is not None:
            number = self._numbers.get(adapter.flat_P) or next(self._next_number)
            self._numbers[adapter.flat_P] = number
        return _digest(f"{number}:{tenant_id}".encode())


def chained_keys(parent: bytes, tokens: Array) -> Iterator[bytes]:
    """A key per whole block of ``tokens``; each stands for all tokens up to its block's end."""
    tokens = np.ascontiguousarray(tokens, np.int64)
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        parent = _digest(parent + tokens[end - BLOCK_TOKENS : end].tobytes())
        yield parent


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_KEY_BYTES).digest()
