"""Bodies on their way in: how much memory they take together, and how slowly they may come.

Every request is bounded by itself; thousands at once, or a few that trickle for hours, are bounded
here. What is refused for want of room is back-pressure, as in ``capacity``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator

from cyclora_core.errors import Overloaded, Unavailable

MIN_BYTES_PER_S = 16 * 1024
"""A body that comes more slowly than this, its grace over, is cut off."""

_MAX_TENANT_FRACTION = 0.5
"""Of all memory for bodies; the others keep the rest."""


class TooSlow(Unavailable):
    """A client took too long to send its body; nothing of it was used."""


async def in_time(chunks: AsyncIterator[bytes], grace_s: float) -> AsyncGenerator[bytes]:
    """The chunks of a body, as long as they come fast enough.

    Only waiting for the client counts, not what is done with a chunk in between.

    Raises:
        TooSlow: we waited for longer than the grace and the bytes received so far allow.
    """
    loop = asyncio.get_running_loop()
    coming = aiter(chunks)
    waited_s, num_bytes = 0.0, 0
    while True:
        allowed_s = grace_s + num_bytes / MIN_BYTES_PER_S
        began_s = loop.time()
        try:
            async with asyncio.timeout(allowed_s - waited_s):
                chunk = await anext(coming)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise TooSlow(
                f"the body came too slowly: {num_bytes} bytes in {allowed_s:.0f} s; send at least "
                f"{MIN_BYTES_PER_S} bytes/s"
            ) from None
        waited_s += loop.time() - began_s
        num_bytes += len(chunk)
        yield chunk


class BodyMemory:
    """Bytes of all bodies that this process holds, each until its request is answered."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._by_tenant: Counter[str] = Counter()
        self._total_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self._total_bytes

    def hold(self, tenant_id: str) -> HeldBody:
        """Nothing yet; what is taken is given back by ``release``."""
        return HeldBody(self, tenant_id)

    def take(self, tenant_id: str, num_bytes: int) -> None:
        """Count bytes that came in.

        Raises:
            Overloaded: with them, the bodies of the tenant or of all would take too much.
        """
        of_tenant = self._by_tenant[tenant_id] + num_bytes
        is_too_much = self._total_bytes + num_bytes > self._limit_bytes
        if is_too_much or of_tenant > _MAX_TENANT_FRACTION * self._limit_bytes:
            whose = "all requests" if is_too_much else "your requests"
            raise Overloaded(
                f"the bodies of {whose} in flight take all the memory there is for them "
                f"({self._limit_bytes} bytes, half of it for one tenant); try again when some of "
                "them were answered"
            )
        self._by_tenant[tenant_id] = of_tenant
        self._total_bytes += num_bytes

    def give_back(self, tenant_id: str, num_bytes: int) -> None:
        self._total_bytes -= num_bytes
        self._by_tenant[tenant_id] -= num_bytes
        if not self._by_tenant[tenant_id]:
            del self._by_tenant[tenant_id]


class HeldBody:
    """What one request has taken."""

    def __init__(self, memory: BodyMemory, tenant_id: str) -> None:
        self._memory = memory
        self._tenant_id = tenant_id
        self._num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Count more bytes.

        Raises:
            Overloaded: there is no room for them.
        """
        self._memory.take(self._tenant_id, num_bytes)
        self._num_bytes += num_bytes

    def release(self) -> None:
        """Give back all of it; once is enough."""
        if self._num_bytes:
            self._memory.give_back(self._tenant_id, self._num_bytes)
        self._num_bytes = 0
