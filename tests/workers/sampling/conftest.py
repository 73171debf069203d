from __future__ import annotations

from collections.abc import Iterator

import pytest

from workers.sampling.builders import TinyModel, load, threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return load("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return load("qwen2", tmp_path_factory.mktemp("qwen2"))
