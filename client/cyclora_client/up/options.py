"""What ``cyclora up`` was asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cyclora_client.up.errors import UpError
from cyclora_core.types import BaseWeights, Dtype

TINY_CHAT = "cyclora/tiny-chat"

_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A base model and where its weights are: a folder, or a name on the Hugging Face hub."""

    name: str
    path: str

    @classmethod
    def parse(cls, text: str) -> ServedModel:
        """Read ``NAME=PATH_OR_HF_ID``, or ``NAME`` alone when both are the same.

        Raises:
            UpError: either part is empty.
        """
        name, separator, path = text.partition("=")
        path = path if separator else name
        if not name or not path:
            raise UpError(f"--base-model {text!r} is not of the form NAME=PATH_OR_HF_ID")
        # The worker may run in another folder, where a relative path means something else.
        return cls(name, str(Path(path).absolute()) if Path(path).is_dir() else path)


@dataclass(frozen=True, slots=True)
class Commands:
    """The programs that the supervisor runs."""

    server: Sequence[str] = (sys.executable, "-m", "cyclora_server")
    scheduler: Sequence[str] = (sys.executable, "-m", "cyclora_scheduler")
    worker: Sequence[str] = (sys.executable, "-m", "cyclora_workers")


@dataclass(frozen=True, slots=True)
class UpOptions:
    """One ``cyclora up``."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any free port, and keeps it for as long as ``up`` runs."""
    base_models: Sequence[ServedModel] = (ServedModel(TINY_CHAT, TINY_CHAT),)
    dtype: Dtype | None = None
    num_threads: int | None = None
    store_memory_bytes: int | None = None
    """Memory the store may take; None is a quarter of the machine's.

    The server refuses new work from a part of it on, and says so. Little memory holds few waiting
    requests and results; too much takes from the workers what they need.
    """
    base_weights: BaseWeights | None = None
    metrics_port: int | None = None
    """First of the ports for metrics and probes: server, scheduler, workers; None opens none."""
    commands: Commands = field(default_factory=Commands)

    def __post_init__(self) -> None:
        names = [model.name for model in self.base_models]
        if not names or len(set(names)) != len(names):
            raise UpError(f"each base model is served once, and at least one; got {names}")
        first = self.metrics_port
        if first is not None and not 0 < first <= _MAX_PORT - 1 - len(names):
            raise UpError(
                f"--metrics-port {first} leaves no port for each of {2 + len(names)} processes; "
                f"ports go from 1 to {_MAX_PORT}"
            )

    def metrics_settings(self, index: int) -> dict[str, str]:
        """Of the process that has this place among the ports for metrics."""
        if self.metrics_port is None:
            return {}
        return {"CYCLORA_METRICS_PORT": str(self.metrics_port + index)}
