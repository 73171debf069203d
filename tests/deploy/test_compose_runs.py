"""deploy/compose.yaml as it is: its commands and environment, run as processes of this machine.

They run from environments that hold the built wheel and what its extras require, as the images do.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cyclora_client.admin import AdminClient
from cyclora_core.ids import CheckpointPath
from cyclora_core.storage import Storage
from cyclora_core.store import Store
from deploy import compose_file
from deploy.native import DEADLINE_S, NativeCompose, run_client
from deploy.proxy import Proxy, proxied

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CLIENT = Path(__file__).with_name("client.py")
SERVICES = ["store", "worker-cpu", "scheduler", "scheduler-standby", "server"]
"""What the profile cpu runs of ours."""


@dataclass
class Deployed:
    """Services that run, and a tenant that knows the proxy's address and an API key."""

    compose: NativeCompose
    api_key: str
    proxy: Proxy
    python: Path

    def client(self, step: str, *arguments: str) -> Any:
        return run_client(self.python, CLIENT, self.arguments(step, *arguments), self.variables)

    def arguments(self, step: str, *more: str) -> list[str]:
        return [step, self.proxy.base_url, self.api_key, *more]

    @property
    def variables(self) -> dict[str, str]:
        return {"SSL_CERT_FILE": str(self.proxy.authority)}


@pytest.fixture(scope="module")
def deployed(
    pythons: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("compose")
    services = compose_file.load()
    with NativeCompose(folder / "first", pythons) as compose:
        compose.start(services[name] for name in SERVICES)
        compose.wait_healthy(*SERVICES)
        api_key = first_tenant(compose)
        with proxied(folder / "caddy", compose.port("server")) as proxy:
            yield Deployed(compose, api_key, proxy, pythons["client"])


def first_tenant(compose: NativeCompose) -> str:
    """An API key, made with the admin key that the server's container prints once."""
    made = subprocess.run(
        ["docker", "compose", "exec", "server", "cyclora", "admin", "bootstrap", "--json"],
        env={**compose.programs_for(["server"]), **compose.running["server"].environment},
        capture_output=True,
        check=True,
        timeout=DEADLINE_S,
    )
    [made_key] = json.loads(made.stdout)
    base_url = f"http://127.0.0.1:{compose.port('server')}"
    with AdminClient(base_url, made_key["admin_key"]) as admin:
        tenant = admin.tenants.create("lab")
        return admin.keys.create(tenant.tenant_id, "laptop").api_key


def test_a_tenant_trains_and_samples_through_tls(deployed: Deployed) -> None:
    seen = deployed.client("train")

    assert seen["losses"][1] < seen["losses"][0]
    assert seen["tokens"]


def test_one_scheduler_leads_and_the_standby_takes_over_when_it_stops(deployed: Deployed) -> None:
    compose = deployed.compose

    assert compose.stop("scheduler") == {"scheduler": 0}

    seen = deployed.client("train")
    assert len(seen["losses"]) == 2
    compose.start([compose_file.load()["scheduler"]])


def test_a_body_that_is_too_large_gets_the_servers_own_answer(deployed: Deployed) -> None:
    """The proxy passes bodies on as they come; only the server says what is allowed."""
    body = b" " * (64 * 1024 * 1024 + 1)

    answer = deployed.proxy.post("/api/v1/create_session", body, deployed.api_key)

    assert answer.status_code == 413
    assert "detail" in answer.json()


def test_a_backup_of_a_running_deployment_restores_to_one_that_goes_on(
    deployed: Deployed, pythons: Mapping[str, Path], tmp_path: Path
) -> None:
    """The commands of docs/operating.md, with checkpoints replaced and deleted all the while."""
    trained = deployed.client("train")
    busy = subprocess.Popen(
        [str(deployed.python), str(CLIENT), *deployed.arguments("keep_on")],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **deployed.variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert busy.stdout is not None
    assert json.loads(busy.stdout.readline())["run"] > 0

    run_script("backup.sh", deployed.compose, tmp_path / "backup")

    output, _ = busy.communicate("enough\n", timeout=DEADLINE_S)
    assert busy.returncode == 0
    assert json.loads(output.splitlines()[-1])["steps"] > 0
    with NativeCompose(tmp_path / "second", pythons) as restored:
        services = compose_file.load()
        run_script("restore.sh", restored, tmp_path / "backup")
        restored.start(services[name] for name in SERVICES)
        restored.wait_healthy(*SERVICES)
        url = restored.running["server"].environment["CYCLORA_REDIS_URL"]
        assert asyncio.run(missing_files(url, restored.storage)) == []
        base_url = f"http://127.0.0.1:{restored.port('server')}"
        arguments = ["proceed", base_url, deployed.api_key, trained["path"]]
        seen = run_client(deployed.python, CLIENT, arguments)
        assert set(restored.stop().values()) == {0}

    assert seen["losses"] == trained["losses"][1:]


def test_a_backup_that_could_not_be_of_one_moment_is_refused(
    deployed: Deployed, tmp_path: Path
) -> None:
    """The store takes writes again by itself when the pause is over."""
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run_script("backup.sh", deployed.compose, tmp_path, PAUSE_S="0")

    assert b"PAUSE_S=0" in refused.value.stderr
    assert list(tmp_path.iterdir()) == []
    assert not (deployed.compose.storage / ".backup").exists()


def test_a_restore_into_a_place_that_holds_something_is_refused(
    deployed: Deployed, tmp_path: Path
) -> None:
    for name in ("store.rdb", "storage.tar"):
        (tmp_path / name).write_bytes(b"x")

    with pytest.raises(subprocess.CalledProcessError) as refused:
        run_script("restore.sh", deployed.compose, tmp_path)

    assert b"exist" in refused.value.stderr


def run_script(name: str, compose: NativeCompose, folder: Path, **variables: str) -> None:
    """One of the scripts in deploy/, with ``docker`` meaning the folders of this machine."""
    for service in ("store", "server"):
        for path in ("/data", "/storage"):
            compose.place(service, path).mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [str(ROOT / "deploy" / name), str(folder)],
        env=compose.programs_for(["store", "server"]) | variables,
        check=True,
        capture_output=True,
        timeout=DEADLINE_S,
    )


async def missing_files(redis_url: str, folder: Path) -> list[str]:
    """Checkpoints and snapshots that the store knows and storage does not have as a whole."""
    store, storage = await Store.open(redis_url, "cyclora"), Storage(folder)
    missing: list[str] = []
    num_checkpoints = 0
    try:
        for tenant in await store.tenants.list():
            checkpoints, _ = await store.checkpoints.list(tenant.tenant_id, 0, 1000)
            num_checkpoints += len(checkpoints)
            for each in checkpoints:
                files = storage.checkpoint_files(CheckpointPath.parse(each.path), each.revision)
                if sum(file.num_bytes for file in files) != each.num_bytes:
                    missing.append(each.path)
            models, _ = await store.models.list(tenant.tenant_id, 0, 1000)
            for model in models:
                place = (model.model_id, model.snapshot_seq_id, model.snapshot_epoch)
                if model.snapshot_seq_id >= 0 and not storage.snapshot_dir(*place).is_dir():
                    missing.append(f"snapshot of {model.model_id}")
    finally:
        await store.close()
    assert num_checkpoints > 0
    return missing
