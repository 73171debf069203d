"""The engine alone in a process of its own, for the system to treat it as it treats a worker.

In the client's process it would share the interpreter with the SDK's threads, and on a busy machine
the session's share of the processors with whatever else was started from the same terminal.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from work import engine_step

from cyclora_core.operations import PassBody
from cyclora_workers.base_model import BaseModel


class EngineProcess:
    """Loads a model once and runs steps of whatever work it is given."""

    def __init__(self, folder: Path, dtype_name: str, num_threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, folder, dtype_name, num_threads), daemon=True
        )

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pipe.send(None)
        self._process.join()

    def steps(self, work: Sequence[PassBody], num_steps: int) -> Callable[[], None]:
        """A way to run ``num_steps`` steps of this work; the work given last is what runs."""
        self._pipe.send(work)

        def run() -> None:
            self._pipe.send(num_steps)
            self._pipe.recv()

        return run


def _serve(pipe: Connection, folder: Path, dtype_name: str, num_threads: int) -> None:
    os.setsid()
    torch.set_num_threads(num_threads)
    base_model = BaseModel.load(
        folder.name, folder, dtype=getattr(torch, dtype_name), device=torch.device("cpu")
    )
    step: Callable[[], None] | None = None
    while (message := pipe.recv()) is not None:
        if isinstance(message, int):
            assert step is not None, "work comes before steps"
            for _ in range(message):
                step()
            pipe.send(None)
        else:
            step = engine_step(base_model, [message])
