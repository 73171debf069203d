"""Tokens of a streamed sample that is still running, as its worker shows them to the server.

They stand in the order (position in its sequence, sample index), which follows from the tokens
alone: a worker that begins the sample anew writes the same records in the same places.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

_RECORD = struct.Struct("<2if")

RECORD_BYTES = _RECORD.size


@dataclass(frozen=True, slots=True)
class PartialToken:
    """One sampled token; ``sample_index`` says of which of the request's sequences."""

    sample_index: int
    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Partial:
    """New tokens of one sample; ``first`` is the number of those shown before."""

    request_id: str
    first: int
    tokens: Sequence[PartialToken]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a reader has not seen yet of a sample, and whether its future is final."""

    tokens: Sequence[PartialToken]
    is_final: bool


def encode(tokens: Sequence[PartialToken]) -> bytes:
    """Records of ``RECORD_BYTES`` each, so that a place among them is a place in the bytes."""
    return b"".join(_RECORD.pack(each.sample_index, each.token, each.logprob) for each in tokens)


def decode(data: bytes) -> list[PartialToken]:
    """Inverse of ``encode``; logprobs come back as the nearest fp32."""
    return [PartialToken(*fields) for fields in _RECORD.iter_unpack(data)]
