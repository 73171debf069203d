"""What a sample may ask for: pure checks, by the same rules for every SDK.

Every refusal names what was wrong, the offending value, and what would be accepted.
"""

from __future__ import annotations

import math
from typing import Any

from cyclora_core.errors import UserError
from cyclora_core.payload import Array
from cyclora_core.samples import PromptTargets, SamplingParams
from cyclora_core.types import BaseModelInfo
from cyclora_server.validate import unsigned_seed
from cyclora_server.validate_optimizer import check_range
from cyclora_server.validate_pass import check_tokens
from cyclora_server.wire import bodies

MAX_SAMPLES = 1024
MAX_TOPK = 128
MAX_STOPS = 64
MAX_STOP_CHARS = 1024

MAX_REPORTED = 8 * 1024 * 1024
"""Logprobs that one sample may report beside those of its own tokens: 64 MiB with their tokens."""


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
        seed=unsigned_seed(params.seed, seed),
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


def check_sample(
    body: bodies.Sample, prompt: Array, targets: PromptTargets | None, base: BaseModelInfo
) -> None:
    """Refuse a sample that could not run."""
    if not 1 <= body.num_samples <= MAX_SAMPLES:
        raise UserError(f"num_samples is {body.num_samples}; expected 1 to {MAX_SAMPLES}")
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"):
        value = getattr(body, name)
        if not 0 <= value <= min(MAX_TOPK, base.vocab_size):
            most = min(MAX_TOPK, base.vocab_size)
            raise UserError(f"{name} is {value}; expected 0 to {most}")
    if prompt.size == 0:
        raise UserError("prompt is empty; expected at least one token")
    check_tokens("prompt", prompt, base.vocab_size)
    _check_length(prompt.size, body.sampling_params.max_tokens, base)
    _check_last_n(body, prompt.size)
    if targets is not None:
        _check_targets(targets, prompt.size, base.vocab_size)
    _check_reported(body, prompt.size, targets, base)


def max_tokens_of(num_prompt_tokens: int, max_tokens: int | None, base: BaseModelInfo) -> int:
    """How many tokens one sequence may get at most.

    A prompt that fills the context still gets one, which is never fed back: so the SDK's
    ``compute_logprobs`` works on a text of full length.
    """
    room = max(1, base.max_context_length - num_prompt_tokens)
    return room if max_tokens is None else max_tokens


def _check_length(num_prompt_tokens: int, max_tokens: int | None, base: BaseModelInfo) -> None:
    fits = num_prompt_tokens <= base.max_context_length
    room = max_tokens_of(num_prompt_tokens, None, base)
    if not fits or (max_tokens is not None and max_tokens > room):
        raise UserError(
            f"prompt of {num_prompt_tokens} tokens and max_tokens {max_tokens} do not fit; "
            f"{base.name} takes at most {base.max_context_length} tokens together"
        )


def _check_last_n(body: bodies.Sample, num_prompt_tokens: int) -> None:
    last_n = body.prompt_logprobs_last_n
    if last_n is None:
        return
    if not body.prompt_logprobs:
        raise UserError(
            f"prompt_logprobs_last_n is {last_n} without prompt logprobs; set prompt_logprobs "
            "(include_prompt_logprobs of the SDK), or leave it out"
        )
    if not 1 <= last_n <= num_prompt_tokens - 1:
        raise UserError(
            f"prompt_logprobs_last_n is {last_n}; a prompt of {num_prompt_tokens} tokens has 1 to "
            f"{num_prompt_tokens - 1} that can be scored"
        )


def _check_targets(targets: PromptTargets, num_prompt_tokens: int, vocab_size: int) -> None:
    cells, tokens = targets.cells, targets.tokens
    num_rows = num_prompt_tokens - 1
    if cells.num_rows != num_rows:
        raise UserError(
            f"target_prompt_logprobs has shape [{cells.num_rows}, {cells.num_columns}]; expected "
            f"{num_rows} rows, one for each prompt token after the first"
        )
    low, high = (int(tokens.min()), int(tokens.max())) if tokens.size else (-1, -1)
    if low < -1 or high >= vocab_size:
        raise UserError(
            f"target_prompt_logprobs has token id {low if low < -1 else high}; expected 0.."
            f"{vocab_size - 1}, or -1 where nothing is asked"
        )
    num_named = int((tokens >= 0).sum())
    if not 1 <= num_named <= MAX_TOPK * num_rows:
        raise UserError(
            f"target_prompt_logprobs names {num_named} tokens; expected 1 to {MAX_TOPK} per prompt "
            f"token after the first, {MAX_TOPK * num_rows} in all"
        )


def _check_reported(
    body: bodies.Sample, num_prompt_tokens: int, targets: PromptTargets | None, base: BaseModelInfo
) -> None:
    max_tokens = max_tokens_of(num_prompt_tokens, body.sampling_params.max_tokens, base)
    num_reported = (
        num_prompt_tokens * (body.topk_prompt_logprobs + body.prompt_alt_tokens_k)
        + body.num_samples * max_tokens * body.topk_sample_logprobs
        + (0 if targets is None else targets.tokens.size)
    )
    if num_reported > MAX_REPORTED:
        raise UserError(
            f"the sample may have to report {num_reported} logprobs; at most {MAX_REPORTED} are "
            "accepted: lower topk_sample_logprobs, topk_prompt_logprobs, prompt_alt_tokens_k, the "
            "columns of target_prompt_logprobs, num_samples or max_tokens"
        )
