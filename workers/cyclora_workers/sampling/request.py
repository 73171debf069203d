"""One sample request from admission to its result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cyclora_core.errors import ServerError, UserError
from cyclora_core.partials import Partial, PartialToken
from cyclora_core.payload import Array
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
from cyclora_workers.sampling.prompt_report import PromptReport
from cyclora_workers.sampling.randomness import as_seed
from cyclora_workers.sampling.stopping import Detokenize, StopRules, stop_reason


@dataclass(slots=True, eq=False)
class Row:
    """One of a request's sequences while it is sampled, and its KV memory.

    ``keys`` name the blocks that are complete, ``awaited_keys`` those that others may wait for.
    """

    request: SampleRequest
    sample_index: int
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    topk: list[TopkRow] = field(default_factory=list[TopkRow])
    blocks: list[int] = field(default_factory=list[int])
    keys: list[bytes] = field(default_factory=list[bytes])
    awaited_keys: list[bytes] = field(default_factory=list[bytes])
    num_cached: int = 0
    """Tokens whose keys and values are there; the newest token's are not."""
    has_ended: bool = False

    @property
    def num_tokens(self) -> int:
        return self.request.num_prompt_tokens + len(self.tokens)

    @property
    def num_pending(self) -> int:
        """Tokens that have not been through the model yet."""
        return self.num_tokens - self.num_cached

    @property
    def is_decoding(self) -> bool:
        """Whether its newest sampled token alone is left to be fed."""
        return bool(self.tokens) and self.num_pending == 1

    @property
    def num_reusable_tokens(self) -> int:
        """Tokens that need not be computed if a known prefix covers them.

        The last one must be, to draw from it, and those that the prompt's report is about.
        """
        if self.request.has_prompt:
            return self.num_tokens - 1
        return min(self.num_tokens, self.request.report.first_wanted) - 1

    @property
    def order(self) -> tuple[int, int]:
        """Rows that arrived earlier compare as less."""
        return self.request.arrival, self.sample_index

    def all_tokens(self) -> Array:
        return np.concatenate((self.request.prompt_tokens, np.asarray(self.tokens, np.int64)))


@dataclass(frozen=True, slots=True)
class Drawn:
    """A row's next token."""

    row: Row
    token: int
    logprob: float
    topk: TopkRow | None


class SampleRequest:
    """State of one request; ``rows`` are those that have not ended."""

    def __init__(
        self,
        request_id: str,
        body: SampleBody,
        adapter: AdapterWeights | None,
        base_model: BaseModel,
        detokenize: Detokenize | None,
        *,
        tenant_id: str = "",
        scope: bytes = b"",
        arrival: int = 0,
    ) -> None:
        """Check the request against the base model.

        Raises:
            UserError: it can never succeed as it was sent.
        """
        check_body(body, base_model, can_detokenize=detokenize is not None)
        params = body.params
        self.request_id = request_id
        self.tenant_id = tenant_id
        self.scope = scope
        self.arrival = arrival
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
        self.rows = [Row(self, index) for index in range(body.num_samples)]
        self.has_prompt = False
        """Whether the prompt is through, and every row has drawn its first token."""
        self.num_found_tokens: int | None = None
        """Prompt tokens that were found computed; None while the request waits."""
        self._all_rows = list(self.rows)
        self._detokenize = detokenize
        self._sequences: dict[int, SampledSequence] = {}
        self.is_streamed = body.is_streamed
        self._num_shown = 0
        self._num_shown_each = 0

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_tokens)

    @property
    def max_row_tokens(self) -> int:
        """Tokens whose keys and values one row may need; its last token is never fed back."""
        return self.num_prompt_tokens + max(1, self.stop_rules.max_tokens) - 1

    def extend(self, drawn: Sequence[Drawn]) -> list[Row]:
        """Give rows their next token; returns those that stop, which become sequences.

        Raises:
            UserError: the logits were not finite, as those of a diverged adapter.
        """
        ended: list[Row] = []
        for each in drawn:
            row = each.row
            if not math.isfinite(each.logprob):
                raise self._not_finite()
            row.tokens.append(each.token)
            row.logprobs.append(each.logprob)
            if each.topk is not None:
                row.topk.append(each.topk)
            reason = stop_reason(row.tokens, self.stop_rules, self._detokenize)
            if reason is not None:
                self._finish(row, reason)
                ended.append(row)
        if ended:
            self.rows = [row for row in self.rows if not row.has_ended]
        return ended

    def take_partial(self) -> Partial | None:
        """What came since this was last asked; None if nothing did.

        First tokens of all rows, then second ones, and so on: an order that neither memory nor
        neighbours change, as whoever reads on after a crash relies on. Rows that are ahead are
        held back.
        """
        shown: list[PartialToken] = []
        while True:
            at = self._num_shown_each
            rows = [row for row in self._all_rows if not row.has_ended or len(row.tokens) > at]
            if not rows or any(len(row.tokens) <= at for row in rows):
                break
            shown += [PartialToken(r.sample_index, r.tokens[at], r.logprobs[at]) for r in rows]
            self._num_shown_each += 1
        if not shown:
            return None
        partial = Partial(self.request_id, self._num_shown, shown)
        self._num_shown += len(shown)
        return partial

    def finish_without_tokens(self) -> None:
        """End every row as it is: for requests that ask about their prompt only."""
        for row in self.rows:
            self._finish(row, StopReason.LENGTH)
        self.rows.clear()

    def result(self) -> SampleResult:
        """Sequences in sample order, once all rows have ended."""
        sequences = [self._sequences[row.sample_index] for row in self._all_rows]
        return self.report.complete(sequences, self.num_found_tokens or 0)

    def _finish(self, row: Row, reason: StopReason) -> None:
        row.has_ended = True
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
