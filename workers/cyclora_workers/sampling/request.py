"""One sample request from admission to its result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cyclora_core.errors import ServerError, UserError
from cyclora_core.partials import Partial, PartialToken
from cyclora_core.samples import (
    PromptTargets,
    SampleBody,
    SampledSequence,
    SampleResult,
    StopReason,
    TopkTable,
)
from cyclora_workers.adapter import AdapterWeights
from cyclora_workers.base_model import BaseModel
from cyclora_workers.sampling.choose import DrawRule, TopkRow
from cyclora_workers.sampling.kv_cache import KvShape, RequestCache
from cyclora_workers.sampling.prompt_report import PromptReport
from cyclora_workers.sampling.randomness import as_seed
from cyclora_workers.sampling.stopping import Detokenize, StopRules, stop_reason


@dataclass(slots=True)
class Row:
    """One of the request's sequences while it is sampled."""

    sample_index: int
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    topk: list[TopkRow] = field(default_factory=list[TopkRow])


class SampleRequest:
    """State of one request; rows stand in the order of the cache's rows."""

    def __init__(
        self,
        request_id: str,
        body: SampleBody,
        adapter: AdapterWeights | None,
        base_model: BaseModel,
        detokenize: Detokenize | None,
    ) -> None:
        """Check the request against the base model.

        Raises:
            UserError: it can never succeed as it was sent.
        """
        check_body(body, base_model, can_detokenize=detokenize is not None)
        params = body.params
        self.request_id = request_id
        self.prompt_tokens = np.asarray(body.prompt_tokens, np.int64)
        self.adapter = adapter
        self.draw_rule = DrawRule(params.temperature, max(params.top_k, 0), params.top_p)
        self.seed = as_seed(params.seed)
        self.topk_sample_logprobs = body.topk_sample_logprobs
        self.report = PromptReport(body, self.seed)
        max_tokens = tokens_to_sample(
            len(body.prompt_tokens), params.max_tokens, base_model.max_context_length
        )
        self.stop_rules = StopRules.of(params, base_model.eos_token_ids, max_tokens)
        self.num_kv_tokens = len(body.prompt_tokens) + body.num_samples * max_tokens
        self.rows = [Row(index) for index in range(body.num_samples)]
        self._num_samples = body.num_samples
        self._detokenize = detokenize
        self._sequences: dict[int, SampledSequence] = {}
        self.is_streamed = body.is_streamed
        self._unshown: list[PartialToken] = []
        self._num_shown = 0
        self._cache: RequestCache | None = None

    @property
    def cache(self) -> RequestCache:
        assert self._cache is not None, "a waiting request has no cache"
        return self._cache

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_tokens)

    @property
    def is_prefilled(self) -> bool:
        return self.cache.num_prefilled == self.num_prompt_tokens

    def start(self, shape: KvShape) -> None:
        """Take the memory that was reserved."""
        self._cache = RequestCache(
            shape, self.num_prompt_tokens, len(self.rows), self.stop_rules.max_tokens
        )

    def extend(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        topk: Sequence[TopkRow | None],
    ) -> None:
        """Give every row its next token; rows that stop become sequences.

        Raises:
            UserError: the logits were not finite, as those of a diverged adapter.
        """
        for row, token, logprob, topk_row in zip(self.rows, tokens, logprobs, topk, strict=True):
            if not math.isfinite(logprob):
                raise self._not_finite()
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if topk_row is not None:
                row.topk.append(topk_row)
        if self.is_streamed:
            self._unshown += sorted(
                (
                    PartialToken(row.sample_index, row.tokens[-1], row.logprobs[-1])
                    for row in self.rows
                ),
                key=lambda each: each.sample_index,
            )
        # From the last row on, so that the row moved into a gap has been looked at already.
        for index in range(len(self.rows) - 1, -1, -1):
            row = self.rows[index]
            reason = stop_reason(row.tokens, self.stop_rules, self._detokenize)
            if reason is not None:
                self._finish(row, reason)
                moved = self.rows[self.cache.remove_row(index)]
                self.rows[index] = moved
                self.rows.pop()

    def take_partial(self) -> Partial | None:
        """What came since this was last asked; None if nothing did."""
        if not self._unshown:
            return None
        partial = Partial(self.request_id, self._num_shown, self._unshown)
        self._num_shown += len(self._unshown)
        self._unshown = []
        return partial

    def finish_without_tokens(self) -> None:
        """End every row as it is: for requests that ask about their prompt only."""
        for row in self.rows:
            self._finish(row, StopReason.LENGTH)
        self.rows.clear()

    def result(self) -> SampleResult:
        """Sequences in sample order, once all rows have ended."""
        sequences = [self._sequences[index] for index in range(self._num_samples)]
        return self.report.complete(sequences)

    def _finish(self, row: Row, reason: StopReason) -> None:
        self._sequences[row.sample_index] = SampledSequence(
            np.asarray(row.tokens, np.int32),
            np.asarray(row.logprobs, np.float32),
            reason,
            _table(row, self.topk_sample_logprobs) if self.topk_sample_logprobs else None,
        )

    def _not_finite(self) -> Exception:
        if self.adapter is None:
            return ServerError("the base model's logits are not finite")
        return UserError("the logits are not finite; the adapter's weights have diverged")


