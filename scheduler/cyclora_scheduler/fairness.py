"""Fair share: deficit round robin over tenants, counted in tokens (pure)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

_ROUNDS_PER_BUDGET = 8
"""What all tenants earn in one round is the budget over this many: little enough that nobody,
however heavy, takes a whole cycle before the others had a turn."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How many of its waiting units each tenant may run, and the credit it carries on."""

    num_taken: Mapping[str, int]
    credits: Mapping[str, float]
    """Below 0 a debt, which also a tenant has that waits for nothing more."""


def take_fairly(
    costs: Mapping[str, Sequence[int]],
    budget: int,
    credits: Mapping[str, float],
    weights: Mapping[str, float],
    *,
    may_exceed: bool = True,
    goes_on: Collection[str] = (),
) -> Shares:
    """Share a budget of tokens among tenants by weight; each tenant's units stay in order.

    A tenant earns credit each round and spends it on its next unit. Credit it could not spend
    because the budget ran out is carried to the next cycle; a tenant with nothing left to run
    carries none, so idling earns nothing. A debt it does carry, and pays it with what it would have
    earned in the rounds of the others: else work that is sent piece by piece would come free of
    what it owes. When nobody waits at all, nobody is owed anything.

    Tenants of ``goes_on`` have more that must wait for what they run now. They also earn in the
    rounds after their last unit, and carry on up to one budget: what somebody new waits for.

    What is left of the budget when nobody's next unit fits is earned by those who wait, up to one
    budget, or what that unit costs. If not even one unit fits the budget, the tenant with the most
    credit runs one: work larger than a cycle must still make progress. ``may_exceed`` False takes
    both away, for budgets that grow again by themselves.

    Units:
        ``costs`` and ``budget`` in tokens. A unit that costs nothing is always taken.
    """
    queues = {tenant: list(units) for tenant, units in costs.items() if units}
    taken = dict.fromkeys(queues, 0)
    credit = {tenant: credits.get(tenant, 0.0) for tenant in queues}
    remaining = budget
    left, num_rounds, all_rounds = set(queues), 1, 0
    total_weight = sum(weights.get(tenant, 1.0) for tenant in queues)
    round_tokens = max(float(len(queues)), budget / _ROUNDS_PER_BUDGET)
    earns = {
        tenant: round_tokens * weights.get(tenant, 1.0) / total_weight
        for tenant in (queues.keys() | credits.keys() if queues else ())
    }
    ended_in: dict[str, int] = {}
    while left:
        all_rounds += num_rounds
        for tenant in sorted(left, key=lambda each: (-credit[each], each)):
            credit[tenant] += num_rounds * earns[tenant]
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
        ended = {tenant for tenant in left if taken[tenant] == len(queues[tenant])}
        ended_in |= dict.fromkeys(ended, all_rounds)
        left -= ended
        heads = {tenant: queues[tenant][taken[tenant]] for tenant in left}
        if all(head > remaining for head in heads.values()):
            break
        # Rounds in which nobody can pay pass as one: who owes much waits for many.
        missing = [
            (head - credit[tenant]) / earns[tenant]
            for tenant, head in heads.items()
            if head <= remaining or may_exceed
        ]
        num_rounds = max(1, math.ceil(min(missing)))
    if may_exceed and left and remaining == budget and not any(_spent(queues, taken)):
        first = max(sorted(left), key=lambda each: credit[each])
        credit[first] -= queues[first][taken[first]]
        taken[first] += 1
    elif may_exceed and left:
        # They earn the rest of the budget, which none of their next units fits: small units that
        # come every cycle would else keep a large one out for as long as it takes to earn it all.
        rest = remaining / sum(earns[tenant] for tenant in left)
        for tenant in left:
            head, earned = queues[tenant][taken[tenant]], credit[tenant] + rest * earns[tenant]
            credit[tenant] = max(credit[tenant], min(earned, max(head, budget)))
    # Who runs no more of its own earns beside the others what it owes, or what it needs next.
    for tenant in earns.keys() - left:
        num_missed = all_rounds - ended_in.get(tenant, 0)
        earned = credit.get(tenant, credits.get(tenant, 0.0)) + num_missed * earns[tenant]
        credit[tenant] = min(earned, max(0.0, budget) if tenant in goes_on else 0.0)
    num_taken = {tenant: taken.get(tenant, 0) for tenant in costs}
    return Shares(num_taken, {t: c for t, c in credit.items() if c or t in left})


def take_room(
    costs: Mapping[str, Sequence[int]],
    free: int,
    total: int,
    credits: Mapping[str, float],
    weights: Mapping[str, float],
) -> Shares:
    """Share what is free of a memory, which grows again by itself, as ``take_fairly`` does.

    A unit that is larger than what is free waits until that has grown, but not for ever: once its
    tenant has the most credit, and as much as the unit costs or the memory holds, it gets all that
    is free. One larger than the memory, which no waiting helps, also gets that without credit when
    nobody else can run. It is charged in full, and what its tenant has not earned it owes. Nobody
    carries on more credit than the memory once: while one tenant pays what it owes, the others that
    wait earn as much, and would keep everybody new out for as long.

    Units:
        ``costs``, ``free`` and ``total`` in tokens.
    """
    shares = _room(costs, free, total, credits, weights)
    bounded = {tenant: min(credit, total) for tenant, credit in shares.credits.items()}
    return Shares(shares.num_taken, bounded)


def _room(
    costs: Mapping[str, Sequence[int]],
    free: int,
    total: int,
    credits: Mapping[str, float],
    weights: Mapping[str, float],
) -> Shares:
    due = _first(costs, credits) if free > 0 else None
    if due is not None:
        head, earned = costs[due][0], credits.get(due, 0.0)
        if head > free and earned >= min(head, total):
            return _alone(costs, due, credits)
    shares = take_fairly(costs, free, credits, weights, may_exceed=False)
    if due is None or any(shares.num_taken.values()):
        return shares
    first = _first(costs, shares.credits)
    if first is not None and costs[first][0] > total:
        return _alone(costs, first, shares.credits)
    return shares


def _first(costs: Mapping[str, Sequence[int]], credits: Mapping[str, float]) -> str | None:
    """The tenant with the most credit of those who wait; by name among equals."""
    waiting = sorted(tenant for tenant, units in costs.items() if units)
    return max(waiting, key=lambda each: credits.get(each, 0.0), default=None)


def _alone(costs: Mapping[str, Sequence[int]], tenant: str, credits: Mapping[str, float]) -> Shares:
    """One unit of one tenant, and nothing of the others."""
    left = {each: credits.get(each, 0.0) for each, units in costs.items() if units}
    left |= {each: credit for each, credit in credits.items() if credit < 0}
    left[tenant] -= costs[tenant][0]
    if len(costs[tenant]) == 1 and left[tenant] >= 0:
        del left[tenant]
    return Shares({each: int(each == tenant) for each in costs}, left)


def _spent(queues: Mapping[str, Sequence[int]], taken: Mapping[str, int]) -> list[int]:
    return [cost for tenant, units in queues.items() for cost in units[: taken[tenant]]]
