"""What ``cyclora up`` was asked for reaches its workers as settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from cyclora_client.up.folder import DataFolder
from cyclora_client.up.options import UpOptions
from cyclora_client.up.specs import SHORT_WAITS, worker_specs


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