def _table(row: Row, k: int) -> TopkTable:
    tokens = [each.tokens for each in row.topk]
    logprobs = [each.logprobs for each in row.topk]
    return TopkTable(
        np.asarray(tokens, np.int32).reshape(-1, k), np.asarray(logprobs, np.float32).reshape(-1, k)
    )


def tokens_to_sample(num_prompt_tokens: int, max_tokens: int | None, context_length: int) -> int:
    """How many tokens a sequence may get.

    A prompt that fills the context may still get one token, as that is never fed back: how the
    SDK's ``compute_logprobs`` asks about a text of full length.
    """
    room = max(1, context_length - num_prompt_tokens)
    return room if max_tokens is None else min(max_tokens, room)


def check_body(body: SampleBody, base_model: BaseModel, *, can_detokenize: bool) -> None:
    """Refuse what would fail in the shared pass, or never end.

    Raises:
        UserError: names the offending value and what would be accepted.
    """
    params, prompt, vocab_size = body.params, body.prompt_tokens, base_model.vocab_size
    context_length = base_model.max_context_length
    if not 0 < len(prompt) <= context_length:
        raise UserError(
            f"the prompt has {len(prompt)} tokens; from 1 to {context_length} are accepted"
        )
    low, high = int(prompt.min()), int(prompt.max())
    if low < 0 or high >= vocab_size:
        offending = low if low < 0 else high
        raise UserError(f"prompt token {offending} is not in [0, {vocab_size})")
    if body.num_samples < 1:
        raise UserError(f"num_samples is {body.num_samples}; it must be at least 1")
    if params.max_tokens is not None and params.max_tokens < 0:
        raise UserError(f"max_tokens is {params.max_tokens}; it must not be negative")
    if not (math.isfinite(params.temperature) and params.temperature >= 0.0):
        raise UserError(f"temperature is {params.temperature}; it must be finite and at least 0")
    if not 0.0 <= params.top_p <= 1.0:
        raise UserError(f"top_p is {params.top_p}; it must be from 0 to 1")
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs"):
        if not 0 <= getattr(body, name) <= vocab_size:
            raise UserError(f"{name} is {getattr(body, name)}; from 0 to {vocab_size} are accepted")
    if body.prompt_alt_tokens_k < 0:
        raise UserError(
            f"prompt_alt_tokens_k is {body.prompt_alt_tokens_k}; it must not be negative"
        )
    if body.targets is not None:
        _check_targets(body.targets, len(prompt), vocab_size)
    if "" in params.stop_strings:
        raise UserError("a stop string is empty; every text contains it")
    if params.stop_strings and not can_detokenize:
        raise UserError(
            "stop strings need a tokenizer, which this base model has not; use stop token ids"
        )


def _check_targets(targets: PromptTargets, num_prompt_tokens: int, vocab_size: int) -> None:
    if targets.cells.num_rows != num_prompt_tokens - 1:
        raise UserError(
            f"target_prompt_logprobs has {targets.cells.num_rows} rows; expected one per prompt "
            f"token after the first, {num_prompt_tokens - 1}"
        )
    if targets.tokens.size and not -1 <= targets.tokens.min() <= targets.tokens.max() < vocab_size:
        raise UserError(f"target_prompt_logprobs has a token id that is not in [-1, {vocab_size})")
