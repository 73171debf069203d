"""The settings in force."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic.dataclasses import dataclass

from cyclora_client.admin.http import AdminHttp, read


@dataclass(frozen=True)
class ProcessSettings:
    """The settings with which a process started."""

    kind: str
    name: str
    started_at: datetime
    settings: dict[str, Any]


@dataclass(frozen=True)
class SettingsInForce:
    """Those of the server that was asked, and of schedulers and workers; secrets are hidden."""

    server: dict[str, Any]
    processes: list[ProcessSettings]


class Settings:
    """``/admin/v1/settings``."""

    def __init__(self, http: AdminHttp) -> None:
        self._http = http

    def get(self) -> SettingsInForce:
        return read(SettingsInForce, self._http.call("GET", "settings"))
