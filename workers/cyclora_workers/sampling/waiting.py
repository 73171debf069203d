"""Which rows come next when memory is short, and which make way: pure decisions.

Tenants share memory evenly as long as they want more than their share: who holds least is served
first, and a waiting tenant may take memory from one that holds more, as long as that one still
holds at least as much as itself afterwards. So nothing goes back and forth.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping

from cyclora_workers.sampling.request import Row


class WaitingRows:
    """Rows without memory, by tenant and in order of arrival."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[tuple[tuple[int, int], Row]]] = {}

    def __len__(self) -> int:
        # A copy: others ask for it while tenants come and go.
        return sum(len(heap) for heap in list(self._heaps.values()))

    def __iter__(self) -> Iterator[Row]:
        return (row for heap in self._heaps.values() for _, row in heap)

    def add(self, row: Row) -> None:
        heapq.heappush(self._heaps.setdefault(row.request.tenant_id, []), (row.order, row))

    def remove(self, rows: Iterable[Row]) -> None:
        """Forget rows; those that do not wait are no matter."""
        gone = set(rows)
        for tenant_id in {row.request.tenant_id for row in gone} & self._heaps.keys():
            kept = [entry for entry in self._heaps[tenant_id] if entry[1] not in gone]
            heapq.heapify(kept)
            self._heaps[tenant_id] = kept
            if not kept:
                del self._heaps[tenant_id]

    def pop_next(self, held: Mapping[str, int]) -> Row | None:
        """The oldest row of the tenant that holds the fewest blocks; None when nothing waits."""
        if not self._heaps:
            return None
        tenant_id = min(self._heaps, key=lambda each: (held.get(each, 0), self._heaps[each][0][0]))
        _, row = heapq.heappop(self._heaps[tenant_id])
        if not self._heaps[tenant_id]:
            del self._heaps[tenant_id]
        return row


def held_blocks(running: Iterable[Row]) -> dict[str, int]:
    """Blocks in the tables of each tenant's rows; shared ones count for every row."""
    held: dict[str, int] = {}
    for row in running:
        tenant_id = row.request.tenant_id
        held[tenant_id] = held.get(tenant_id, 0) + len(row.blocks)
    return held


def row_to_preempt(running: Iterable[Row]) -> Row:
    """Who makes way for a row that grows: the newest of the tenant that holds most."""
    rows = list(running)
    held = held_blocks(rows)
    return max(rows, key=lambda row: (held[row.request.tenant_id], row.order))


def row_to_yield(running: Iterable[Row], to: Row, num_blocks: int) -> Row | None:
    """Who makes way for a waiting row that wants ``num_blocks``, if anybody should."""
    rows = [row for row in running if row.request.tenant_id != to.request.tenant_id]
    if not rows:
        return None
    candidate = row_to_preempt(rows)
    held = held_blocks(running)
    left = held[candidate.request.tenant_id] - len(candidate.blocks)
    return candidate if left >= held.get(to.request.tenant_id, 0) + num_blocks else None
