"""What deploy/compose.yaml says, against the settings classes and the images it builds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from pydantic_settings import BaseSettings

from cyclora_client.up import valkey
from cyclora_core import __version__
from cyclora_core.environment import unknown_variables
from cyclora_scheduler.settings import SchedulerSettings
from cyclora_server.settings import Settings
from cyclora_workers.settings import WorkerSettings
from deploy import compose_file
from deploy.compose_file import Service

SETTINGS: Mapping[str, type[BaseSettings]] = {
    "server": Settings,
    "scheduler": SchedulerSettings,
    "worker": WorkerSettings,
}
SERVICES = compose_file.load()
OURS = [service for service in SERVICES.values() if service.is_built]
ROOT = compose_file.FILE.parents[1]


@pytest.fixture
def compose() -> list[str]:
    """Compose's own command line, which this machine may not have; no test needs its engine."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            shown = subprocess.run(
                [*command, "version"], capture_output=True, text=True, check=False
            )
            if re.search(r"\bv?[2-9]\d*\.\d+", shown.stdout):
                return command
    pytest.skip("no Docker Compose 2 here; the other tests read the file by themselves")


def test_compose_itself_understands_the_file(compose: list[str]) -> None:
    profiles = sorted({profile for each in SERVICES.values() for profile in each.profiles})
    options = [word for profile in profiles for word in ("--profile", profile)]

    ran = subprocess.run(
        [*compose, "-f", str(compose_file.FILE), *options, "config", "--services"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) == set(SERVICES)


@pytest.mark.parametrize("service", OURS, ids=lambda each: each.name)
def test_every_variable_is_a_setting_that_takes_its_value(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("CYCLORA_")]:
        monkeypatch.delenv(name)
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)

    assert unknown_variables(service.environment) == []
    assert service.process in SETTINGS
    SETTINGS[service.process]()


@pytest.mark.parametrize("service", OURS, ids=lambda each: each.name)
def test_a_process_runs_with_as_few_rights_as_it_can(service: Service) -> None:
    assert service.raw["read_only"]
    assert service.raw["cap_drop"] == ["ALL"]
    assert service.raw["security_opt"] == ["no-new-privileges:true"]
    assert "/tmp" in service.raw["tmpfs"]


@pytest.mark.parametrize("service", SERVICES.values(), ids=lambda each: each.name)
def test_every_image_is_pinned_and_every_service_starts_again(service: Service) -> None:
    tag = service.image.partition(":")[2]

    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)
    assert service.raw["restart"] == "unless-stopped"
    if service.is_built:
        assert tag == __version__


def test_services_get_longer_to_stop_than_they_take_to() -> None:
    server, worker = Settings(), WorkerSettings()

    assert SERVICES["server"].stop_grace_s >= server.shutdown_grace_s + 5
    for service in OURS:
        if service.process == "worker":
            # Besides samples there is the cycle that runs, and states to write.
            assert service.stop_grace_s >= worker.drain_s + 60


def test_the_store_loses_nothing_and_evicts_nothing() -> None:
    command = list(SERVICES["store"].command)
    given = {
        option.removeprefix("--"): value
        for option, value in zip(command[1::2], command[2::2], strict=True)
    }
    as_up_does = ("appendonly", "appendfsync", "save", "maxmemory-policy")

    assert {name: given[name] for name in as_up_does} == {
        name: valkey._SETTINGS[name]  # pyright: ignore[reportPrivateUsage]
        for name in as_up_does
    }
    assert given["maxmemory"] == "4gb"
    assert "/data" in SERVICES["store"].volumes


def test_only_the_proxy_can_be_reached_from_outside() -> None:
    published = {name: s.raw["ports"] for name, s in SERVICES.items() if "ports" in s.raw}

    assert set(published) == {"caddy", "grafana"}
    assert all(port.startswith("127.0.0.1:") for port in published["grafana"])


def test_schedulers_and_workers_have_names_of_their_own() -> None:
    for variable, process in (
        ("CYCLORA_SCHEDULER_NAME", "scheduler"),
        ("CYCLORA_WORKER_NAME", "worker"),
    ):
        names = [each.environment[variable] for each in OURS if each.process == process]
        assert len(names) == len(set(names)) > 1
        assert all(names)


def test_every_gpu_has_one_worker_and_a_profile() -> None:
    workers = [service for service in OURS if service.environment.get("CYCLORA_DEVICE") == "cuda"]
    taken: list[str] = []
    for service in workers:
        [device] = service.raw["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
        assert service.raw["build"]["args"] == {"DEVICE": "cuda"}
        [index] = device["device_ids"]
        assert service.profiles == [f"gpu{index}"]
        taken.append(index)

    assert taken == [str(index) for index in range(8)]


def test_the_profile_without_a_gpu_serves_the_built_in_model() -> None:
    worker = SERVICES["worker-cpu"]

    assert worker.profiles == ["cpu"]
    assert worker.raw["build"]["args"] == {"DEVICE": "cpu"}
    assert worker.environment["CYCLORA_DEVICE"] == "cpu"
    assert WorkerSettings().base_model_path == "cyclora/tiny-chat"


def test_workers_wait_a_short_while_as_under_up() -> None:
    from cyclora_client.up.specs import SHORT_WAITS

    for service in OURS:
        if service.process == "worker":
            assert {n: service.environment[n] for n in SHORT_WAITS} == SHORT_WAITS


def test_all_that_must_last_lies_in_volumes() -> None:
    for service in OURS:
        if service.process in ("server", "worker"):
            assert service.volumes["/storage"] == "storage"
            assert service.environment["CYCLORA_STORAGE_URL"] == "/storage"


def test_what_is_mounted_from_the_repository_is_there() -> None:
    """Except for what operators bring: models."""
    for service in SERVICES.values():
        for target, source in service.volumes.items():
            if source.startswith("./") and target != "/models":
                assert (compose_file.FILE.parent / source).exists(), source


def test_prometheus_finds_every_process_by_its_name() -> None:
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    asked: set[str] = set()
    for job in prometheus["scrape_configs"]:
        [found] = job["dns_sd_configs"]
        asked |= set(found["names"])
        assert found["port"] == 9464
        assert job["job_name"] in SETTINGS

    names = {
        alias
        for service in OURS
        for alias in service.raw.get("networks", {"default": {"aliases": [service.name]}})[
            "default"
        ]["aliases"]
    }
    assert asked == names
    assert {service.environment["CYCLORA_METRICS_PORT"] for service in OURS} == {"9464"}


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    [datasource] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "cyclora.yml").read_text())[
        "providers"
    ]

    assert datasource["url"] == "http://prometheus:9090"
    assert "prometheus" in SERVICES
    assert SERVICES["grafana"].volumes[provider["options"]["path"]] == "./grafana/dashboards"


def test_what_operators_write_is_kept_out_of_the_repository() -> None:
    for name in ("deploy/.env", "deploy/cyclora.env"):
        ran = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False)
        assert ran.returncode == 0, name


def test_the_file_and_its_images_hold_no_secret() -> None:
    text = Path(compose_file.FILE).read_text()

    for line in text.splitlines():
        if re.search(r"(PASSWORD|_KEY|SECRET|TOKEN)", line):
            assert "${" in line, line
