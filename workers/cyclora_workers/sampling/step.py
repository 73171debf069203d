"""One packed pass of the sampler: everything of an engine step that needs the base model.

Nothing here changes a request; what was found is applied afterwards, so a pass that fails can be
run again for each request alone.

Legend: T packed tokens, S rows that draw, K draws per row, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import PassContext, Segment
from cyclora_workers.sampling.choose import choose, top_logprobs
from cyclora_workers.sampling.kv_pool import KvPool
from cyclora_workers.sampling.packing import (
    DecodePart,
    Draw,
    Part,
    PlacedPart,
    place,
    segments_of,
)
from cyclora_workers.sampling.paged_attention import PagedAttention, PagedSpan
from cyclora_workers.sampling.prompt_report import LOGIT_ROWS, ReportRows
from cyclora_workers.sampling.randomness import uniforms
from cyclora_workers.sampling.request import Drawn
from cyclora_workers.stacked_low_rank import StackCache


@dataclass(slots=True)
class PartOutcome:
    """What one part found: next tokens of its rows, and rows for the prompt report."""

    part: Part
    drawn: list[Drawn] = field(default_factory=list[Drawn])
    report_rows: list[ReportRows] = field(default_factory=list[ReportRows])


def run_parts(
    base_model: BaseModel, pool: KvPool, stacks: StackCache, parts: Sequence[Part]
) -> list[PartOutcome]:
    """Run the parts of all requests in one pass; the pool gets keys and values, uncounted."""
    placed = place(parts)
    tokens: list[int] = []
    positions: list[int] = []
    spans: list[PagedSpan] = []
    for each in placed:
        tokens += each.part.tokens()
        positions += each.part.positions()
        spans += each.part.spans(each.start)
    segments = segments_of([(each.adapter, each.part.num_tokens) for each in placed])
    context = PassContext(segments, PagedAttention(pool, spans), stacked=stacks.over(segments))
    hidden_TD = base_model.hidden(
        torch.tensor(tokens, device=base_model.device),
        torch.tensor(positions, device=base_model.device),
        context,
    )
    outcomes = [PartOutcome(each.part) for each in placed]
    draws = [
        (draw, outcome)
        for each, outcome in zip(placed, outcomes, strict=True)
        for draw in each.part.draws(each.start)
    ]
    for begin in range(0, len(draws), LOGIT_ROWS):
        _draw(base_model, stacks, hidden_TD, draws[begin : begin + LOGIT_ROWS])
    for each, outcome in zip(placed, outcomes, strict=True):
        outcome.report_rows = _report(base_model, hidden_TD, each)
    return outcomes


def _draw(
    base_model: BaseModel,
    stacks: StackCache,
    hidden_TD: Tensor,
    chunk: Sequence[tuple[Draw, PartOutcome]],
) -> None:
    draws = [draw for draw, _ in chunk]
    positions_S = torch.tensor([draw.position for draw in draws], device=hidden_TD.device)
    segments = segments_of([(draw.request.adapter, 1) for draw in draws])
    stacked = stacks.over(segments, may_shrink=False)
    logits_SV = base_model.logits(hidden_TD.index_select(0, positions_S), segments, stacked)
    rules = [draw.request.draw_rule for draw in draws]
    uniforms_SK = torch.from_numpy(_uniforms(draws)).to(logits_SV.device)
    tokens_SK, logprobs_SK = choose(logits_SV, rules, uniforms_SK)
    topk = top_logprobs(logits_SV, rules, [draw.request.topk_sample_logprobs for draw in draws])
    chosen = zip(chunk, tokens_SK.tolist(), logprobs_SK.tolist(), topk, strict=True)
    for (draw, outcome), tokens, logprobs, topk_row in chosen:
        # Not strict: there are as many columns as the draw with the most rows has.
        outcome.drawn += [
            Drawn(row, token, logprob, topk_row)
            for row, token, logprob in zip(draw.rows, tokens, logprobs, strict=False)
        ]


def _uniforms(draws: Sequence[Draw]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Shapes: [S, K]; rows with fewer than K draws leave the rest at zero, unused."""
    counts = [len(draw.rows) for draw in draws]
    rows = [row for draw in draws for row in draw.rows]
    numbers = uniforms(
        np.repeat(np.asarray([draw.request.seed for draw in draws], np.uint64), counts),
        [row.sample_index for row in rows],
        [len(row.tokens) for row in rows],
    )
    most = max(counts)
    if most == 1:
        return numbers[:, None]
    uniforms_SK = np.zeros((len(draws), most))
    uniforms_SK[np.arange(most) < np.asarray(counts)[:, None]] = numbers
    return uniforms_SK


def _report(base_model: BaseModel, hidden_TD: Tensor, placed: PlacedPart) -> list[ReportRows]:
    part = placed.part
    if isinstance(part, DecodePart) or part.request.has_prompt:
        return []

    def logits(hidden_SD: Tensor) -> Tensor:
        return base_model.logits(hidden_SD, [Segment(0, hidden_SD.shape[0], placed.adapter)])

    rows_TD = hidden_TD[placed.start : placed.stop]
    return part.request.report.compute(rows_TD, part.row.num_cached, logits)
