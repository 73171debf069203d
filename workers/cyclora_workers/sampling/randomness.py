"""One uniform number per sampled token, from a counter instead of a state.

A stateful generator would make a token depend on how many numbers were drawn before it, so on the
other requests of the batch and on restarts. Here a number depends on (seed, sample index, position)
alone.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

Uint64 = npt.NDArray[np.uint64]

_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_KEY_STEP_0 = np.uint64(0x9E3779B9)
_KEY_STEP_1 = np.uint64(0xBB67AE85)
_NUM_ROUNDS = 10

_NUM_BITS = 52
"""One fewer than a double holds: the product of a uniform and a total stays below the total."""


def philox4x32(counter_4n: Uint64, key_2n: Uint64) -> Uint64:
    """Philox4x32 with ten rounds, on 32-bit words that are kept in 64-bit integers.

    ::

        hi0, lo0 = split(0xD2511F53 * c0);  hi1, lo1 = split(0xCD9E8D57 * c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0 += 0x9E3779B9;  k1 += 0xBB67AE85

    Shapes:
        counter_4n: [4, n]; key_2n: [2, n]. Returns [4, n].
    Source:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = counter_4n
    k0, k1 = key_2n
    for _ in range(_NUM_ROUNDS):
        product_0 = _MULTIPLIER_0 * c0
        product_1 = _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (product_1 >> _SHIFT_32) ^ c1 ^ k0,
            product_1 & _LOW_32,
            (product_0 >> _SHIFT_32) ^ c3 ^ k1,
            product_0 & _LOW_32,
        )
        k0 = (k0 + _KEY_STEP_0) & _LOW_32
        k1 = (k1 + _KEY_STEP_1) & _LOW_32
    return np.stack((c0, c1, c2, c3))


class Stream(IntEnum):
    """What numbers are for; those of one stream say nothing about another's."""

    SAMPLED = 0
    ALTERNATIVES = 1


def uniforms(
    seeds: npt.ArrayLike,
    sample_indices: npt.ArrayLike,
    positions: npt.ArrayLike,
    stream: Stream = Stream.SAMPLED,
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), one per (seed, sample index, position) of a stream.

    The seed is the key; the counter is (position, sample index, stream, 0).

    Shapes:
        seeds: [n] uint64; sample_indices, positions: [n], below 2**32. Returns [n].
    """
    key = np.asarray(seeds, np.uint64)
    zeros = np.zeros_like(key)
    counter = (np.asarray(positions, np.uint64), np.asarray(sample_indices, np.uint64))
    words = philox4x32(
        np.stack((*counter, zeros + np.uint64(stream), zeros)),
        np.stack((key & _LOW_32, key >> _SHIFT_32)),
    )
    bits = (words[0] << np.uint64(20)) | (words[1] >> np.uint64(12))
    return bits.astype(np.float64) * 2.0**-_NUM_BITS


def as_seed(number: int) -> int:
    """Any 64-bit integer, signed or not, as the unsigned one with the same bits."""
    return number & (2**64 - 1)
