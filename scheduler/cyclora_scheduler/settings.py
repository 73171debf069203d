"""Settings of the scheduler process; read from the environment in ``__main__`` only."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_LOOK_WITHIN = 0.75
"""Part of its lease after which a leader has looked again; the rest is for a slow answer."""


class SchedulerSettings(BaseSettings):
    """Prefix ``CYCLORA_``."""

    model_config = SettingsConfigDict(
        env_prefix="CYCLORA_", extra="forbid", use_attribute_docstrings=True
    )

    redis_url: str = "redis://127.0.0.1:6379/0"
    """Where the store is: ``redis://host:port/db`` or ``unix:///path/to/socket``."""

    store_timeout_s: float = Field(default=20.0, ge=5.0, le=120.0)
    """Seconds without an answer after which a connection to the store counts as dead.

    Nothing is planned this long when the store's machine vanishes. Shorter than the largest
    request or result takes to be transferred, it never gets through.
    """

    key_prefix: str = "cyclora"
    """Prefix of every Redis key; deployments that share a Redis need different ones."""

    coalesce_ms: float = Field(default=4.0, ge=0.0, le=100.0)
    """Milliseconds to wait for company when little is waiting.

    0 starts at once and may part an optim_step from the forward_backward just before it; much
    more than a few is felt as latency by a lone client.
    """

    company_ms: float = Field(default=50.0, ge=0.0, le=1000.0)
    """Longest wait, in milliseconds, for the models of a worker's last cycle to come back; never
    more than half that cycle's length, nor than a tenth while much else is waiting.

    0 lets clients that await their results take turns instead of sharing cycles.
    """

    target_cycle_s: float = Field(default=2.0, gt=0.0, le=60.0)
    """Seconds of passes one cycle should take at the measured speed.

    Longer lets a large operation hold up small ones; much shorter spends more on overhead.
    """

    min_cycle_tokens: int = Field(default=2048, ge=1)
    """Least token budget of a cycle, however slow the worker; also used before the first
    measurement."""

    max_cycle_tokens: int = Field(default=262_144, ge=1)
    """Greatest token budget of a cycle, however fast the worker."""

    scheduler_name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    """Stable name of this scheduler's place; a new process of the name leads at once in the stead
    of an earlier one that led.

    Empty waits for the lease of whoever led to end. A standby needs another name: of two with the
    same name the one that started last leads.
    """

    leader_lease_s: float = Field(default=5.0, gt=0.0)
    """Seconds after which a standby scheduler takes over from a silent leader.

    Shorter takes over faster; shorter than a pause of the process makes two take turns.
    """

    gap_timeout_s: float = Field(default=600.0, gt=0.0)
    """Seconds that requests of a model wait for an earlier one that has not arrived.

    Then they fail with a clear error and the model goes on. Shorter than the five minutes for
    which the SDK repeats a submission gives up on requests that are still coming. A scheduler that
    takes over counts anew.
    """

    idle_wait_s: float = Field(default=0.5, gt=0.0, le=2.0)
    """Longest wait between two looks at the workers' leases when nothing else happens.

    A leader renews its own lease at each look, so this is less than three quarters of
    ``leader_lease_s``; a longer one would lead and lose the lead in turns.
    """

    ready_file: Path | None = None
    """File to write once running, for a supervisor that waits for it."""

    metrics_host: str = "127.0.0.1"
    """Address of the port for metrics and probes; ``0.0.0.0`` or ``::`` listens on all.

    What is there names tenants and asks for no key: keep it from those who are not to see that.
    """

    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port for ``/metrics`` (Prometheus), ``/healthz/live`` and ``/healthz/ready``; 0 opens none.

    Processes of one machine need different ones.
    """

    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """DEBUG, INFO, WARNING or ERROR."""

    log_json: bool = True
    """JSON lines; false prints for a terminal."""

    @model_validator(mode="after")
    def _looks_within_its_lease(self) -> Self:
        if self.idle_wait_s >= _LOOK_WITHIN * self.leader_lease_s:
            raise ValueError(
                f"CYCLORA_IDLE_WAIT_S={self.idle_wait_s:g} must be less than {_LOOK_WITHIN:g} of "
                f"CYCLORA_LEADER_LEASE_S={self.leader_lease_s:g}: else a leader loses its lease "
                "while nothing happens"
            )
        return self
