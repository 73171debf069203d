"""The store's interface in plain Python, for route tests.

It keeps what the server hands over and announces what a test settles. Ordering, leases and
atomicity are the real store's and are tested against a real Valkey.
"""

from __future__ import annotations

from cyclora_core.records import Submission
from server.doubles.accounts import ApiKeys, Audit, Metering, Secrets, Tenants, Traces
from server.doubles.checkpoints import Checkpoints, Copies
from server.doubles.fleet import BaseModels, Memory, Placements, Workers
from server.doubles.inventory import Inventory, Processes
from server.doubles.models import Models
from server.doubles.queue import Cancellations, Futures, Gaps, Operations, Queues
from server.doubles.quotas import Quotas
from server.doubles.sessions import CustomLosses, Runs, Sampling, Sessions


class StoreDouble:
    """All parts of the store that the server uses."""

    def __init__(self) -> None:
        self.tenants = Tenants()
        self.api_keys = ApiKeys(self.tenants)
        self.audit = Audit()
        self.quotas = Quotas(self.tenants)
        self.metering = Metering()
        self.traces = Traces()
        self.secrets = Secrets()
        self.sessions = Sessions()
        self.sampling = Sampling()
        self.models = Models()
        self.futures = Futures()
        self.custom_losses = CustomLosses(self.sessions, self.futures)
        self.operations = Operations(self.futures, self.models)
        self.cancellations = Cancellations(self.futures)
        self.checkpoints = Checkpoints()
        self.copies = Copies(self.models, self.checkpoints)
        self.runs = Runs(self.models, self.sessions, self.checkpoints)
        self.base_models = BaseModels()
        self.workers = Workers()
        self.placements = Placements(self.models)
        self.gaps = Gaps()
        self.queues = Queues()
        self.memory = Memory()
        self.inventory = Inventory(self.tenants, self.models, self.checkpoints)
        self.processes = Processes()

    def submitted(self, request_id: str) -> Submission:
        return self.operations.submissions[request_id]
