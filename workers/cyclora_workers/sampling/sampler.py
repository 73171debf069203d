"""The sampler: requests wait for memory, prefill in chunks, and decode together until they end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cyclora_core.errors import UserError
from cyclora_core.partials import Partial
from cyclora_core.samples import SampleBody, SampleResult
from cyclora_workers.adapter import AdapterWeights
from cyclora_workers.base_model import BaseModel
from cyclora_workers.sampling.chunking import PREFILL_BLOCK_TOKENS, share_prefill
from cyclora_workers.sampling.kv_cache import KvShape
from cyclora_workers.sampling.packing import DecodePart, Part, PrefillPart
from cyclora_workers.sampling.request import SampleRequest
from cyclora_workers.sampling.step import PartOutcome, run_parts
from cyclora_workers.sampling.stopping import Detokenize


@dataclass(frozen=True, slots=True)
class FinishedSample:
    """A request that has ended: its result, or why it failed."""

    request_id: str
    result: SampleResult | Exception


class Sampler:
    """Continuous batching over one base model; called from one thread only.

    A request is waiting (no memory yet) or running; a running one prefills its prompt, then
    decodes all its rows in every step.
    """

    def __init__(
        self,
        base_model: BaseModel,
        *,
        max_kv_tokens: int,
        detokenize: Detokenize | None,
        prefill_chunk_tokens: int = 512,
    ) -> None:
        """Start with nothing to do.

        Args:
            base_model: what all requests sample, each with its own adapter.
            max_kv_tokens: tokens whose keys and values may be held at one time; too few make
                requests wait for one another, too many run out of memory.
            detokenize: text of token ids, for stop strings; None refuses those.
            prefill_chunk_tokens: prompt tokens per step; more delay the rows that decode, fewer
                take longer until a long prompt's first token.
        """
        if prefill_chunk_tokens < PREFILL_BLOCK_TOKENS:
            raise ValueError(
                f"prefill_chunk_tokens is {prefill_chunk_tokens}; it must be at least "
                f"{PREFILL_BLOCK_TOKENS}"
            )
        self._base_model = base_model
        self._max_kv_tokens = max_kv_tokens
        self._detokenize = detokenize
        self._prefill_chunk_tokens = prefill_chunk_tokens
        self._kv_shape = KvShape(
            base_model.num_layers,
            base_model.num_kv_heads,
            base_model.head_size,
            base_model.dtype,
            base_model.device,
        )
        self._waiting: deque[SampleRequest] = deque()
        self._running: dict[str, SampleRequest] = {}
        self._finished: list[FinishedSample] = []

    @property
    def is_idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return not self._running and not self._waiting

    @property
    def num_running_rows(self) -> int:
        """Sequences of running requests that have not ended."""
        return sum(len(request.rows) for request in self._running.values())

    @property
    def num_waiting(self) -> int:
        """Requests that wait for memory."""
        return len(self._waiting)

    @property
    def has_streams(self) -> bool:
        """Whether anybody watches a request that has not ended."""
        return any(request.is_streamed for request in (*self._running.values(), *self._waiting))

    @property
    def free_kv_tokens(self) -> int:
        """Tokens that running requests have not reserved."""
        return self._max_kv_tokens - sum(r.num_kv_tokens for r in self._running.values())

    @property
    def room_tokens(self) -> int:
        """Tokens of KV memory that nobody here has reserved or waits for; may be below 0."""
        return self.free_kv_tokens - sum(request.num_kv_tokens for request in self._waiting)

    @property
    def max_kv_tokens(self) -> int:
        return self._max_kv_tokens

    def admit(self, request_id: str, body: SampleBody, adapter: AdapterWeights | None) -> None:
        """Queue a request; ``step`` returns it when it has ended.

        Raises:
            UserError: it can never run here.
        """
        present = {*self._running, *(request.request_id for request in self._waiting)}
        assert request_id not in present, f"request {request_id} is here already"
        request = SampleRequest(request_id, body, adapter, self._base_model, self._detokenize)
        if request.num_kv_tokens > self._max_kv_tokens:
            raise UserError(
                f"the sample needs memory for {request.num_kv_tokens} tokens "
                f"({request.num_prompt_tokens} of the prompt and {body.num_samples} x "
                f"{request.stop_rules.max_tokens} sampled); this server holds "
                f"{self._max_kv_tokens}; lower num_samples or max_tokens"
            )
        self._waiting.append(request)

    def cancel(self, request_id: str) -> None:
        """Forget a request wherever it stands; nothing happens if it has ended."""
        self._running.pop(request_id, None)
        self._waiting = deque(r for r in self._waiting if r.request_id != request_id)

    def take_partials(self) -> list[Partial]:
        """What running streamed requests got since this was last asked.

        Of those that have ended nothing is left to show: their result says it all.
        """
        partials = [r.take_partial() for r in self._running.values() if r.is_streamed]
        return [partial for partial in partials if partial is not None]

    def step(self) -> list[FinishedSample]:
        """Prefill a chunk and decode one token per row; returns what ended with it."""
        with torch.inference_mode():
            self._start_waiting()
            parts = self._parts()
            if parts:
                self._run(parts)
        finished, self._finished = self._finished, []
        return finished

    def _start_waiting(self) -> None:
        """Start requests in order of arrival; a large one at the head is not overtaken."""
        while self._waiting and self._waiting[0].num_kv_tokens <= self.free_kv_tokens:
            request = self._waiting.popleft()
            self._running[request.request_id] = request
            try:
                request.start(self._kv_shape)
            except Exception as error:  # noqa: BLE001 - boundary: this request alone fails
                self._end(request, error)

    def _parts(self) -> list[Part]:
        decodes: list[Part] = []
        prefilling: list[SampleRequest] = []
        for request in self._running.values():
            if request.is_prefilled:
                decodes.append(DecodePart(request))
            else:
                prefilling.append(request)
        remaining = [r.num_prompt_tokens - r.cache.num_prefilled for r in prefilling]
        shares = share_prefill(remaining, self._prefill_chunk_tokens)
        prefills = [
            PrefillPart(request, share)
            for request, share in zip(prefilling, shares, strict=True)
            if share
        ]
        return decodes + prefills

    def _run(self, parts: Sequence[Part]) -> None:
        try:
            outcomes = run_parts(self._base_model, parts)
        except Exception as error:  # noqa: BLE001 - boundary: one request must not fail the others
            if len(parts) == 1:
                self._end(parts[0].request, error)
            else:
                # The same numbers come out alone, so only the guilty request fails.
                for part in parts:
                    self._run([part])
            return
        for outcome in outcomes:
            request = outcome.part.request
            try:
                self._apply(outcome)
            except Exception as error:  # noqa: BLE001 - boundary: this request alone fails
                self._end(request, error)

    def _apply(self, outcome: PartOutcome) -> None:
        request, part = outcome.part.request, outcome.part
        for rows in outcome.report_rows:
            request.report.add(rows)
        if isinstance(part, PrefillPart):
            request.cache.num_prefilled += part.num_tokens
            if not request.is_prefilled:
                return
        else:
            request.cache.num_new_tokens += 1
        if request.stop_rules.max_tokens == 0:
            request.finish_without_tokens()
        else:
            request.extend(outcome.tokens, outcome.logprobs, outcome.topk)
        if not request.rows:
            self._end(request, request.result())

    def _end(self, request: SampleRequest, result: SampleResult | Exception) -> None:
        del self._running[request.request_id]
        self._finished.append(FinishedSample(request.request_id, result))
