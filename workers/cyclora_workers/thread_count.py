"""How many threads of a CPU a small product gets (docs/decisions/0054-one-thread.md)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

_MAX_SERIAL_ELEMENTS = 1 << 16
"""Weights of a factor of an adapter, up to which its products are no slower with one thread."""

_MAX_THREADS = 2
"""With more of them, waking all is worth its time sooner; measured with two."""


@contextmanager
def threads_for(num_weights: int) -> Generator[None]:
    """One thread inside, for products with so few weights; else as many as torch has.

    Decided by what never changes with a pass, not by its rows: whatever a product's bits may owe to
    the number of threads, they owe to none of the rows that share it.
    """
    num_threads = torch.get_num_threads()
    if num_weights > _MAX_SERIAL_ELEMENTS or not 1 < num_threads <= _MAX_THREADS:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
