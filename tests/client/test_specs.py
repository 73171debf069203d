"""What ``cyclora up`` was asked for reaches its workers as settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from cyclora_client.up.errors import UpError
from cyclora_client.up.folder import DataFolder
from cyclora_client.up.options import ServedModel, UpOptions
from cyclora_client.up.specs import SHORT_WAITS, scheduler_spec, server_spec, worker_specs


def worker_settings(options: UpOptions) -> dict[str, str]:
    folder = DataFolder(options.data)
    folder.create()
    (spec,) = worker_specs(options, folder, "redis://store")
    return dict(spec.environment)


def test_a_worker_keeps_base_weights_as_up_was_asked(tmp_path: Path) -> None:
    assert worker_settings(UpOptions(tmp_path, base_weights="int4"))["CYCLORA_BASE_WEIGHTS"] == (
        "int4"
    )


def test_a_worker_has_its_own_default_where_up_was_not_asked(tmp_path: Path) -> None:
    assert "CYCLORA_BASE_WEIGHTS" not in worker_settings(UpOptions(tmp_path))


def test_a_workers_threads_wait_a_short_while_before_they_sleep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SHORT_WAITS:
        monkeypatch.delenv(name, raising=False)

    assert worker_settings(UpOptions(tmp_path)).items() >= SHORT_WAITS.items()


def test_how_a_workers_threads_wait_can_be_set_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")

    assert worker_settings(UpOptions(tmp_path))["GOMP_SPINCOUNT"] == "7"


def metrics_ports(options: UpOptions) -> list[str | None]:
    folder = DataFolder(options.data)
    folder.create()
    specs = [
        server_spec(options, folder, "redis://store"),
        scheduler_spec(options, folder, "redis://store"),
        *worker_specs(options, folder, "redis://store"),
    ]
    return [spec.environment.get("CYCLORA_METRICS_PORT") for spec in specs]


MODELS = (ServedModel("a", "a"), ServedModel("b", "b"))


def test_every_process_gets_a_port_for_metrics_of_its_own_if_up_was_asked(tmp_path: Path) -> None:
    options = UpOptions(tmp_path, base_models=MODELS, metrics_port=9464)

    assert metrics_ports(options) == ["9464", "9465", "9466", "9467"]


def test_nobody_serves_metrics_unless_up_was_asked(tmp_path: Path) -> None:
    assert metrics_ports(UpOptions(tmp_path, base_models=MODELS)) == [None] * 4


@pytest.mark.parametrize("port", [-1, 0, 65533, 70_000])
def test_ports_for_metrics_that_do_not_exist_are_refused(tmp_path: Path, port: int) -> None:
    with pytest.raises(UpError, match="each of 4 processes"):
        UpOptions(tmp_path, base_models=MODELS, metrics_port=port)
