"""Which expert computes which token, and where its row lies among the rows of all experts.

Every token is given to its experts once. The rows of an expert lie together, in the order of
their tokens, so those of one segment lie together as well; each expert's rows are filled up to
``ROW_ALIGNMENT``, so its frozen product takes the same kernel whoever else is in the pass.

Legend: T packed tokens, n of them planned, K experts per token, E experts, P rows of all experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cyclora_workers.context import ROW_ALIGNMENT, Segment
from cyclora_workers.multi_adapter_linear import MultiAdapterLinear, PassHolder


class Router(nn.Module):
    """Stands in for a model's router: the same choice, of aligned rows; it has no adapters.

    ::

        scores = top_k(softmax(x W^T))     normalised to a sum of 1 where the model does so
        scores = softmax(top_k(x W^T))     with ``chooses_first``
    """

    def __init__(
        self, linear: MultiAdapterLinear, top_k: int, *, normalizes: bool, chooses_first: bool
    ) -> None:
        super().__init__()
        self.linear = linear
        self.top_k = top_k
        self.normalizes = normalizes
        self.chooses_first = chooses_first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: x [..., D]. Returns logits [T, E], scores [T, K], and indices [T, K]."""
        logits_TE: Tensor = self.linear(x.reshape(-1, x.shape[-1]))
        if self.chooses_first:
            chosen_TK, indices_TK = torch.topk(logits_TE, self.top_k, dim=-1)
            scores_TK = torch.softmax(chosen_TK, -1, dtype=torch.float32)
        else:
            weights_TE = torch.softmax(logits_TE, -1, dtype=torch.float32)
            scores_TK, indices_TK = torch.topk(weights_TE, self.top_k, dim=-1)
            if self.normalizes:
                scores_TK = scores_TK / scores_TK.sum(-1, keepdim=True)
        return logits_TE, scores_TK, indices_TK


def router_of(name: str, module: Any, holder: PassHolder) -> Router:
    """Our router in place of one of a known mixture's (``architecture.MIXTURES``)."""
    bias: nn.Parameter | None = getattr(module, "bias", None)
    with torch.device("meta"):
        linear = nn.Linear(module.hidden_dim, module.num_experts, bias=bias is not None)
    linear.weight = module.weight
    if bias is not None:
        linear.bias = bias
    kind = type(module).__name__
    return Router(
        MultiAdapterLinear(name, linear, holder),
        module.top_k,
        normalizes=kind == "MixtralTopKRouter" or getattr(module, "norm_topk_prob", False),
        chooses_first=kind == "GptOssTopKRouter",
    )


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """Rows [start, stop) are those of one expert; a multiple of ``ROW_ALIGNMENT``."""

    expert: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ExpertRun:
    """Rows [start, stop) of one expert that belong to one segment."""

    expert: int
    start: int
    stop: int
    segment: Segment


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """Where every token's rows are.

    Shapes:
        token_of_row_P, row_of_token_TK: int64. Rows that only fill up are some token's as well;
        tokens from ``num_planned`` on have row 0, whose results they must not touch.
    """

    num_planned: int
    experts: Sequence[ExpertRows]
    runs: Sequence[ExpertRun]
    token_of_row_P: Tensor
    row_of_token_TK: Tensor

    @classmethod
    def of(cls, indices_TK: Tensor, num_experts: int, segments: Sequence[Segment]) -> Routing:
        """Lay out the rows of a pass."""
        device = indices_TK.device
        num_tokens, top_k = indices_TK.shape
        num_planned = segments[-1].stop
        expert_of_choice = indices_TK[:num_planned].reshape(-1)
        order = torch.argsort(expert_of_choice, stable=True)
        sizes = torch.tensor([each.stop - each.start for each in segments], device=device)
        segment_of_token = torch.repeat_interleave(torch.arange(len(segments)).to(device), sizes)
        key = expert_of_choice * len(segments) + segment_of_token.repeat_interleave(top_k)
        counts_ES = torch.bincount(key, minlength=num_experts * len(segments))
        counts: list[list[int]] = counts_ES.view(num_experts, len(segments)).tolist()

        experts: list[ExpertRows] = []
        runs: list[ExpertRun] = []
        shifts: list[int] = []
        start = num_before = 0
        for expert, of_segments in enumerate(counts):
            num_rows = sum(of_segments)
            shifts.append(start - num_before)
            num_before += num_rows
            if num_rows == 0:
                continue
            place = start
            for segment, count in zip(segments, of_segments, strict=True):
                if count:
                    runs.append(ExpertRun(expert, place, place + count, segment))
                place += count
            stop = start + -(-num_rows // ROW_ALIGNMENT) * ROW_ALIGNMENT
            experts.append(ExpertRows(expert, start, stop))
            start = stop

        row_of_choice = torch.empty_like(order)
        places = torch.arange(order.shape[0], device=device)
        row_of_choice[order] = places + torch.tensor(shifts, device=device)[expert_of_choice[order]]
        token_of_row_P = torch.zeros(start, dtype=torch.int64, device=device)
        token_of_row_P[row_of_choice] = places // top_k
        row_of_token_TK = torch.zeros(num_tokens, top_k, dtype=torch.int64, device=device)
        row_of_token_TK[:num_planned] = row_of_choice.view(-1, top_k)
        return cls(num_planned, experts, runs, token_of_row_P, row_of_token_TK)
