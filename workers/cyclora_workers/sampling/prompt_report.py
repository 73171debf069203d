"""What a request asked to know about its prompt, gathered chunk by chunk.

Legend: N prompt tokens, K most probable tokens, S rows of one chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cyclora_core.operations import SampleBody
from cyclora_core.payload import Array
from cyclora_workers.sampling.choose import logprobs_of

LOGIT_ROWS = 128
"""Rows whose logits exist at one time; a [N, V] table of a long prompt would not fit."""

_PADDING_LOGPROB = -99999.0
"""Row 0 of the top-k table: nothing precedes the first token, so nothing was predicted."""


@dataclass(frozen=True, slots=True)
class ReportRows:
    """Prompt positions [start, stop), as predicted by the position before each.

    Shapes:
        logprobs: [S] fp32. topk_tokens, topk_logprobs: [S, K].
    """

    start: int
    stop: int
    logprobs: Array
    topk_tokens: Array
    topk_logprobs: Array


class PromptReport:
    """Collects the logprobs of a prompt at temperature 1, and its most probable tokens."""

    def __init__(self, body: SampleBody) -> None:
        num_tokens, k = len(body.prompt_tokens), body.topk_prompt_logprobs
        self._tokens_N = torch.from_numpy(np.asarray(body.prompt_tokens, np.int64))
        self.k = k
        self.wants_logprobs = body.prompt_logprobs
        self.logprobs = np.full(num_tokens, np.nan, np.float32)
        self.topk_tokens = np.zeros((num_tokens, k), np.int32)
        self.topk_logprobs = np.full((num_tokens, k), _PADDING_LOGPROB, np.float32)

    @property
    def is_wanted(self) -> bool:
        return self.wants_logprobs or self.k > 0

    def compute(
        self, hidden_TD: Tensor, first: int, logits: Callable[[Tensor], Tensor]
    ) -> list[ReportRows]:
        """Rows for the positions that follow those of ``hidden_TD``; changes nothing.

        Shapes:
            hidden_TD: prompt positions from ``first`` on. ``logits`` maps [S, D] to [S, V] fp32.
        """
        # The last prompt position predicts the first sampled token, which is not reported here.
        num_rows = min(hidden_TD.shape[0], len(self._tokens_N) - 1 - first)
        computed: list[ReportRows] = []
        for begin in range(0, num_rows, LOGIT_ROWS):
            end = min(begin + LOGIT_ROWS, num_rows)
            start, stop = first + begin + 1, first + end + 1
            logits_SV = logits(hidden_TD[begin:end])
            targets_S1 = self._tokens_N[start:stop, None].to(logits_SV.device)
            topk_SK = logits_SV.topk(self.k, -1).indices
            logprobs = logprobs_of(logits_SV, torch.cat((targets_S1, topk_SK), 1)).cpu().numpy()
            topk_tokens = topk_SK.to(torch.int32).cpu().numpy()
            computed.append(ReportRows(start, stop, logprobs[:, 0], topk_tokens, logprobs[:, 1:]))
        return computed

    def add(self, rows: ReportRows) -> None:
        """Write down what ``compute`` found."""
        self.logprobs[rows.start : rows.stop] = rows.logprobs
        self.topk_tokens[rows.start : rows.stop] = rows.topk_tokens
        self.topk_logprobs[rows.start : rows.stop] = rows.topk_logprobs
