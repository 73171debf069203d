"""Settings of the server process, read from ``CYCLORA_...`` by ``__main__`` only."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from cyclora_core.accounts import Quotas

_MIB = 1024 * 1024


class Settings(BaseSettings):
    """How one server process is reached and what it accepts."""

    model_config = SettingsConfigDict(
        env_prefix="CYCLORA_", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    redis_url: str = "redis://127.0.0.1:6379/0"
    """Where the store is: ``redis://host:port/db`` or ``unix:///path/to.sock``.

    All processes of a deployment must name the same one; otherwise nothing ever finishes.
    """

    store_timeout_s: float = Field(default=20.0, ge=5.0, le=120.0)
    """Seconds without an answer after which a connection to the store counts as dead.

    Requests are held up this long when the store's machine vanishes. Shorter than the largest
    request or result takes to be transferred, it never gets through.
    """

    key_prefix: str = "cyclora"
    """First part of every key in Redis; lets several deployments share one Redis.

    Processes that disagree about it do not see each other's work.
    """

    storage_url: str = "./cyclora-storage"
    """Folder with checkpoints and tokenizer files, shared with the workers.

    A folder that only the server sees has no tokenizer files to serve.
    """

    host: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0`` or ``::`` listens on all.

    The API key travels in clear text over plain HTTP: put TLS in front before opening it up.
    """

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes any free one, which ``ready_file`` then tells."""

    public_url: str | None = Field(default=None, pattern="^https?://[^?#]+$")
    """Base URL under which clients reach this server, such as ``https://gpu.lab/tinker``.

    Download URLs begin with it. Unset, they begin with the one that the client's request named,
    which is wrong behind a proxy that takes a path prefix away or sends another ``Host``.
    """

    download_url_ttl_s: int = Field(default=3600, ge=600, le=7 * 24 * 3600)
    """Seconds for which a download URL that was handed out can be used by whoever has it.

    Clients ask for new ones by themselves when fewer than five minutes are left; very long, one
    that got into the wrong hands serves them that much longer.
    """

    ready_file: Path | None = None
    """File that gets ``{"port": ..., "pid": ...}`` once the server listens; none if unset."""

    poll_hold_s: float = Field(default=25.0, ge=0.0, le=40.0)
    """Seconds a poll for a future that is still pending is held before it is answered.

    Shorter makes clients poll more often, and at 0 they spin without pause; the SDK gives up
    reading after 45 seconds, so longer would look like a dead server.
    """

    inference_timeout_s: float = Field(default=600.0, ge=1.0, le=86400.0)
    """Seconds that a chat or completion may take before its client gets an error instead.

    Longer than clients themselves wait (600 for OpenAI's) only keeps connections; the Tinker API
    has no such bound.
    """

    default_completion_tokens: int = Field(default=2048, ge=1)
    """Tokens that a chat answer may get when its client does not say, within the context.

    Memory for all of them is reserved at its start: large, few answers run at one time.
    """

    max_body_bytes: int = Field(default=64 * _MIB, ge=1024)
    """Largest request body accepted, in bytes as received.

    The SDK sends at most about 5 MB per request unless one datum alone is larger.
    """

    max_decoded_bytes: int = Field(default=128 * _MIB, ge=1024, le=192 * _MIB)
    """Largest request body after decompression, and largest total of its tensors, in bytes.

    Every request in flight may take this much memory; the store refuses payloads above 256 MiB.
    """

    max_bodies_bytes: int = Field(default=1024 * _MIB, ge=1024 * 1024)
    """Largest total of all request bodies in memory at one time, in bytes; half of it for one
    tenant.

    Beyond it clients are told to come back. Less than four times ``max_body_bytes``, large requests
    may wait for one another; decoding takes up to three times as much again for those in progress.
    """

    body_grace_s: float = Field(default=30.0, gt=0.0, le=3600.0)
    """Seconds that a client may be silent while it sends a body, on top of what its bytes take at
    16 KiB/s.

    Very short, clients on bad networks send again and again; very long, slow ones keep connections
    and memory.
    """

    header_timeout_s: float = Field(default=20.0, gt=0.0, le=3600.0)
    """Seconds that a connection may take until the headers of a request are complete.

    A connection that has just been answered may be silent for 75 seconds.
    """

    max_upload_bytes: int = Field(default=4096 * _MIB, ge=1024)
    """Largest adapter accepted as an upload, in bytes.

    While it is checked it takes up to three times as much of the disk; very small, adapters of
    large base models cannot be uploaded.
    """

    max_store_memory_fraction: float = Field(default=0.8, gt=0.0, le=1.0)
    """Part of the store's memory (its maxmemory, or else the machine's) up to which new work is
    accepted; beyond it clients are told to come back.

    The rest is for finishing what was accepted. At 1 nothing is kept for that, and clients see
    errors of the store instead; very small, little work can wait.
    """

    min_free_disk_bytes: int = Field(default=1024 * _MIB, ge=0)
    """Free bytes on the disk of ``storage_url`` from which on new work is accepted.

    At 0 this is never checked, and saving fails once the disk is full. Less than the checkpoints
    and snapshots of all that is running comes to nearly the same; more than the disk has refuses
    all work.
    """

    sweep_interval_s: float = Field(default=10.0, gt=0.0, le=3600.0)
    """Seconds between two looks for checkpoints and sessions that have expired.

    Checkpoints cannot be used from the moment they expire; their files, and the models of expired
    sessions, take space this much longer. Very short, it keeps the store busy.
    """

    ended_run_kept_days: float = Field(default=90.0, ge=2.0)
    """Days after its last request that a training run is still listed once it has ended and has no
    checkpoint left.

    Runs with checkpoints stay as long as these. Each takes about 3 KB of the store, so very long,
    many short runs fill it.
    """

    session_timeout_s: float = Field(default=600.0, ge=60.0)
    """Seconds without heartbeat and without a request after which a session ends.

    Queued and running work keeps it alive. The SDK sends a heartbeat every 10 seconds; shorter than
    a client's network may be away, or its machine asleep, it loses its models. Very long, what dead
    clients left takes memory and disk.
    """

    token_auth: bool = False
    """Whether clients are told to exchange their API key for a token and send that.

    ``whoami`` of the SDK and of the ``tinker`` command works only then; it costs each client one
    more request. Keys and tokens are accepted either way.
    """

    token_lifetime_s: int = Field(default=3600, ge=1800, le=86400)
    """Seconds that a token can be used; clients get a new one after about half of it.

    A token of a revoked key ends at once, however long this is.
    """

    proto_compress: bool = False
    """Whether clients are told to compress forward and backward requests.

    Saves bandwidth to remote clients and costs processor time on both sides.
    """

    new_tenant_quotas: Quotas = Quotas()
    """Quotas of a tenant when it is created, a JSON object such as ``{"max_rank": 32}``; what is
    not in it is without bound.

    Tenants that exist are not touched, whatever it says.
    """

    shutdown_grace_s: int = Field(default=10, ge=1)
    """Seconds that requests in flight get to finish when the server is told to stop.

    Held polls are answered at once; a body still being received after this is cut off.
    """

    metrics_host: str = "127.0.0.1"
    """Address of the port for metrics and probes; ``0.0.0.0`` or ``::`` listens on all.

    What is there names tenants and asks for no key: keep it from those who are not to see that.
    """

    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port for ``/metrics`` (Prometheus), ``/healthz/live`` and ``/healthz/ready``; 0 opens none.

    Processes of one machine need different ones.
    """

    max_metric_tenants: int = Field(default=100, ge=0)
    """Tenants that get metrics of their own, those seen first; the others count together as
    ``other``. Very many make Prometheus slow and large; 0 names none."""

    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """Least severe log line that is written; one line per request is ``INFO``."""

    log_json: bool = True
    """Whether log lines are JSON objects; otherwise they are laid out for a terminal."""
