from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cyclora_server.settings import Settings


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Settings(pol_hold_s=3)  # type: ignore[arg-type]


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYCLORA_REDIS_URL", "unix:///run/valkey.sock")
    monkeypatch.setenv("CYCLORA_PORT", "0")

    settings = Settings()

    assert settings.redis_url == "unix:///run/valkey.sock"
    assert settings.port == 0


@pytest.mark.parametrize("field", list(Settings.model_fields))
def test_every_setting_says_what_it_means(field: str) -> None:
    assert Settings.model_fields[field].description


@pytest.mark.parametrize("hold_s", [-1.0, 45.0])
def test_a_hold_that_the_sdk_would_not_wait_for_is_refused(hold_s: float) -> None:
    with pytest.raises(ValidationError):
        Settings(poll_hold_s=hold_s)


def test_an_unknown_log_level_is_refused() -> None:
    changes: Any = {"log_level": "LOUD"}

    with pytest.raises(ValidationError):
        Settings(**changes)
