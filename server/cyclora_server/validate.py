"""What requests other than passes and samples may ask for, by the same rules for every SDK.

Every refusal names what was wrong, the offending value, and what would be accepted.
"""

from __future__ import annotations

import re
from typing import Any

from cyclora_core import ids
from cyclora_core.errors import UserError
from cyclora_core.operations import LoraConfig
from cyclora_core.types import BaseModelInfo
from cyclora_server.wire import bodies

MIN_TTL_S = 3600
MAX_TTL_S = 10 * 365 * 24 * 3600
EPHEMERAL_PREFIX = "ephemeral-"
"""Names of unlisted sampler checkpoints start with this; a tenant's own names may not."""

_PROJECT_RE = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SEEDS = 2**64
_SAMPLER_KINDS = ("snapshot", "inflight")


def lora_config(settings: bodies.LoraSettings, base: BaseModelInfo, seed: int) -> LoraConfig:
    """The adapter to create; ``seed`` is used when the client sent none."""
    if not 1 <= settings.rank <= base.max_lora_rank:
        raise UserError(
            f"lora_config.rank is {settings.rank}; {base.name} takes 1 to {base.max_lora_rank}"
        )
    if not (settings.train_attn or settings.train_mlp or settings.train_unembed):
        raise UserError(
            "lora_config trains nothing; at least one of train_attn, train_mlp and train_unembed "
            "must be true"
        )
    return LoraConfig(
        lora_rank=settings.rank,
        seed=unsigned_seed(settings.seed, seed),
        train_attn=settings.train_attn,
        train_mlp=settings.train_mlp,
        train_unembed=settings.train_unembed,
    )


def check_ttl(ttl_s: int | None) -> None:
    if ttl_s is not None and not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
        raise UserError(
            f"ttl_seconds is {ttl_s}; expected {MIN_TTL_S} (one hour) to {MAX_TTL_S} (ten years)"
        )


def check_no_access_token(token: Any) -> None:
    """Refuse a token by name; its value, which is secret, is not repeated."""
    if token is not None:
        raise UserError(
            "weights_access_token is not supported by this server; have the checkpoint's owner "
            "publish it"
        )


def project_id(text: str | None) -> str:
    """A project that a client named; a project is a label within a tenant, made by its use."""
    if text is None:
        raise UserError("destination_project_id is missing; name the project to own the copy")
    if not _PROJECT_RE.fullmatch(text):
        raise UserError(
            f"project_id {text[:140]!r} is not allowed; use 1 to 128 characters of "
            "A-Z a-z 0-9 . _ : -"
        )
    return text


def check_sampler_kind(kind: str) -> None:
    if kind not in _SAMPLER_KINDS:
        raise UserError(f"kind is {kind[:60]!r}; expected one of {', '.join(_SAMPLER_KINDS)}")


def check_named_kind(kind: str) -> None:
    if kind == "inflight":
        raise UserError(
            "kind 'inflight' with a name is not supported, a named checkpoint never changes; use "
            "kind 'snapshot', or a save behind a sampling session"
        )


def checkpoint_name(name: str | None, seq_id: int) -> str:
    """The name a tenant chose, or one of ours that no other save of the model gets."""
    if name is None:
        return f"seq-{seq_id:06d}"
    if name.startswith(EPHEMERAL_PREFIX):
        raise UserError(
            f"checkpoint name {name[:140]!r} is reserved; choose one without {EPHEMERAL_PREFIX!r}"
        )
    return ids.check_name(name)


def unsigned_seed(sent: int | None, derived: int) -> int:
    """A seed as an unsigned 64-bit number; clients send any 64-bit one."""
    if sent is None:
        return derived
    if not -(_SEEDS // 2) <= sent < _SEEDS:
        raise UserError(f"seed is {str(sent)[:60]}; expected a 64-bit number")
    return sent % _SEEDS
