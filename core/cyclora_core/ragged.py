"""Arrays of different lengths as two arrays: thousands of tiny payload entries decode slowly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cyclora_core.payload import Array


def put_ragged(arrays: dict[str, Array], name: str, values: Sequence[Array]) -> None:
    """Lay arrays end to end under two names of a payload.

    Shapes:
        {name}.flat: all elements; {name}.shapes: [num_values, 2] int64, second column -1 for 1-D.
    """
    shapes = [(v.shape[0], v.shape[1] if v.ndim == 2 else -1) for v in values]
    arrays[f"{name}.shapes"] = np.asarray(shapes, np.int64).reshape(len(values), 2)
    flat = [value.reshape(-1) for value in values]
    arrays[f"{name}.flat"] = np.concatenate(flat) if flat else np.zeros(0, np.float32)


def get_ragged(arrays: Mapping[str, Array], name: str) -> list[Array]:
    """Inverse of ``put_ragged``."""
    flat = arrays[f"{name}.flat"]
    values: list[Array] = []
    start = 0
    for rows, columns in arrays[f"{name}.shapes"].tolist():
        size = rows if columns < 0 else rows * columns
        part = flat[start : start + size]
        values.append(part if columns < 0 else part.reshape(rows, columns))
        start += size
    return values
