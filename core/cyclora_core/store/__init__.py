"""The Redis-backed state of cyclora, with its atomic steps; nothing else imports redis."""

from __future__ import annotations

from cyclora_core.clock import Clock, SystemClock
from cyclora_core.store.api_keys import ApiKeys
from cyclora_core.store.audit import Audit
from cyclora_core.store.cancellations import Cancellations
from cyclora_core.store.checkpoints import Checkpoints
from cyclora_core.store.connection import DEFAULT_TIMEOUT_S, Connection
from cyclora_core.store.copies import Copies
from cyclora_core.store.custom_losses import CustomLosses
from cyclora_core.store.cycles import Cycles
from cyclora_core.store.futures import Futures
from cyclora_core.store.gaps import Gaps
from cyclora_core.store.handovers import Handovers
from cyclora_core.store.inventory import Inventory
from cyclora_core.store.memory import Memory
from cyclora_core.store.metering import Metering
from cyclora_core.store.models import Models
from cyclora_core.store.operations import Operations
from cyclora_core.store.placements import Placements
from cyclora_core.store.processes import Processes
from cyclora_core.store.queues import Queues
from cyclora_core.store.quotas import Quotas
from cyclora_core.store.runs import Runs
from cyclora_core.store.sampling import SamplingSessions
from cyclora_core.store.secrets import Secrets
from cyclora_core.store.sessions import Sessions
from cyclora_core.store.tenants import Tenants
from cyclora_core.store.traces import Traces
from cyclora_core.store.workers import BaseModels, Workers

__all__ = ["Store"]


class Store:
    """Every part of the shared state, over one connection pool."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.tenants = Tenants(connection)
        self.api_keys = ApiKeys(connection)
        self.audit = Audit(connection)
        self.metering = Metering(connection)
        self.quotas = Quotas(connection)
        self.secrets = Secrets(connection)
        self.sessions = Sessions(connection)
        self.sampling = SamplingSessions(connection)
        self.custom_losses = CustomLosses(connection)
        self.models = Models(connection)
        self.operations = Operations(connection)
        self.futures = Futures(connection)
        self.cancellations = Cancellations(connection)
        self.checkpoints = Checkpoints(connection)
        self.handovers = Handovers(connection)
        self.copies = Copies(connection)
        self.runs = Runs(connection, self.models, self.sessions, self.checkpoints)
        self.inventory = Inventory(connection, self.models)
        self.processes = Processes(connection)
        self.base_models = BaseModels(connection)
        self.workers = Workers(connection)
        self.cycles = Cycles(connection)
        self.placements = Placements(connection)
        self.traces = Traces(connection)
        self.gaps = Gaps(connection)
        self.queues = Queues(connection, self.base_models, self.cancellations)
        self.memory = Memory(connection)

    @classmethod
    async def open(
        cls,
        redis_url: str,
        key_prefix: str = "cyclora",
        clock: Clock | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        patience_s: float = 0.0,
    ) -> Store:
        """Connect, and fail now rather than at the first request if nobody answers.

        Units:
            ``timeout_s``: seconds without an answer after which a connection counts as dead.
            ``patience_s``: seconds that a change is repeated which the store refuses for want of
            memory or disk; ``Connection.open`` says more about both.

        Raises:
            Unavailable: nothing answers at ``redis_url``.
        """
        connection = Connection.open(
            redis_url,
            key_prefix,
            clock or SystemClock(),
            timeout_s=timeout_s,
            patience_s=patience_s,
        )
        store = cls(connection)
        await store.ping()
        return store

    @property
    def clock(self) -> Clock:
        """By which this process dates its records."""
        return self._connection.clock

    async def ping(self) -> None:
        await self._connection.ping()

    async def close(self) -> None:
        await self._connection.close()
