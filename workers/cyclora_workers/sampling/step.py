"""One packed pass of the sampler: everything of an engine step that needs the base model.

Nothing here changes a request; what was found is applied afterwards, so a pass that fails can be
run again for each request alone.

The host waits for the device once, at the end: which tokens were drawn decides what the next step
is fed and who has ended, so every step needs them. What prompts report comes in the same wait.

Legend: T packed tokens, S rows that draw, K draws per row, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import Segment
from cyclora_workers.sampling.choose import TopkRow, choose, top_logprobs
from cyclora_workers.sampling.packing import (
    DecodePart,
    Draw,
    Part,
    PlacedPart,
    place,
    rows_of,
    segments_of,
)
from cyclora_workers.sampling.prompt_report import LOGIT_ROWS, ReportRows
from cyclora_workers.sampling.randomness import uniforms
from cyclora_workers.sampling.request import Drawn
from cyclora_workers.sampling.step_model import StepModel
from cyclora_workers.transfer import HostCopies, to_device


@dataclass(slots=True)
class PartOutcome:
    """What one part found: next tokens of its rows, and rows for the prompt report."""

    part: Part
    drawn: list[Drawn] = field(default_factory=list[Drawn])
    report_rows: list[ReportRows] = field(default_factory=list[ReportRows])


@dataclass(frozen=True, slots=True, eq=False)
class _Choices:
    """What some draws have chosen, and whose outcomes they are; [S, K] tensors on the host.

    Their numbers are there once the copies have been waited for.
    """

    draws: Sequence[tuple[Draw, PartOutcome]]
    tokens_SK: Tensor
    logprobs_SK: Tensor
    topk: Sequence[TopkRow | None]


def run_parts(base_model: BaseModel, model: StepModel, parts: Sequence[Part]) -> list[PartOutcome]:
    """Run the parts of all requests in one pass; the pool gets keys and values, uncounted."""
    placed = place(parts)
    hidden_TD = model.hidden(rows_of(placed))
    outcomes = [PartOutcome(each.part) for each in placed]
    draws = [
        (draw, outcome)
        for each, outcome in zip(placed, outcomes, strict=True)
        for draw in each.part.draws(each.start)
    ]
    copies = HostCopies()
    choices = [
        _choose(model, hidden_TD, draws[begin : begin + LOGIT_ROWS], copies)
        for begin in range(0, len(draws), LOGIT_ROWS)
    ]
    for each, outcome in zip(placed, outcomes, strict=True):
        outcome.report_rows = _report(base_model, hidden_TD, each, copies)
    copies.wait()
    for chosen in choices:
        _hand_out(chosen)
    return outcomes


def _choose(
    model: StepModel,
    hidden_TD: Tensor,
    chunk: Sequence[tuple[Draw, PartOutcome]],
    copies: HostCopies,
) -> _Choices:
    draws = [draw for draw, _ in chunk]
    positions_S = to_device(torch.tensor([draw.position for draw in draws]), hidden_TD.device)
    segments = segments_of([(draw.request.adapter, 1) for draw in draws])
    logits_SV = model.logits(hidden_TD.index_select(0, positions_S), segments)
    rules = [draw.request.draw_rule for draw in draws]
    uniforms_SK = to_device(torch.from_numpy(_uniforms(draws)), logits_SV.device)
    tokens_SK, logprobs_SK = choose(logits_SV, rules, uniforms_SK)
    ks = [draw.request.topk_sample_logprobs for draw in draws]
    topk = top_logprobs(logits_SV, rules, ks, copies)
    return _Choices(chunk, copies.of(tokens_SK), copies.of(logprobs_SK), topk)


def _hand_out(choices: _Choices) -> None:
    tokens_SK, logprobs_SK = choices.tokens_SK.tolist(), choices.logprobs_SK.tolist()
    chosen = zip(choices.draws, tokens_SK, logprobs_SK, choices.topk, strict=True)
    for (draw, outcome), tokens, logprobs, topk in chosen:
        # Rows keep their tables until they end.
        table = None if topk is None else TopkRow(topk.tokens.copy(), topk.logprobs.copy())
        # Not strict: there are as many columns as the draw with the most rows has.
        outcome.drawn += [
            Drawn(row, token, logprob, table)
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


def _report(
    base_model: BaseModel, hidden_TD: Tensor, placed: PlacedPart, copies: HostCopies
) -> list[ReportRows]:
    part = placed.part
    if isinstance(part, DecodePart) or part.request.has_prompt:
        return []

    def logits(hidden_SD: Tensor) -> Tensor:
        return base_model.logits(hidden_SD, [Segment(0, hidden_SD.shape[0], placed.adapter)])

    rows_TD = hidden_TD[placed.start : placed.stop]
    return part.request.report.compute(rows_TD, part.row.num_cached, logits, copies)
