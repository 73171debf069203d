from __future__ import annotations

import numpy as np
import pytest

from cyclora_workers.sampling.randomness import as_seed, philox4x32, uniforms

# Known answers that come with the authors' Random123 library: counter, key, words.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    result = philox4x32(
        np.asarray(counter, np.uint64)[:, None], np.asarray(key, np.uint64)[:, None]
    )

    assert list(words) == result[:, 0].tolist()


def test_a_number_depends_on_its_own_row_only() -> None:
    seeds = np.arange(50, dtype=np.uint64) * 7919
    indices, positions = np.arange(50) % 5, np.arange(50) // 3
    together = uniforms(seeds, indices, positions)

    alone = [uniforms([s], [i], [p])[0] for s, i, p in zip(seeds, indices, positions, strict=True)]

    assert alone == together.tolist()


def test_seed_sample_and_position_each_change_the_number() -> None:
    grid = [(s, i, p) for s in (0, 1, 2**32, 2**63) for i in range(8) for p in range(64)]
    seeds, indices, positions = zip(*grid, strict=True)

    numbers = uniforms(np.asarray(seeds, np.uint64), indices, positions)

    assert len(grid) == len(set(numbers.tolist()))


@pytest.mark.parametrize("varied", ["seed", "sample", "position"])
def test_numbers_are_uniform_and_uncorrelated_along_each_coordinate(varied: str) -> None:
    count = np.arange(100_000)
    fixed = np.zeros(100_000, np.int64)
    numbers = uniforms(
        (count if varied == "seed" else fixed).astype(np.uint64),
        count if varied == "sample" else fixed,
        count if varied == "position" else fixed,
    )

    observed, _ = np.histogram(numbers, 100, (0.0, 1.0))
    chi_square = float(((observed - 1000.0) ** 2 / 1000.0).sum())
    correlation = float(np.corrcoef(numbers[:-1], numbers[1:])[0, 1])

    # 99 degrees of freedom: the 0.001 and 0.999 quantiles.
    assert 60.0 < chi_square < 149.0
    assert abs(correlation) < 0.01


def test_the_largest_number_times_any_total_stays_below_the_total() -> None:
    largest = (2.0**52 - 1.0) * 2.0**-52
    totals = np.random.default_rng(0).uniform(0.4, 2.1, 100_000)

    assert bool((largest * totals < totals).all())


def test_a_negative_seed_is_the_unsigned_one_with_the_same_bits() -> None:
    assert [as_seed(-1), as_seed(-(2**63)), as_seed(5)] == [2**64 - 1, 2**63, 5]
