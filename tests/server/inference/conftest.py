from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cyclora_core import payload
from cyclora_core.records import Submission, WorkerStatus
from cyclora_core.samples import SampleBody
from cyclora_server.settings import Settings
from server.doubles.store import StoreDouble
from server.inference.builders import CHAT, TokenizerStorage


@pytest.fixture
def settings() -> Settings:
    return Settings(default_completion_tokens=100)


@pytest.fixture
def store() -> StoreDouble:
    store = StoreDouble()
    store.base_models.records[CHAT.name] = CHAT
    store.workers.records.append(WorkerStatus("worker-2", CHAT.name, 5000, True, None, {}))
    return store


@pytest.fixture
def storage() -> TokenizerStorage:
    return TokenizerStorage()


@dataclasses.dataclass
class Submitted:
    """What the server handed to the store, in order."""

    store: StoreDouble

    @property
    def all(self) -> list[Submission]:
        return list(self.store.operations.submissions.values())

    @property
    def bodies(self) -> list[SampleBody]:
        return [SampleBody.from_payload(payload.decode(each.body)) for each in self.all]

    def settle(self, *results: Any) -> None:
        for each, result in zip(self.all, results, strict=True):
            self.store.futures.settle(each.request_id, result)


@pytest.fixture
def submitted(store: StoreDouble) -> Submitted:
    return Submitted(store)
