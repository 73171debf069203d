"""Whether an API key may be used: when a request comes, and for as long as it is held.

Most requests are answered before anything can happen to their key. Polls are held for a minute, and
streams and downloads go on for longer; a leaked key that was revoked must not keep them. One look
at the store tells it of all keys of this process at once, so a thousand polls cost as much as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

from cyclora_core.accounts import KeyHolder
from cyclora_core.clock import Clock, as_datetime
from cyclora_core.errors import Forbidden, Unauthorized
from cyclora_server import problems
from cyclora_server.ports import ApiKeysPort
from cyclora_server.problems import InvalidToken

LOOK_INTERVAL_S = 0.4
"""A request that is held ends within this time, and that of the look, after its key has ended."""


def why_not(
    holder: KeyHolder | None, now_ms: int, *, is_token: bool = False
) -> Unauthorized | Forbidden | None:
    """Why a key, or a token that stands for it, opens nothing now; None if it may be used."""
    if holder is not None and holder.key.is_usable(now_ms):
        tenant = holder.tenant
        if tenant.is_enabled:
            return None
        reason = tenant.disabled_reason or "ask who runs this server"
        return Forbidden(f"tenant {tenant.name!r} is disabled: {reason}")
    if is_token:
        # So the SDK exchanges its key anew, and hears what became of that one.
        return InvalidToken("the token has expired, or its API key has, or was revoked")
    if holder is None:
        return Unauthorized("the API key is unknown or was revoked")
    expires_at_ms = holder.key.expires_at_ms
    if holder.key.revoked_at_ms is not None or expires_at_ms is None:
        return Unauthorized("the API key was revoked")
    return Unauthorized(f"the API key expired at {as_datetime(expires_at_ms).isoformat()}")


class Hold:
    """One request that is held, as far as its key is concerned."""

    def __init__(self, *, is_token: bool) -> None:
        self.is_token = is_token
        self._error: Exception | None = None
        self._waits: set[asyncio.Timeout] = set()

    def check(self) -> None:
        """Raise what became of the key, if anything did."""
        if self._error is not None:
            raise self._error

    @asynccontextmanager
    async def waiting(self) -> AsyncGenerator[None, None]:
        """Wait for something no longer than the key may be used.

        Raises:
            Unauthorized, InvalidToken, Forbidden: it may not be used any more.
        """
        self.check()
        try:
            async with asyncio.timeout(None) as wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            self.check()
            raise

    def end(self, error: Exception) -> None:
        """Have every wait end now with this error, and all that come; the first error stands."""
        if self._error is not None:
            return  # its waits are ending, which cannot be asked for twice
        self._error = error
        now_s = asyncio.get_running_loop().time()
        for wait in self._waits:
            wait.reschedule(now_s)


class KeyWatch:
    """The keys behind all requests that this process holds."""

    def __init__(self, keys: ApiKeysPort, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock
        self._holds: dict[str, set[Hold]] = {}

    @contextmanager
    def holding(self, key_id: str, *, is_token: bool = False) -> Generator[Hold, None, None]:
        """Look after a request for as long as it is held."""
        hold = Hold(is_token=is_token)
        self._holds.setdefault(key_id, set()).add(hold)
        try:
            yield hold
        finally:
            self._holds[key_id].discard(hold)
            if not self._holds[key_id]:
                del self._holds[key_id]

    async def run(self) -> None:
        """Look until cancelled; a look that fails changes nothing, as for a request that comes."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - a process-long loop's boundary
                problems.report_fault(error)

    async def look(self) -> None:
        """End what is held with a key that may not be used any more."""
        if not self._holds:
            return
        key_ids = list(self._holds)
        found = {each.key.key_id: each for each in await self._keys.find(key_ids)}
        now_ms = self._clock.now_ms()
        # Not of keys that came while we looked: nothing was found out about them.
        for key_id in key_ids:
            for hold in self._holds.get(key_id, ()):
                error = why_not(found.get(key_id), now_ms, is_token=hold.is_token)
                if error is not None:
                    hold.end(error)
