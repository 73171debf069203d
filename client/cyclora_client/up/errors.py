"""How ``cyclora up`` fails."""

from __future__ import annotations

from cyclora_core.errors import CycloraError


class UpError(CycloraError):
    """The server cannot be started or kept up; the text is for the person at the terminal."""


class ChildFailedError(UpError):
    """A child process cannot be brought up; ``log_tail`` is the end of what it wrote."""

    def __init__(self, name: str, reason: str, log_tail: str) -> None:
        super().__init__(f"{name} {reason}")
        self.log_tail = log_tail
