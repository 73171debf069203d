"""What a request asked to know about its prompt, gathered chunk by chunk.

Legend: N prompt tokens, K most probable tokens, A alternatives, C target cells, S rows of one
chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cyclora_core.payload import Array
from cyclora_core.samples import (
    NO_TOPK_LOGPROB,
    PromptTargets,
    SampleBody,
    SampledSequence,
    SampleResult,
    TargetLogprobs,
)
from cyclora_workers.sampling.choose import draw_alternatives, normalizers_of
from cyclora_workers.sampling.randomness import Stream, uniforms
from cyclora_workers.transfer import HostCopies, to_device

LOGIT_ROWS = 128
"""Rows whose logits exist at one time; a [N, V] table of a long prompt would not fit."""


@dataclass(frozen=True, slots=True)
class ReportRows:
    """Prompt positions [start, stop), as predicted by the position before each.

    The numbers are there once the copies that ``PromptReport.compute`` was given have been waited
    for.

    Shapes:
        logprobs: [S] fp32. topk_tokens, topk_logprobs: [S, K]. alt_tokens, alt_logprobs: [S, A].
        target_logprobs: [number of target cells in these positions] fp32.
    """

    start: int
    stop: int
    logprobs: Array
    topk_tokens: Array
    topk_logprobs: Array
    alt_tokens: Array
    alt_logprobs: Array
    target_logprobs: Array


class PromptReport:
    """Collects logprobs at the positions of a prompt, at temperature 1.

    Of its own tokens, of the most probable ones, of tokens drawn as alternatives, and of those that
    the request named.
    """

    def __init__(self, body: SampleBody, seed: int) -> None:
        num_tokens, k, num_alts = (
            len(body.prompt_tokens),
            body.topk_prompt_logprobs,
            body.prompt_alt_tokens_k,
        )
        self._tokens_N = torch.from_numpy(np.asarray(body.prompt_tokens, np.int64))
        self._k = k
        self._num_alts = num_alts
        self._temperature = body.params.temperature
        self._seed = seed
        self._wants_logprobs = body.prompt_logprobs
        last_n = body.prompt_logprobs_last_n
        self._first_scored = 1 if last_n is None else max(1, num_tokens - last_n)
        self._targets = _Targets(body.targets) if body.targets is not None else None
        self._logprobs = np.full(num_tokens, np.nan, np.float32)
        self._topk_tokens = np.zeros((num_tokens, k), np.int32)
        self._topk_logprobs = np.full((num_tokens, k), NO_TOPK_LOGPROB, np.float32)
        self._alt_tokens = np.zeros((num_tokens - 1, num_alts), np.int32)
        self._alt_logprobs = np.zeros((num_tokens - 1, num_alts), np.float32)

    @property
    def first_wanted(self) -> int:
        """The first position that anything is asked about; N when nothing is."""
        wanted = [len(self._tokens_N)]
        if self._wants_logprobs or self._k:
            wanted.append(self._first_scored)
        if self._num_alts:
            wanted.append(1)
        if self._targets is not None:
            wanted.append(self._targets.first_position)
        return min(wanted)

    def compute(
        self,
        hidden_TD: Tensor,
        first: int,
        logits: Callable[[Tensor], Tensor],
        copies: HostCopies,
    ) -> list[ReportRows]:
        """Rows for the positions that follow those of ``hidden_TD``; changes nothing.

        Shapes:
            hidden_TD: prompt positions from ``first`` on. ``logits`` maps [S, D] to [S, V] fp32.
        """
        # The last prompt position predicts the first sampled token, which is not reported here.
        num_rows = min(hidden_TD.shape[0], len(self._tokens_N) - 1 - first)
        computed: list[ReportRows] = []
        for begin in range(max(0, self.first_wanted - 1 - first), num_rows, LOGIT_ROWS):
            end = min(begin + LOGIT_ROWS, num_rows)
            start, stop = first + begin + 1, first + end + 1
            computed.append(self._rows(start, stop, logits(hidden_TD[begin:end]), copies))
        return computed

    def _rows(self, start: int, stop: int, logits_SV: Tensor, copies: HostCopies) -> ReportRows:
        k = self._k
        targets_S1 = to_device(self._tokens_N[start:stop, None], logits_SV.device)
        topk_SK = logits_SV.topk(k, -1).indices
        alts_SA = self._alternatives(start, stop, logits_SV)
        normalizers_S1 = normalizers_of(logits_SV)
        columns = torch.cat((targets_S1, topk_SK, alts_SA), 1)
        logprobs = copies.of(logits_SV.gather(1, columns) - normalizers_S1).numpy()
        of_targets = np.zeros(0, np.float32)
        if self._targets is not None:
            found = self._targets.logprobs(start, stop, logits_SV, normalizers_S1)
            of_targets = copies.of(found).numpy()
        return ReportRows(
            start,
            stop,
            logprobs[:, 0],
            copies.of(topk_SK.to(torch.int32)).numpy(),
            logprobs[:, 1 : 1 + k],
            copies.of(alts_SA.to(torch.int32)).numpy(),
            logprobs[:, 1 + k :],
            of_targets,
        )

    def _alternatives(self, start: int, stop: int, logits_SV: Tensor) -> Tensor:
        num_alts = self._num_alts
        shape = (stop - start, num_alts)
        if not num_alts:
            return torch.zeros(shape, dtype=torch.int64, device=logits_SV.device)
        positions = np.repeat(np.arange(start, stop), num_alts)
        draws = np.tile(np.arange(num_alts), stop - start)
        seeds = np.full(len(draws), self._seed, np.uint64)
        numbers = uniforms(seeds, draws, positions, Stream.ALTERNATIVES).reshape(shape)
        uniforms_SA = to_device(torch.from_numpy(numbers), logits_SV.device)
        return draw_alternatives(logits_SV, self._temperature, uniforms_SA)

    def add(self, rows: ReportRows) -> None:
        """Write down what ``compute`` found."""
        scored = max(rows.start, self._first_scored)
        if scored < rows.stop:
            self._logprobs[scored : rows.stop] = rows.logprobs[scored - rows.start :]
            self._topk_tokens[scored : rows.stop] = rows.topk_tokens[scored - rows.start :]
            self._topk_logprobs[scored : rows.stop] = rows.topk_logprobs[scored - rows.start :]
        self._alt_tokens[rows.start - 1 : rows.stop - 1] = rows.alt_tokens
        self._alt_logprobs[rows.start - 1 : rows.stop - 1] = rows.alt_logprobs
        if self._targets is not None:
            self._targets.add(rows.start, rows.stop, rows.target_logprobs)

    def complete(
        self, sequences: Sequence[SampledSequence], num_cache_hit_tokens: int
    ) -> SampleResult:
        """The result of a request: its sequences, and of this report what was asked for."""
        return SampleResult(
            sequences,
            self._logprobs if self._wants_logprobs else None,
            self._topk_tokens if self._k else None,
            self._topk_logprobs if self._k else None,
            self._alt_tokens if self._num_alts else None,
            self._alt_logprobs if self._num_alts else None,
            self._targets.answer() if self._targets is not None else None,
            num_cache_hit_tokens,
        )


class _Targets:
    """Tokens that a request named, cell by cell; row i of the cells is position i + 1."""

    def __init__(self, targets: PromptTargets) -> None:
        self._cells = targets.cells
        self._tokens_C = np.asarray(targets.tokens, np.int64)
        self._positions_C = targets.cells.rows() + 1
        self._logprobs_C = np.zeros(len(self._tokens_C), np.float32)

    @property
    def first_position(self) -> int:
        """The first position of which a token is named; the end of the prompt if there is none."""
        named = np.flatnonzero(self._tokens_C >= 0)
        return int(self._positions_C[named[0]]) if len(named) else self._cells.num_rows + 1

    def logprobs(self, start: int, stop: int, logits_SV: Tensor, normalizers_S1: Tensor) -> Tensor:
        """Of the cells in positions [start, stop); 0.0 where no token is named."""
        cells, device = self._range(start, stop), logits_SV.device
        tokens = to_device(torch.from_numpy(self._tokens_C[cells]), device)
        rows = to_device(torch.from_numpy(self._positions_C[cells] - start), device)
        logprobs = logits_SV[rows, tokens.clamp(min=0)] - normalizers_S1[rows, 0]
        return logprobs.masked_fill_(tokens < 0, 0.0)

    def add(self, start: int, stop: int, logprobs: Array) -> None:
        self._logprobs_C[self._range(start, stop)] = logprobs

    def answer(self) -> TargetLogprobs:
        return TargetLogprobs(self._cells, self._logprobs_C)

    def _range(self, start: int, stop: int) -> slice:
        begin, end = np.searchsorted(self._positions_C, (start, stop))
        return slice(int(begin), int(end))
