"""Unembedding and the fused log-probability head: logits never exist for the whole batch.

For a token-local loss the coefficient d loss / d logprob is known as soon as a chunk's logprobs
are, so the gradient to the hidden states is made by hand in the same chunk::

    logprob[t, k]  = logits[t, target[t, k]] - logsumexp(logits[t])
    dlogits[t]     = sum_k coefficient[t, k] * (onehot(target[t, k]) - softmax(logits[t]))
    dhidden[t]     = dlogits[t] W + (scaling * dlogits[t] B) A

Legend: T packed tokens, N rows of one piece, M rows with a gradient, K targets per token,
D hidden, V vocabulary, R lora_rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cyclora_workers.context import ROW_ALIGNMENT, Segment, align_rows
from cyclora_workers.cuda.low_rank import LowRank
from cyclora_workers.logit_rule import NO_RULE, LogitRule
from cyclora_workers.losses import TokenLoss
from cyclora_workers.low_rank import (
    SegmentAdapter,
    add_low_rank_,
    add_low_ranks_,
    low_rank_backward_,
    rows_from,
    segment_adapters,
)
from cyclora_workers.rows import aligned_width, linear_with_aligned_rows, with_aligned_rows
from cyclora_workers.stacked_low_rank import StackedLowRank
from cyclora_workers.transfer import to_device

HEAD_CHUNK_ROWS = 512
"""Default bound on the rows whose logits exist at one time.

