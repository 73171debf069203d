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
from cyclora_workers.sampling.cached_attention import CachedAttention, DecodeSpan, PrefillSpan
from cyclora_workers.sampling.choose import TopkRow, choose, top_logprobs
from cyclora_workers.sampling.packing import (
    DecodePart,
    Draw,
    Part,
    PlacedPart,
    PrefillPart,
    in_chunks,
    place,
    segments_of,
)
from cyclora_workers.sampling.prompt_report import LOGIT_ROWS, ReportRows
from cyclora_workers.sampling.randomness import uniforms


@dataclass(slots=True)
class PartOutcome:
    """What one part found: next tokens of its rows, and rows for the prompt report."""

    part: Part
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    topk: list[TopkRow | None] = field(default_factory=list[TopkRow | None])
    report_rows: list[ReportRows] = field(default_factory=list[ReportRows])


def run_parts(base_model: BaseModel, parts: Sequence[Part]) -> list[PartOutcome]:
    """Run the parts of all requests in one pass; caches get keys and values, uncounted."""
    placed = place(parts)
    tokens_T = np.concatenate([each.part.tokens for each in placed])
    positions_T = np.concatenate([each.part.positions for each in placed])
    context = PassContext(
        segments_of([(each.adapter, each.part.num_tokens) for each in placed]),
        _attention(placed, base_model.device),
    )
    hidden_TD = base_model.hidden(
        torch.from_numpy(tokens_T).to(base_model.device),
        torch.from_numpy(positions_T).to(base_model.device),
        context,
    )
    outcomes = {each.part.request.request_id: PartOutcome(each.part) for each in placed}
    draws = [draw for each in placed for draw in each.part.draws(each.start)]
    for chunk in in_chunks(draws, LOGIT_ROWS):
        _draw(base_model, hidden_TD, chunk, outcomes)
    for each in placed:
        outcomes[each.part.request.request_id].report_rows = _report(base_model, hidden_TD, each)
    return list(outcomes.values())


def _attention(placed: Sequence[PlacedPart], device: torch.device) -> CachedAttention:
    prefills: list[PrefillSpan] = []
    decodes: list[DecodeSpan] = []
    for each in placed:
        cache = each.part.request.cache
        if isinstance(each.part, PrefillPart):
            prefills.append(PrefillSpan(each.start, each.stop, cache))
        else:
            cache.make_room()
            decodes.append(DecodeSpan(each.start, each.stop, cache))
    return CachedAttention(prefills, decodes, device)


def _draw(
    base_model: BaseModel,
    hidden_TD: Tensor,
    draws: Sequence[Draw],
    outcomes: dict[str, PartOutcome],
) -> None:
    positions_S = torch.tensor([draw.position for draw in draws], device=hidden_TD.device)
    segments = segments_of([(draw.request.adapter, 1) for draw in draws])
    logits_SV = base_model.logits(hidden_TD.index_select(0, positions_S), segments)
    rules = [draw.request.draw_rule for draw in draws]
    uniforms_SK = torch.from_numpy(_uniforms(draws)).to(logits_SV.device)
    tokens_SK, logprobs_SK = choose(logits_SV, rules, uniforms_SK)
    topk = top_logprobs(logits_SV, rules, [draw.request.topk_sample_logprobs for draw in draws])
    chosen = zip(draws, tokens_SK.tolist(), logprobs_SK.tolist(), topk, strict=True)
    for draw, tokens, logprobs, topk_row in chosen:
        outcome = outcomes[draw.request.request_id]
        outcome.tokens += tokens[: len(draw.rows)]
        outcome.logprobs += logprobs[: len(draw.rows)]
        outcome.topk += [topk_row] * len(draw.rows)


def _uniforms(draws: Sequence[Draw]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Shapes: [S, K]; rows with fewer than K draws leave the rest at zero, unused."""
    of_rows = [(s, k, draw, row) for s, draw in enumerate(draws) for k, row in enumerate(draw.rows)]
    numbers = uniforms(
        np.asarray([draw.request.seed for _, _, draw, _ in of_rows], np.uint64),
        [row.sample_index for _, _, _, row in of_rows],
        [len(row.tokens) for _, _, _, row in of_rows],
    )
    uniforms_SK = np.zeros((len(draws), max(len(draw.rows) for draw in draws)))
    uniforms_SK[[s for s, *_ in of_rows], [k for _, k, *_ in of_rows]] = numbers
    return uniforms_SK


def _report(base_model: BaseModel, hidden_TD: Tensor, placed: PlacedPart) -> list[ReportRows]:
    part = placed.part
    if isinstance(part, DecodePart):
        return []

    def logits(hidden_SD: Tensor) -> Tensor:
        return base_model.logits(hidden_SD, [Segment(0, hidden_SD.shape[0], placed.adapter)])

    rows_TD = hidden_TD[placed.start : placed.stop]
    return part.request.report.compute(rows_TD, part.first, logits)
