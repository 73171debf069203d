"""Settings of a worker process; read from the environment in ``__main__`` only."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from cyclora_core.types import BaseWeights, Dtype


class WorkerSettings(BaseSettings):
    """Prefix ``CYCLORA_``."""

    model_config = SettingsConfigDict(
        env_prefix="CYCLORA_", extra="forbid", use_attribute_docstrings=True
    )

    redis_url: str = "redis://127.0.0.1:6379/0"
    """Where the store is: ``redis://host:port/db`` or ``unix:///path/to/socket``."""

    store_timeout_s: float = Field(default=20.0, ge=5.0, le=120.0)
    """Seconds without an answer after which a connection to the store counts as dead.

    Nothing is settled this long when the store's machine vanishes. Shorter than the largest
    result takes to be transferred, it never gets through.
    """

    key_prefix: str = "cyclora"
    """Prefix of every Redis key; deployments that share a Redis need different ones."""

    storage_url: Path = Path("./cyclora-storage")
    """Folder of checkpoints and snapshots, the same for all processes of a deployment."""

    base_model: str = "cyclora/tiny-chat"
    """Name under which tenants ask for this worker's base model."""

    base_model_path: str = "cyclora/tiny-chat"
    """Folder or Hugging Face id of its weights and tokenizer."""

    worker_name: str = "worker-0"
    """Stable name of this worker's place; a new process of the name replaces the old one."""

    dtype: Dtype = "auto"
    """Precision of the base model: auto is bfloat16 on a GPU, and on a CPU with instructions for it
    when the hidden size is at least 512; otherwise float32."""

    base_weights: BaseWeights = "as_loaded"
    """How the linear layers of the base model are kept: as_loaded in dtype, int8 and int4 in fewer
    bits. Fewer bits take less memory, cost time in every pass and change the base model a little,
    most in int4; adapters and activations stay as they are."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""

    num_threads: int = Field(default=0, ge=0)
    """CPU threads of one operator; 0 leaves the choice to torch. More than the machine's cores
    slows everything down."""

    max_lora_rank: int = Field(default=128, ge=1)
    """Largest lora_rank a tenant may ask for; adapter memory grows in proportion."""

    max_context_length: int = Field(default=0, ge=0)
    """Longest sequence in tokens; 0 takes the base model's own bound."""

    max_tokens_per_microbatch: int = Field(default=0, ge=0)
    """Tokens of one packed forward and backward. More needs more memory for activations; fewer
    pays the overhead of a pass more often.

    0 chooses at the start, from what a token was measured to need and half of the free memory. In
    either case a microbatch that needs more than that half computes its layers a second time.
    """

    max_kv_tokens: int = Field(default=65_536, ge=16)
    """Tokens of KV cache shared by all running samples and known prefixes; the rest wait. More
    needs memory; with little, samples make way for one another and compute tokens twice."""

    decode_steps_per_microbatch: int = Field(default=4, ge=0)
    """Decode steps between two training microbatches while both have work.

    0 lets samples stand still until the cycle's passes are done.
    """

    max_cached_samplers: int = Field(default=64, ge=1)
    """Frozen adapter copies kept for sampling; others are read from storage again."""

    max_adapter_bytes: int = Field(default=4 * 1024**3, ge=0)
    """Memory for the states of adapters, in bytes; beyond it those used longest ago are written
    to storage and read again when needed. The models of one cycle are in memory together, however
    little this is; more than the machine has ends in out-of-memory."""

    max_host_adapter_bytes: int = Field(default=4 * 1024**3, ge=0)
    """Host memory, in bytes, for states that left a GPU and for those of waiting models that are
    read from storage ahead of their cycle. 0 reads each when it is needed."""

    max_replay_s: float = Field(default=20.0, gt=0.0)
    """Seconds that replaying a model's log may take; a snapshot is begun when it would exceed
    them. Shorter recovers faster and writes more."""

    drain_s: float = Field(default=15.0, ge=0.0)
    """Seconds that running samples get to finish when the worker is told to stop; those that
    have not finished then are begun anew by the next worker. Longer than the supervisor waits
    before it kills gains nothing."""

    lease_s: float = Field(default=10.0, gt=0.0)
    """Seconds a worker may go silent before its work is given to another.

    Shorter recovers faster; shorter than a pause of the process hands out work twice, which
    costs time but no correctness, since the first worker can no longer settle it.
    """

    max_engine_call_s: float = Field(default=600.0, ge=30.0)
    """Seconds that one call of the engine (a microbatch, some decode steps, a checkpoint) may take
    before ``/healthz/live`` calls the worker hung. Shorter than the longest of them ends workers
    that only work."""

    ready_file: Path | None = None
    """File that tells a supervisor about the progress of loading and when work can start."""

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
    """DEBUG, INFO, WARNING or ERROR."""

    log_json: bool = True
    """JSON lines; false prints for a terminal."""
