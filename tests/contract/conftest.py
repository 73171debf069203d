"""The whole server as a user starts it, once per test session, and SDK clients against it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tinker

from contract.compatibility.plugin import pytest_runtest_call, pytest_sessionfinish
from cyclora_client.admin import AdminClient

__all__ = ["pytest_runtest_call", "pytest_sessionfinish"]  # hooks of this folder's tests

BASE_MODEL = "cyclora/tiny-chat"
_STOP_TIMEOUT_S = 30.0


@dataclass
class Running:
    """A running ``cyclora up``."""

    process: subprocess.Popen[str]
    folder: Path
    ready: dict[str, Any]
    api_keys: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def base_url(self) -> str:
        return self.ready["base_url"]

    def api_key(self, tenant: str) -> str:
        """The key of a tenant of this name, made on first use."""
        if tenant not in self.api_keys:
            with self.admin() as admin:
                record = admin.tenants.create(tenant)
                self.api_keys[tenant] = admin.keys.create(record.tenant_id, "test").api_key
        return self.api_keys[tenant]

    def admin(self) -> AdminClient:
        return AdminClient(self.base_url, self.ready["admin_key"])

    def service(self, tenant: str = "tenant") -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=self.base_url, api_key=self.api_key(tenant))

    def rest(self, tenant: str = "tenant") -> tinker.RestClient:
        return tinker.RestClient(base_url=self.base_url, api_key=self.api_key(tenant))

    def cycles(self) -> list[dict[str, Any]]:
        """The cycle log lines so far."""
        lines = (self.folder / "logs" / "scheduler.log").read_text().splitlines()
        rows = [json.loads(line) for line in lines if line.startswith("{")]
        return [row for row in rows if row.get("event") == "cycle planned"]


@contextlib.contextmanager
def run_up(
    folder: Path, *arguments: str, variables: Mapping[str, str] | None = None
) -> Generator[Running]:
    """Start ``cyclora up --json`` on a folder, and stop it with Ctrl-C.

    ``variables`` are settings of its processes that have no option.
    """
    command = [sys.executable, "-m", "cyclora_client", "up", "--json", "--port", "0"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CYCLORA_")}
    environment |= variables or {}
    with (folder.parent / f"{folder.name}.stderr").open("w") as errors:
        process = subprocess.Popen(
            [*command, "--data", str(folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (folder.parent / f"{folder.name}.stderr").read_text()[-4000:]
        yield Running(process, folder, json.loads(line))
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_TIMEOUT_S)
        finally:
            process.kill()
            process.stdout.close()


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_up(tmp_path_factory.mktemp("up") / "data") as running:
        yield running


@pytest.fixture
def service(up: Running) -> tinker.ServiceClient:
    return up.service()


@pytest.fixture
def new_model(up: Running) -> Callable[..., tinker.TrainingClient]:
    """Training clients, by tenant and lora_rank."""

    def make(
        tenant: str = "tenant", rank: int = 8, seed: int | None = 0, **options: Any
    ) -> tinker.TrainingClient:
        return (
            up.service(tenant)
            .create_lora_training_client(BASE_MODEL, rank=rank, seed=seed, **options)
            .result()
        )

    return make
