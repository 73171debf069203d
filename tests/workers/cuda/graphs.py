"""Stand-ins for CUDA graphs that work on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class CallingGraph:
    """Replays by calling; writes into the output that it gave out when it recorded."""

    function: Callable[[], Tensor] | None = None
    output: Tensor = field(default_factory=lambda: torch.empty(0))
    num_replays: int = 0

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        self.function = function
        self.output = function().clone()
        return self.output

    def replay(self) -> None:
        assert self.function is not None
        self.num_replays += 1
        self.output.copy_(self.function())


class RefusingGraph(CallingGraph):
    def record(self, function: Callable[[], Tensor]) -> Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")
