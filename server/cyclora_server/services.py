"""What every route works with, handed in by ``create_app`` and reached through one dependency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from cyclora_core.clock import Clock
from cyclora_core.health import Health
from cyclora_server.background import Background
from cyclora_server.capacity import Capacity
from cyclora_server.futures import FuturesHub
from cyclora_server.inference.tokenizer import Tokenizers
from cyclora_server.intake import BodyMemory
from cyclora_server.key_watch import KeyWatch
from cyclora_server.metrics import ServerMetrics
from cyclora_server.ports import StoragePort, StorePort
from cyclora_server.settings import Settings

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Services:
    """The collaborators of one server process."""

    settings: Settings
    store: StorePort
    storage: StoragePort
    clock: Clock
    hub: FuturesHub
    capacity: Capacity
    tokenizers: Tokenizers
    background: Background
    bodies: BodyMemory
    key_watch: KeyWatch
    metrics: ServerMetrics
    health: Health


async def _services(request: Request) -> Services:
    # FastAPI would take a plain function to another thread and back, for every request.
    return request.app.state.services


ServicesDep = Annotated[Services, Depends(_services)]
