"""The sampler: rows wait for memory, prefill in chunks, and decode together until they end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

import torch

from cyclora_core.errors import UserError
from cyclora_core.partials import Partial
from cyclora_core.samples import SampleBody, SampleResult
from cyclora_workers.adapter import AdapterWeights
from cyclora_workers.base_model import BaseModel
from cyclora_workers.sampling.chunking import PREFILL_BLOCK_TOKENS, share_prefill
from cyclora_workers.sampling.kv_pool import BLOCK_TOKENS, KvPool, KvShape
from cyclora_workers.sampling.memory import KvMemory, Start, num_blocks_for
from cyclora_workers.sampling.packing import DecodePart, Part, PrefillPart
from cyclora_workers.sampling.request import Row, SampleRequest
from cyclora_workers.sampling.step import PartOutcome, run_parts
from cyclora_workers.sampling.step_model import StepModel, step_model_of
from cyclora_workers.sampling.stopping import Detokenize
from cyclora_workers.sampling.waiting import (
    WaitingRows,
    held_blocks,
    row_to_preempt,
    row_to_yield,
)


@dataclass(frozen=True, slots=True)
class FinishedSample:
    """A request that has ended: its result, or why it failed."""

    request_id: str
    result: SampleResult | Exception


class Sampler:
    """Continuous batching over one base model; called from one thread only.

    A row waits for memory or runs. Running, it prefills what it has and then decodes a token in
    every step. The first row of a request prefills the prompt for all; the others begin as copies
    of it. A row that has to make way for another waits again, and then computes anew what is no
    longer known: the same bits (docs/decisions/0034-paged-samples.md).
    """

    def __init__(
        self,
        base_model: BaseModel,
        *,
        max_kv_tokens: int,
        detokenize: Detokenize | None,
        prefill_chunk_tokens: int = 512,
        new_step_model: Callable[[BaseModel, KvPool], StepModel] = step_model_of,
    ) -> None:
        """Start with nothing to do.

        Args:
            base_model: what all requests sample, each with its own adapter.
            max_kv_tokens: tokens whose keys and values may be held at one time; too few make
                rows wait and compute things twice, too many run out of memory.
            detokenize: text of token ids, for stop strings; None refuses those.
            prefill_chunk_tokens: prompt tokens per step; more delay the rows that decode, fewer
                take longer until a long prompt's first token.
            new_step_model: makes what computes the passes.
        """
        if prefill_chunk_tokens < PREFILL_BLOCK_TOKENS:
            raise ValueError(
                f"prefill_chunk_tokens is {prefill_chunk_tokens}; it must be at least "
                f"{PREFILL_BLOCK_TOKENS}"
            )
        self._base_model = base_model
        self._detokenize = detokenize
        self._prefill_chunk_tokens = prefill_chunk_tokens
        shape = KvShape(
            base_model.num_layers,
            base_model.num_kv_heads,
            base_model.head_size,
            base_model.dtype,
            base_model.device,
        )
        self._memory = KvMemory(shape, max_kv_tokens)
        self._model = new_step_model(base_model, self._memory.pool)
        self._arrivals = count()
        self._requests: dict[str, SampleRequest] = {}
        self._waiting = WaitingRows()
        self._running: dict[Row, None] = {}
        self._finished: list[FinishedSample] = []
        self.num_preemptions = 0
        """How often a row lost its memory to another one."""
        self.num_steps = 0
        self.num_decoded_rows = 0
        """Rows of all steps together that decoded."""
        self.num_prefilled_tokens = 0

    @property
    def is_idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return not self._requests

    @property
    def num_running_rows(self) -> int:
        """Rows that have memory; of a request whose prompt is not through, one."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Rows that wait for memory; like all these numbers, may be asked for in any thread."""
        return len(self._waiting)

    @property
    def kv_blocks(self) -> dict[str, int]:
        """KV blocks that rows hold, that hold known prefixes, and that are free."""
        return self._memory.use()

    @property
    def has_streams(self) -> bool:
        """Whether anybody watches a request that has not ended."""
        return any(request.is_streamed for request in self._requests.values())

    @property
    def free_kv_tokens(self) -> int:
        """Tokens for which there is memory that no row holds."""
        return self._memory.num_available_blocks * BLOCK_TOKENS

    @property
    def room_tokens(self) -> int:
        """Tokens of KV memory that nobody here holds or waits for; may be below 0.

        Every row counts with a block more than it has. How far it will grow nobody knows: most
        samples end before their ``max_tokens``, so what those add up to may exceed the memory.
        """
        wanted = sum(num_blocks_for(row.num_tokens) for row in self._waiting)
        num_rows = sum(len(request.rows) for request in self._requests.values())
        return (self._memory.num_available_blocks - wanted - num_rows) * BLOCK_TOKENS

    @property
    def used_tokens(self) -> dict[str, int]:
        """What each tenant's rows hold or wait for, with a block more for each to grow."""
        used: dict[str, int] = {}
        for request in self._requests.values():
            num_blocks = sum(num_blocks_for(row.num_tokens) + 1 for row in request.rows)
            used[request.tenant_id] = used.get(request.tenant_id, 0) + num_blocks * BLOCK_TOKENS
        return used

    @property
    def max_kv_tokens(self) -> int:
        """Tokens whose keys and values may be held at one time: whole blocks."""
        return self._memory.num_blocks * BLOCK_TOKENS

    def admit(
        self,
        request_id: str,
        body: SampleBody,
        adapter: AdapterWeights | None,
        tenant_id: str = "",
    ) -> None:
        """Queue a request; ``step`` returns it when it has ended.

        Args:
            request_id: not used by a request that has not ended.
            body: what to sample.
            adapter: weights that never change, or None for the bare base model.
            tenant_id: tenants share memory evenly when it is short, and no known prefixes.

        Raises:
            UserError: it can never run here.
        """
        assert request_id not in self._requests, f"request {request_id} is here already"
        request = SampleRequest(
            request_id,
            body,
            adapter,
            self._base_model,
            self._detokenize,
            tenant_id=tenant_id,
            scope=self._memory.scope(tenant_id, adapter),
            arrival=next(self._arrivals),
        )
        if num_blocks_for(request.max_row_tokens) > self._memory.num_blocks:
            raise UserError(
                f"a sequence needs memory for {request.max_row_tokens} tokens "
                f"({request.num_prompt_tokens} of the prompt and up to "
                f"{request.stop_rules.max_tokens} sampled, the last one not kept); this server "
                f"holds {self.max_kv_tokens}; lower max_tokens"
            )
        self._requests[request_id] = request
        self._waiting.add(request.rows[0])

    def cancel(self, request_id: str) -> None:
        """Forget a request wherever it stands; nothing happens if it has ended."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._let_go(request.rows)
        if self.is_idle:
            self._model.release()

    def take_partials(self) -> list[Partial]:
        """What streamed requests got since this was last asked.

        Of those that have ended nothing is left to show: their result says it all.
        """
        partials = [r.take_partial() for r in self._requests.values() if r.is_streamed]
        return [partial for partial in partials if partial is not None]

    def step(self) -> list[FinishedSample]:
        """Prefill a chunk and decode one token per row; returns what ended with it."""
        with torch.inference_mode():
            self._start_waiting()
            self._make_room()
            parts = self._parts()
            if parts:
                self._memory.prepare()
                self._run(parts)
        if self.is_idle:
            self._model.release()
        finished, self._finished = self._finished, []
        return finished

    def _start_waiting(self) -> None:
        """Start rows while there is room; one that finds none is not overtaken."""
        held = held_blocks(self._running)
        set_aside: list[Row] = []
        while (row := self._waiting.pop_next(held)) is not None:
            tenant_id = row.request.tenant_id
            # Rows that run soon need a block each; without these they would take back by force
            # what has just been given away.
            start = self._memory.start(row, num_spare_blocks=len(self._running))
            if start is Start.STARTED:
                self._running[row] = None
                held[tenant_id] = held.get(tenant_id, 0) + len(row.blocks)
                if row.request.num_found_tokens is None:
                    row.request.num_found_tokens = row.num_cached
                continue
            victim = None
            if start is Start.NO_ROOM:
                victim = row_to_yield(self._running, row, num_blocks_for(row.num_tokens))
            if victim is None:
                set_aside.append(row)
                if start is Start.NO_ROOM:
                    break
            else:
                self._waiting.add(row)
                self._preempt(victim)
                held = held_blocks(self._running)
        for row in set_aside:
            self._waiting.add(row)

    def _make_room(self) -> None:
        """Every row that decodes gets a place for its newest token, or makes way."""
        for row in [row for row in self._running if row.is_decoding]:
            while row in self._running and not self._memory.grow(row):
                self._preempt(row_to_preempt(self._running))

    def _preempt(self, row: Row) -> None:
        self._memory.drop(row)
        del self._running[row]
        self._waiting.add(row)
        self.num_preemptions += 1

    def _parts(self) -> list[Part]:
        decoding: dict[SampleRequest, list[Row]] = {}
        prefilling: list[Row] = []
        for row in self._running:
            if row.is_decoding:
                decoding.setdefault(row.request, []).append(row)
            else:
                prefilling.append(row)
        prefilling.sort(key=lambda row: row.order)
        shares = share_prefill([row.num_pending for row in prefilling], self._prefill_chunk_tokens)
        self.num_steps += 1
        self.num_decoded_rows += len(self._running) - len(prefilling)
        self.num_prefilled_tokens += sum(shares)
        decodes = [DecodePart(request, rows) for request, rows in decoding.items()]
        prefills = [
            PrefillPart(row, share) for row, share in zip(prefilling, shares, strict=True) if share
        ]
        return [*decodes, *prefills]

    def _run(self, parts: Sequence[Part]) -> None:
        try:
            outcomes = run_parts(self._base_model, self._model, parts)
        except Exception as error:  # noqa: BLE001 - boundary: one request must not fail the others
            if len(parts) == 1:
                self._end(parts[0].request, error)
            else:
                # The same numbers come out alone, so only the guilty request fails.
                for part in parts:
                    if part.request.request_id in self._requests:
                        self._run([part])
            return
        for outcome in outcomes:
            request = outcome.part.request
            if request.request_id not in self._requests:
                continue  # ended with another of its parts
            try:
                self._apply(outcome)
            except Exception as error:  # noqa: BLE001 - boundary: this request alone fails
                self._end(request, error)

    def _apply(self, outcome: PartOutcome) -> None:
        request, part = outcome.part.request, outcome.part
        for rows in outcome.report_rows:
            request.report.add(rows)
        is_complete = isinstance(part, DecodePart) or part.completes_row
        for row in part.rows:
            self._memory.advance(row, part.num_tokens_each)
        if not is_complete:
            return
        is_first = not request.has_prompt
        request.has_prompt = True
        if request.stop_rules.max_tokens == 0:
            request.finish_without_tokens()
        ended = request.extend(outcome.drawn)
        if is_first:
            self._fork(part.rows[0], [row for row in request.rows if row is not part.rows[0]])
        self._let_go(ended)
        if not request.rows:
            self._end(request, request.result())

    def _fork(self, row: Row, siblings: Sequence[Row]) -> None:
        forked = self._memory.fork(row, siblings)
        self._running |= dict.fromkeys(forked)
        for sibling in siblings[len(forked) :]:
            self._waiting.add(sibling)

    def _end(self, request: SampleRequest, result: SampleResult | Exception) -> None:
        del self._requests[request.request_id]
        self._let_go([*request.rows, *(row for row in self._running if row.request is request)])
        self._finished.append(FinishedSample(request.request_id, result))

    def _let_go(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        for row in rows:
            self._memory.drop(row)
            self._running.pop(row, None)
        self._waiting.remove(rows)
