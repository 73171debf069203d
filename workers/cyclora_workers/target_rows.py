"""Which targets the rows of a block have, when data of the block share rows.

A row that several data run through has the targets of each: side by side, as top-K targets are.
So the head multiplies it with the vocabulary once, and sums what comes back from all of them.

Legend: N tokens of the data end to end, K targets per token, R rows of one run, C data that run
through each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cyclora_workers.prefix_tree import PrefixTree
from cyclora_workers.transfer import to_device


@dataclass(frozen=True, slots=True, eq=False)
class TargetRows:
    """Consecutive rows [start, stop) of a block through which equally many data run.

    Shapes:
        places_RC: int64, of each row's tokens in the data end to end.
    """

    start: int
    stop: int
    places_RC: Tensor

    def of(self, value_NK: Tensor) -> Tensor:
        """What belongs to these rows. Shapes: returns [R, C * K]."""
        return value_NK[self.places_RC].flatten(1)


def target_rows(tree: PrefixTree, max_rows: int, device: torch.device) -> list[TargetRows]:
    """All rows of a block, in runs of at most ``max_rows``."""
    rows_N = tree.rows_N
    places_N = np.argsort(rows_N, kind="stable")
    counts_R = np.bincount(rows_N)
    edges = np.flatnonzero(np.diff(counts_R)) + 1
    found: list[TargetRows] = []
    first = 0
    for run_start, run_stop in zip([0, *edges], [*edges, tree.num_rows], strict=True):
        count = int(counts_R[run_start])
        for start in range(run_start, run_stop, max_rows):
            stop = min(start + max_rows, int(run_stop))
            last = first + (stop - start) * count
            places_RC = torch.from_numpy(places_N[first:last].reshape(-1, count))
            found.append(TargetRows(int(start), stop, to_device(places_RC, device)))
            first = last
    return found


def to_data_order(rows: Sequence[TargetRows], values: Sequence[Tensor]) -> Tensor:
    """Undo ``of`` for all rows of a block.

    Shapes:
        values: [R, C * K] each. Returns [N, K].
    """
    places_N = torch.cat([run.places_RC.flatten() for run in rows])
    values_NK = torch.cat(
        [
            value.unflatten(1, (run.places_RC.shape[1], -1)).flatten(0, 1)
            for run, value in zip(rows, values, strict=True)
        ]
    )
    return torch.empty_like(values_NK).index_copy_(0, places_N, values_NK)
