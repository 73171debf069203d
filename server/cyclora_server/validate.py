"""What requests other than passes may ask for: pure checks, by the same rules for every SDK.

Every refusal names what was wrong, the offending value, and what would be accepted.
"""

from __future__ import annotations

import math
import re
from typing import Any

from cyclora_core import ids
from cyclora_core.errors import UserError
from cyclora_core.operations import LoraConfig, SamplingParams
from cyclora_core.types import BaseModelInfo
from cyclora_server.validate_optimizer import check_range
from cyclora_server.validate_pass import check_tokens
from cyclora_server.wire import bodies

MAX_SAMPLES = 1024
MAX_TOPK = 128
MAX_STOPS = 64
MAX_STOP_CHARS = 1024
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
        seed=_seed(settings.seed, seed),
        train_attn=settings.train_attn,
        train_mlp=settings.train_mlp,
        train_unembed=settings.train_unembed,
    )


def sampling_params(body: bodies.Sample, base: BaseModelInfo, seed: int) -> SamplingParams:
    """How to draw tokens; ``seed`` is used when the client sent none."""
    params = body.sampling_params
    if params.max_tokens is not None and params.max_tokens < 1:
        raise UserError(f"max_tokens is {params.max_tokens}; expected at least 1")
    check_range("temperature", params.temperature, 0.0, math.inf)
    if not 0.0 < params.top_p <= 1.0:
        raise UserError(f"top_p is {params.top_p}; expected more than 0 and at most 1")
    if params.top_k < -1:
        raise UserError(f"top_k is {params.top_k}; expected at least 1, or -1 for no limit")
    tokens, strings = _stops(params.stop, base)
    return SamplingParams(
        max_tokens=params.max_tokens,
        seed=_seed(params.seed, seed),
        temperature=params.temperature,
        top_k=max(params.top_k, 0),
        top_p=params.top_p,
        stop_on_eos=params.stop is None,
        stop_token_ids=tokens,
        stop_strings=strings,
    )


def _stops(stop: Any, base: BaseModelInfo) -> tuple[list[int], list[str]]:
    """Stop tokens and stop strings; an empty list means that nothing stops, not even EOS."""
    if stop is None:
        return [], []
    if not isinstance(stop, str | list):
        raise UserError(
            f"stop is {str(stop)[:60]!r}; expected a string, or a list of strings or token ids"
        )
    stops: list[Any] = [stop] if isinstance(stop, str) else stop
    if len(stops) > MAX_STOPS:
        raise UserError(f"stop has {len(stops)} entries; at most {MAX_STOPS} are accepted")
    if all(isinstance(each, int) and not isinstance(each, bool) for each in stops):
        for token in stops:
            if not 0 <= token < base.vocab_size:
                raise UserError(f"stop has token id {token}; expected 0..{base.vocab_size - 1}")
        return list(stops), []
    for each in stops:
        if not isinstance(each, str) or not 1 <= len(each) <= MAX_STOP_CHARS:
            raise UserError(
                f"stop has {str(each)[:60]!r}; expected only token ids, or only strings of 1 to "
                f"{MAX_STOP_CHARS} characters"
            )
    return [], list(stops)


def check_sample(body: bodies.Sample, prompt: Any, base: BaseModelInfo) -> None:
    """Refuse a sample that could not run."""
    for name, default in (
        ("topk_sample_logprobs", 0),
        ("target_prompt_logprobs", None),
        ("prompt_alt_tokens_k", 0),
        ("prompt_logprobs_last_n", None),
    ):
        if getattr(body, name) != default:
            raise UserError(f"{name} is not supported by this server; leave it out")
    if not 1 <= body.num_samples <= MAX_SAMPLES:
        raise UserError(f"num_samples is {body.num_samples}; expected 1 to {MAX_SAMPLES}")
    if not 0 <= body.topk_prompt_logprobs <= MAX_TOPK:
        raise UserError(
            f"topk_prompt_logprobs is {body.topk_prompt_logprobs}; expected 0 to {MAX_TOPK}"
        )
    if prompt.size == 0:
        raise UserError("prompt is empty; expected at least one token")
    check_tokens("prompt", prompt, base.vocab_size)
    max_tokens = body.sampling_params.max_tokens
    num_tokens = prompt.size + (1 if max_tokens is None else max_tokens)
    if num_tokens > base.max_context_length:
        raise UserError(
            f"prompt of {prompt.size} tokens and max_tokens {max_tokens} do not fit; {base.name} "
            f"takes at most {base.max_context_length} tokens together"
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


def checkpoint_name(name: str | None, seq_id: int) -> str:
    """The name a tenant chose, or one of ours that no other save of the model gets."""
    if name is None:
        return f"seq-{seq_id:06d}"
    if name.startswith(EPHEMERAL_PREFIX):
        raise UserError(
            f"checkpoint name {name[:140]!r} is reserved; choose one without {EPHEMERAL_PREFIX!r}"
        )
    return ids.check_name(name)


def _seed(sent: int | None, derived: int) -> int:
    """A seed as an unsigned 64-bit number; clients send any 64-bit one."""
    if sent is None:
        return derived
    if not -(_SEEDS // 2) <= sent < _SEEDS:
        raise UserError(f"seed is {str(sent)[:60]}; expected a 64-bit number")
    return sent % _SEEDS