About three fp32 tensors of this many rows times the vocabulary are held; fewer rows make the
product with the unembedding less efficient.
"""


class Unembedding:
    """The frozen matrix from hidden states to logits, and the adapters on it."""

    def __init__(
        self,
        name: str,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        rule: LogitRule = NO_RULE,
    ) -> None:
        self.name = name
        self.weight_VD = weight_VD
        self.bias_V = bias_V
        self.rule = rule

    def adapters(self, segments: Sequence[Segment]) -> list[SegmentAdapter]:
        """The segments whose adapter targets the unembedding."""
        return segment_adapters(segments, self.name)

    def logits(
        self, hidden_TD: Tensor, adapters: Sequence[SegmentAdapter]
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits of aligned rows, and x A^T of each adapter's rows for the backward pass.

        Shapes:
            hidden_TD: T a multiple of ``ROW_ALIGNMENT``. Returns [T, V] fp32, and [N, R] each.
        """
        hidden_TD, logits_TV = self._base_logits(hidden_TD)
        lows = [add_low_rank_(logits_TV, hidden_TD, adapter) for adapter in adapters]
        self.rule.apply_(logits_TV)
        return logits_TV, lows

    def sampled_logits(
        self,
        hidden_TD: Tensor,
        segments: Sequence[Segment],
        stacked: StackedLowRank | None,
        grouped: LowRank | None = None,
    ) -> Tensor:
        """The same logits, on a CPU to the bit, where no backward pass follows.

        With ``grouped`` all segments are computed by one kernel.

        Shapes:
            As ``logits``.
        """
        hidden_TD, logits_TV = self._base_logits(hidden_TD)
        if grouped is not None:
            grouped.add_(logits_TV, hidden_TD)
        else:
            add_low_ranks_(logits_TV, hidden_TD, self.name, segments, stacked)
        self.rule.apply_(logits_TV)
        return logits_TV

    def _base_logits(self, hidden_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and logits of the frozen product, both with aligned rows."""
        hidden_TD = with_aligned_rows(hidden_TD.detach())
        if hidden_TD.is_cuda and hidden_TD.dtype != torch.float32:
            logits_TV = torch.mm(hidden_TD, self.weight_VD.t(), out_dtype=torch.float32)
            if self.bias_V is not None:
                logits_TV += self.bias_V
        else:
            logits_TV = linear_with_aligned_rows(hidden_TD, self.weight_VD, self.bias_V).float()
        return hidden_TD, with_aligned_rows(logits_TV)


def log_normalizers(logits_TV: Tensor) -> Tensor:
    """What to subtract from logits to get logprobs: [T, 1], the same for trainer and sampler."""
    return torch.logsumexp(logits_TV, -1, keepdim=True)


HeadLoss = Callable[[Tensor], TokenLoss]
"""From logprobs [N, K] to losses."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadPiece:
    """Consecutive rows of one block; where it is cut depends on its own operation alone.

    Shapes:
        targets_NK: int64, as many rows as the segment.
    """

    segment: Segment
    targets_NK: Tensor
    loss: HeadLoss


@dataclass(frozen=True, slots=True, eq=False)
class PieceResult:
    """Shapes: logprobs_NK fp32; loss_sum a float64 scalar."""

    logprobs_NK: Tensor
    loss_sum: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class HeadResult:
    """One result per piece; ``gradient_TD`` is d loss / d hidden when it was asked for."""

    pieces: Sequence[PieceResult]
    gradient_TD: Tensor | None


@torch.no_grad()
def fused_head(
    unembedding: Unembedding,
    hidden_TD: Tensor,
    pieces: Sequence[HeadPiece],
    *,
    needs_gradient: bool,
    max_chunk_rows: int = HEAD_CHUNK_ROWS,
) -> HeadResult:
    """Logprobs and losses of all pieces; with ``needs_gradient`` also what flows back.

    The gradients of adapters on the unembedding are accumulated into their buffers on the way.
    Rows whose coefficients are all zero are left out of the backward products.

    Shapes:
        hidden_TD: the pieces cover its rows in order. ``gradient_TD`` has the same shape and dtype.
    """
    gradient_TD = torch.zeros_like(hidden_TD) if needs_gradient else None
    results: list[PieceResult] = []
    for chunk in _chunks(pieces, max_chunk_rows):
        first = chunk[0].segment.start
        num_rows = chunk[-1].segment.stop - first
        rows_TD = with_aligned_rows(rows_from(hidden_TD, first, align_rows(num_rows)))
        forward = _forward_chunk(unembedding, rows_TD, chunk, first)
        results += [
            PieceResult(part.logprobs_NK, part.token_loss.loss.double().sum()) for part in forward
        ]
        if gradient_TD is not None:
            _backward_chunk(unembedding, rows_TD, forward, gradient_TD[first : first + num_rows])
    return HeadResult(results, gradient_TD)


def _chunks(pieces: Sequence[HeadPiece], max_chunk_rows: int) -> Iterator[list[HeadPiece]]:
    """Group whole pieces, so that one product serves many small ones."""
    chunk: list[HeadPiece] = []
    for piece in pieces:
        if chunk and piece.segment.stop - chunk[0].segment.start > max_chunk_rows:
            yield chunk
            chunk = []
        chunk.append(piece)
    if chunk:
        yield chunk


@dataclass(frozen=True, slots=True, eq=False)
class _ForwardPart:
    """What one piece's backward needs; rows count from the start of the chunk.

    ``logits_NV`` becomes the softmax in place when the backward comes to it.
    """

    rows: slice
    adapter: SegmentAdapter | None
    low_NR: Tensor | None
    targets_NK: Tensor
    logits_NV: Tensor
    normalizer_N1: Tensor
    logprobs_NK: Tensor
    token_loss: TokenLoss


def _forward_chunk(
    unembedding: Unembedding, rows_TD: Tensor, chunk: Sequence[HeadPiece], first: int
) -> list[_ForwardPart]:
    segments = [
        replace(p.segment, start=p.segment.start - first, stop=p.segment.stop - first)
        for p in chunk
    ]
    adapters = [unembedding.adapters([segment]) for segment in segments]
    logits_TV, lows = unembedding.logits(rows_TD, [a for found in adapters for a in found])
    normalizers_T1 = log_normalizers(logits_TV)
    remaining_lows = iter(lows)
    parts: list[_ForwardPart] = []
    for piece, segment, found in zip(chunk, segments, adapters, strict=True):
        rows = slice(segment.start, segment.stop)
        logprobs_NK = logits_TV[rows].gather(1, piece.targets_NK) - normalizers_T1[rows]
        parts.append(
            _ForwardPart(
                rows,
                found[0] if found else None,
                next(remaining_lows) if found else None,
                piece.targets_NK,
                logits_TV[rows],
                normalizers_T1[rows],
                logprobs_NK,
                piece.loss(logprobs_NK),
            )
        )
    return parts


def _backward_chunk(
    unembedding: Unembedding,
    rows_TD: Tensor,
    parts: Sequence[_ForwardPart],
    gradient_TD: Tensor,
) -> None:
    """Write d loss / d hidden into ``gradient_TD``, which begins at the chunk's first row."""
    kept = _kept_rows([part.token_loss.coefficient for part in parts])
    counts = [part.normalizer_N1[rows_M].shape[0] for part, rows_M in zip(parts, kept, strict=True)]
    num_rows = sum(counts)
    if num_rows == 0:
        return
    vocab_size = unembedding.weight_VD.shape[0]
    # Aligned: with an odd vocabulary a piece would begin anywhere, and its sums over V with it.
    # Followed by rows enough for the last adapter's products, which would copy its own otherwise.
    padded_MV = rows_TD.new_empty(
        align_rows(num_rows) + ROW_ALIGNMENT,
        aligned_width(vocab_size, rows_TD.dtype),
        dtype=torch.float32,
    )
    padded_MV[num_rows:] = 0.0
    padded_MV[:, vocab_size:] = 0.0
    dlogits_MV = padded_MV[:, :vocab_size]
    ranges: list[slice] = []
    for part, rows_M, count in zip(parts, kept, counts, strict=True):
        mine = slice(ranges[-1].stop if ranges else 0, (ranges[-1].stop if ranges else 0) + count)
        ranges.append(mine)
        torch.sub(part.logits_NV[rows_M], part.normalizer_N1[rows_M], out=dlogits_MV[mine])
    # One exponential over aligned rows: the last elements of an odd-sized tensor take another,
    # not vectorised path, whose last bit may differ.
    padded_MV.exp_()
    for part, rows_M, mine in zip(parts, kept, ranges, strict=True):
        coefficient_MK = part.token_loss.coefficient[rows_M]
        dlogits_MV[mine].mul_(-coefficient_MK.sum(1, keepdim=True))
        dlogits_MV[mine].scatter_add_(1, part.targets_NK[rows_M], coefficient_MK)
        if unembedding.rule != NO_RULE:
            unembedding.rule.backward_(dlogits_MV[mine], part.logits_NV[rows_M])
    dlogits_MV = padded_MV.to(rows_TD.dtype)[:, :vocab_size]
    aligned_MV = dlogits_MV[: align_rows(num_rows)]
    dhidden_MD = linear_with_aligned_rows(aligned_MV, unembedding.weight_VD.t(), None)
    for part, rows_M, mine in zip(parts, kept, ranges, strict=True):
        if part.adapter is not None and part.low_NR is not None and mine.stop > mine.start:
            x_MD, low_MR = rows_TD[part.rows][rows_M], part.low_NR[rows_M]
            segment = replace(part.adapter, start=mine.start, stop=mine.stop)
            low_rank_backward_(segment, low_MR, dlogits_MV, x_MD, dhidden_MD)
        gradient_TD[part.rows][rows_M] = dhidden_MD[mine]


def _kept_rows(coefficients: Sequence[Tensor]) -> list[Tensor | slice]:
    """Index of each piece's rows that have a gradient; of all rows a slice, which copies nothing.

    How many there are decides the sizes of the products, so the host has to wait for the device:
    once for all pieces of a chunk.

    Shapes:
        coefficients: [N, K] each.
    """
    device = coefficients[0].device
    is_kept_T = torch.cat([(each != 0).any(1) for each in coefficients]).cpu()
    kept: list[Tensor | slice] = []
    for is_kept_N in is_kept_T.split([each.shape[0] for each in coefficients]):
        rows_M = is_kept_N.nonzero()[:, 0]
        is_all = rows_M.shape[0] == is_kept_N.shape[0]
        kept.append(slice(None) if is_all else to_device(rows_M, device))
    return kept
