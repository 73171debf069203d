"""The Redis-backed state of cyclora, with its atomic steps; nothing else imports redis."""

from __future__ import annotations

from cyclora_core.clock import Clock, SystemClock
from cyclora_core.store.checkpoints import Checkpoints
from cyclora_core.store.connection import Connection
from cyclora_core.store.cycles import Cycles
from cyclora_core.store.futures import Futures
from cyclora_core.store.models import Models
from cyclora_core.store.operations import Operations
from cyclora_core.store.sessions import SamplingSessions, Sessions
from cyclora_core.store.tenants import Tenants
from cyclora_core.store.workers import BaseModels, Workers

__all__ = ["Store"]


class Store:
    """Every part of the shared state, over one connection pool."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.tenants = Tenants(connection)
        self.sessions = Sessions(connection)
        self.sampling = SamplingSessions(connection)
        self.models = Models(connection)
        self.operations = Operations(connection)
        self.futures = Futures(connection)
        self.checkpoints = Checkpoints(connection)
        self.base_models = BaseModels(connection)
        self.workers = Workers(connection)
        self.cycles = Cycles(connection)

    @classmethod
    async def open(
        cls, redis_url: str, key_prefix: str = "cyclora", clock: Clock | None = None
    ) -> Store:
        """Connect, and fail now rather than at the first request if nobody answers.

        Raises:
            Unavailable: nothing answers at ``redis_url``.
        """
        store = cls(Connection.open(redis_url, key_prefix, clock or SystemClock()))
        await store.ping()
        return store

    async def ping(self) -> None:
        await self._connection.client.ping()

    async def close(self) -> None:
        await self._connection.close()
