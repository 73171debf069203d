from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cyclora_core.clock import ManualClock
from cyclora_core.store import Store
from cyclora_workers.base_model import BaseModel
from workers.builders import load, qwen3
from workers.harness import Harness
from workers.sampling.builders import threads


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load(qwen3(), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=[1, 2, 3])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads that torch has during the test."""
    with threads(request.param):
        yield request.param


@pytest.fixture
async def harness(
    store: Store, clock: ManualClock, tmp_path: Path, base_model: BaseModel
) -> Harness:
    """A worker that has started, with everything around it."""
    made = Harness(store, clock, tmp_path, base_model)
    await made.start_worker()
    return made
