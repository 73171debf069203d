"""A variable of ours that nobody reads ends the start of every process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from cyclora_core.environment import (
    EXIT_CONFIGURATION,
    known_names,
    settings_or_exit,
    unknown_variables,
)

PACKAGES = {
    "server": "cyclora_server",
    "scheduler": "cyclora_scheduler",
    "workers": "cyclora_workers",
}
ROOT = Path(__file__).parents[2]


class Example(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="CYCLORA_", extra="forbid")

    port: int = Field(default=8000, le=65535)
    redis_url: str = Field(default="redis://127.0.0.1", pattern="^redis://")


def test_a_misspelt_variable_is_named_together_with_the_nearest_known_one() -> None:
    [message] = unknown_variables({"CYCLORA_POL_HOLD_S": "3"})

    assert (
        message == "CYCLORA_POL_HOLD_S is no setting of cyclora; did you mean CYCLORA_POLL_HOLD_S?"
    )


def test_a_variable_like_nothing_known_points_to_the_list() -> None:
    [message] = unknown_variables({"CYCLORA_XYZZY": "3"})

    assert message.endswith("deploy/env.example lists all")


def test_variables_of_every_process_and_of_the_client_are_accepted_by_all() -> None:
    names = ["CYCLORA_POLL_HOLD_S", "CYCLORA_IDLE_WAIT_S", "CYCLORA_DTYPE", "CYCLORA_ADMIN_KEY"]

    assert unknown_variables(dict.fromkeys(names, "")) == []


def test_variables_of_others_are_not_ours_to_judge() -> None:
    assert unknown_variables({"TINKER_API_KEY": "", "PATH": "", "CYCLORAMA": ""}) == []


def test_lower_case_is_read_and_judged_alike() -> None:
    variables = {"cyclora_port": "1", "cyclora_prot": "1"}

    assert [line.split()[0] for line in unknown_variables(variables)] == ["cyclora_prot"]


def test_values_of_unknown_variables_are_not_shown() -> None:
    """What is misspelt may be a password."""
    [message] = unknown_variables({"CYCLORA_REDIS_PASSWORD": "hush"})

    assert "hush" not in message


def test_variables_that_kubernetes_makes_of_services_are_explained() -> None:
    [message] = unknown_variables({"CYCLORA_SERVER_PORT": "tcp://10.0.0.1:8000"})

    assert "enableServiceLinks: false" in message


def test_all_that_is_wrong_is_said_at_once_and_no_process_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CYCLORA_PROT", "1")
    monkeypatch.setenv("CYCLORA_PORT", "70000")
    monkeypatch.setenv("CYCLORA_REDIS_URL", "rediss://:hush@store")

    with pytest.raises(SystemExit) as ended:
        settings_or_exit(Example)

    assert ended.value.code == EXIT_CONFIGURATION
    unknown, port, url = capsys.readouterr().err.splitlines()
    assert unknown.startswith("error: CYCLORA_PROT is no setting")
    assert port == "error: CYCLORA_PORT: input should be less than or equal to 65535, got '70000'"
    assert url.startswith("error: CYCLORA_REDIS_URL: string should match pattern")
    assert "hush" not in url


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES.values())
def test_every_process_refuses_what_nobody_knows(package: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", package],
        env={**os.environ, "CYCLORA_LESAE_S": "3", "CYCLORA_ADMIN_KEY": "tml-x"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ended.returncode == EXIT_CONFIGURATION
    assert ended.stderr == (
        "error: CYCLORA_LESAE_S is no setting of cyclora; did you mean CYCLORA_LEASE_S?\n"
    )


def test_no_source_reads_a_variable_that_is_not_on_the_list() -> None:
    """Options and settings are collected; a variable that is read past them would be refused."""
    found: set[str] = set()
    for folder in ("core", "client", *PACKAGES):
        for source in (ROOT / folder).rglob("*.py"):
            found |= set(re.findall(r'"(CYCLORA_[A-Z_]*[A-Z])"', source.read_text()))

    assert found - known_names() == set()
