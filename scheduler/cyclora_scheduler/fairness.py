"""Fair share: deficit round robin over tenants, counted in tokens (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ROUNDS_PER_BUDGET = 8
"""One tenant's credit per round is the budget over this many rounds and all tenants: small enough
that nobody takes a whole cycle before the others had a turn."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How many of its waiting units each tenant may run, and the credit it carries on."""

    num_taken: Mapping[str, int]
    credits: Mapping[str, float]


def take_fairly(
    costs: Mapping[str, Sequence[int]],
    budget: int,
    credits: Mapping[str, float],
    weights: Mapping[str, float],
    *,
    may_exceed: bool = True,
) -> Shares:
    """Share a budget of tokens among tenants by weight; each tenant's units stay in order.

    A tenant earns credit each round and spends it on its next unit. Credit it could not spend
    because the budget ran out is carried to the next cycle; a tenant with nothing left to run
    carries none, so idling earns nothing. If not even one unit fits the budget, the tenant with
    the most credit runs one: work larger than a cycle must still make progress. ``may_exceed``
    False takes this away, for budgets that grow again by themselves.

    Units:
        ``costs`` and ``budget`` in tokens. A unit that costs nothing is always taken.
    """
    queues = {tenant: list(units) for tenant, units in costs.items() if units}
    taken = dict.fromkeys(queues, 0)
    credit = {tenant: credits.get(tenant, 0.0) for tenant in queues}
    remaining = budget
    left = set(queues)
    quantum = max(1.0, budget / (_ROUNDS_PER_BUDGET * max(1, len(queues))))
    while left:
        for tenant in sorted(left, key=lambda each: (-credit[each], each)):
            credit[tenant] += quantum * weights.get(tenant, 1.0)
            units = queues[tenant]
            while taken[tenant] < len(units):
                cost = units[taken[tenant]]
                # A unit larger than a whole cycle, once earned, may take one for itself.
                is_first = may_exceed and remaining == budget
                fits = cost <= remaining or (is_first and cost > budget)
                if cost > 0 and (cost > credit[tenant] or not fits):
                    break
                credit[tenant] -= cost
                remaining -= cost
                taken[tenant] += 1
        left = {tenant for tenant in left if taken[tenant] < len(queues[tenant])}
        if all(queues[tenant][taken[tenant]] > remaining for tenant in left):
            break
    if may_exceed and left and remaining == budget and not any(_spent(queues, taken)):
        first = max(sorted(left), key=lambda each: credit[each])
        credit[first] -= queues[first][taken[first]]
        taken[first] += 1
    return Shares(
        {tenant: taken.get(tenant, 0) for tenant in costs},
        {t: credit[t] for t in queues if taken[t] < len(queues[t])},
    )


def _spent(queues: Mapping[str, Sequence[int]], taken: Mapping[str, int]) -> list[int]:
    return [cost for tenant, units in queues.items() for cost in units[: taken[tenant]]]
