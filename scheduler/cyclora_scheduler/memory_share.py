"""Whose samples may come although a worker's memory is taken: those of tenants below their share.

The worker takes memory back from whoever holds most, a row at a time, and computes anew what that
row had. So a tenant that fills the memory with long samples does not keep the others out (pure).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def fair_parts(
    used: Mapping[str, int],
    waiting: Sequence[str],
    total: int,
    weights: Mapping[str, float],
) -> dict[str, float]:
    """What each tenant that has samples, running or waiting, may hold of a memory by its weight.

    Units:
        ``used``, ``total`` and the result in tokens.
    """
    tenants = sorted({*used, *waiting})
    total_weight = sum(weights.get(tenant, 1.0) for tenant in tenants)
    return {tenant: total * weights.get(tenant, 1.0) / total_weight for tenant in tenants}


def take_back(
    costs: Mapping[str, Sequence[int]],
    used: Mapping[str, int],
    total: int,
    weights: Mapping[str, float],
) -> dict[str, int]:
    """How many of its waiting samples each tenant may send beside those that find room.

    No more comes than others hold above their parts, and of nobody more than its own part has
    left. Who has nothing there may send one sample however large it is: it grows as it can.

    Args:
        costs: tokens of each waiting sample, in order, by tenant.
        used: tokens of memory that each tenant's samples hold, or wait for, at the worker.
        total: tokens of memory in all.
        weights: of tenants; 1 if not given.
    """
    parts = fair_parts(used, list(costs), total, weights)
    surplus = sum(max(0.0, used[tenant] - parts[tenant]) for tenant in used)
    taken = dict.fromkeys(costs, 0)
    # Who lacks most of its part comes first; the name breaks ties.
    for tenant in sorted(costs, key=lambda each: (used.get(each, 0) / parts[each], each)):
        left = parts[tenant] - used.get(tenant, 0)
        for cost in costs[tenant]:
            is_first = not used.get(tenant) and not taken[tenant]
            if surplus <= 0 or (cost > min(left, surplus) and not is_first):
                break
            taken[tenant] += 1
            left -= cost
            surplus -= cost
    return taken
