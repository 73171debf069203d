"""The weights of tenants that have work waiting, read again twice a second."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cyclora_core.clock import Clock
from cyclora_core.store import Store
from cyclora_core.waiting import Waiting

_FRESH_S = 0.5
"""A weight that an administrator changes acts within a second."""


class TenantWeights:
    """What the planner asks for, without a look at the store for every cycle."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[str, float] = {}
        self._read_at_s = float("-inf")

    async def of(self, tenant_ids: Iterable[str]) -> Mapping[str, float]:
        """Weights of these tenants; of one that does not exist 1."""
        wanted = set(tenant_ids)
        if self._clock.mono_s() - self._read_at_s >= _FRESH_S:
            self._known = {}
            self._read_at_s = self._clock.mono_s()
        missing = sorted(wanted - self._known.keys())
        if missing:
            found = await self._store.cycles.weights(missing)
            self._known |= {tenant_id: found.get(tenant_id, 1.0) for tenant_id in missing}
        return {tenant_id: self._known[tenant_id] for tenant_id in wanted}


def tenants_of(waiting: Waiting) -> set[str]:
    """Whose work waits."""
    samples = {sample.operation.tenant_id for sample in waiting.samples}
    return {model.tenant_id for model in waiting.models} | samples
