"""Where administrators want a model to be, and where it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from cyclora_core.types import ModelRecord


class Action(StrEnum):
    """What an administrator asks to be done with a model's state."""

    LOAD = "load"
    """Have it in memory before its next operation."""
    UNLOAD = "unload"
    """Bring it to storage; its next operation loads it again, on any worker."""
    MOVE = "move"
    """Bring it to storage and then to another worker."""


@dataclass(frozen=True, slots=True)
class Wish:
    """An action, and of a move the worker that it goes to."""

    action: Action
    worker_id: str = ""

    def __str__(self) -> str:
        return f"{self.action}:{self.worker_id}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of ``str``."""
        action, _, worker_id = text.partition(":")
        return cls(Action(action), worker_id)


class Place(StrEnum):
    """Where a model's state is."""

    DEVICE = "device"
    """In the memory that its worker computes in."""
    HOST = "host"
    """In its worker's host memory, where that is another one."""
    STORAGE = "storage"
    """In storage, or still in its command log."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a worker has of a model in memory."""

    place: Place
    num_bytes: int


@dataclass(frozen=True, slots=True)
class PlacedModel:
    """A model, where it is, and where it is wanted."""

    model: ModelRecord
    held: Held
    wish: Wish | None
    note: str
    """Why the last wish was not fulfilled; "" if it was."""
