"""Packed passes: the data of any number of adapters through the base model together.

Every operation is cut into blocks by a rule that knows only that operation. Microbatches are made
of whole blocks, and everything that sums over tokens sums over the tokens of one block. So what a
tenant gets does not depend on who shares its microbatches: on CPU not in a single bit.

Legend: T packed tokens, N tokens of one block, K targets per token, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cyclora_core.blocks import MAX_BLOCK_TOKENS, split_into_blocks
from cyclora_core.errors import ServerError
from cyclora_core.losses import Config, full_config
from cyclora_core.operations import Datum, PassBody, PassResult
from cyclora_core.payload import Array
from cyclora_core.types import DatumRange
from cyclora_workers.adapter import AdapterState, GradientMark
from cyclora_workers.attention import PackedAttention
from cyclora_workers.base_model import BaseModel
from cyclora_workers.block_inputs import TARGETS, stack_inputs, unstack_logprobs
from cyclora_workers.context import PassContext, Segment
from cyclora_workers.head import HEAD_CHUNK_ROWS, HeadPiece, fused_head
from cyclora_workers.losses import LOSSES, Inputs, LossFunction, TokenLoss
from cyclora_workers.pass_check import check_pass


@dataclass(frozen=True, slots=True, eq=False)
class PassItem:
    """One forward or forward_backward operation, or the part of it that this cycle runs."""

    request_id: str
    adapter: AdapterState
    body: PassBody
    needs_gradient: bool
    datum_range: DatumRange | None = None
    """Must begin and end between blocks of the whole operation; None is all its data."""


@dataclass(slots=True, eq=False)
class _Progress:
    """What is known so far of one item's result, in the order of its data."""

    item: PassItem
    loss: LossFunction
    loss_config: Config
    num_blocks: int
    num_finished_blocks: int = 0
    logprobs: list[Array] = field(default_factory=list[Array])
    loss_sums: list[Tensor] = field(default_factory=list[Tensor])


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    progress: _Progress
    data: Sequence[Datum]
    num_tokens: int


class PackedPasses(Iterator[int]):
    """Runs passes of any number of adapters, one microbatch per ``next``.

    Each ``next`` returns the number of tokens it ran, so the caller can do other work in between.
    Data of operations without a gradient go in microbatches of their own, which build no graph.

    When a ``next`` raises, the passes cannot go on: ``rollback`` brings every gradient back to
    where it was, after which each item may be run in a ``PackedPasses`` of its own to find out
    whose fault it was. Rolling back is also the way to give up half-way.
    """

    def __init__(
        self,
        base_model: BaseModel,
        items: Sequence[PassItem],
        *,
        max_tokens_per_microbatch: int,
        max_block_tokens: int = MAX_BLOCK_TOKENS,
        head_chunk_rows: int = HEAD_CHUNK_ROWS,
    ) -> None:
        """Plan the microbatches.

        Args:
            base_model: What all adapters belong to.
            items: In the order in which gradients accumulate; an adapter may occur repeatedly.
            max_tokens_per_microbatch: Bound on the tokens that go through the model together,
                except that a block is never cut.
            max_block_tokens: Must be the same in every process and for ever: numbers depend on it
                in their last bits.
            head_chunk_rows: Bound on the rows whose logits exist at one time; likewise.

        Raises:
            UserError: the body of an item is not acceptable; ``check_pass`` tells beforehand.
        """
        self._base_model = base_model
        self._head_chunk_rows = head_chunk_rows
        self._marks: dict[AdapterState, GradientMark] = {}
        self._progress: dict[str, _Progress] = {}
        blocks: dict[bool, list[_Block]] = {True: [], False: []}
        for item in items:
            check_pass(item.body, base_model.vocab_size, base_model.max_context_length)
            assert item.request_id not in self._progress, "one item per request and cycle"
            if item.needs_gradient and item.adapter not in self._marks:
                self._marks[item.adapter] = item.adapter.mark_gradient()
            ranges = _block_ranges(item, max_block_tokens)
            config = full_config(item.body.loss_fn, item.body.loss_fn_config)
            progress = _Progress(item, LOSSES[item.body.loss_fn], config, num_blocks=len(ranges))
            self._progress[item.request_id] = progress
            for part in ranges:
                data = item.body.data[part.start : part.stop]
                size = sum(len(datum.tokens) for datum in data)
                blocks[item.needs_gradient].append(_Block(progress, data, size))
        self._microbatches = iter(
            [
                *_microbatches(blocks[True], max_tokens_per_microbatch),
                *_microbatches(blocks[False], max_tokens_per_microbatch),
            ]
        )

    def __next__(self) -> int:
        """Run the next microbatch; returns the number of its tokens."""
        blocks = next(self._microbatches)
        needs_gradient = blocks[0].progress.item.needs_gradient
        with torch.set_grad_enabled(needs_gradient):
            self._run(blocks, needs_gradient)
        for block in blocks:
            progress = block.progress
            progress.num_finished_blocks += 1
            if needs_gradient and progress.num_finished_blocks == progress.num_blocks:
                progress.item.adapter.num_accumulated_passes += 1
        return sum(block.num_tokens for block in blocks)

    def rollback(self) -> None:
        """Bring the gradients of all adapters back to where they were before."""
        for adapter, mark in self._marks.items():
            adapter.restore_gradient(mark)

    def results(self) -> dict[str, PassResult]:
        """The result of each item by request_id, after the last microbatch."""
        return {request_id: _result(p) for request_id, p in self._progress.items()}

    def loss_terms(self) -> dict[str, list[float]]:
        """What each item's ``loss:sum`` is the sum of, to add up with those of its other parts."""
        return {request_id: _loss_terms(p) for request_id, p in self._progress.items()}

    def _run(self, blocks: Sequence[_Block], needs_gradient: bool) -> None:
        device = self._base_model.device
        data = [datum for block in blocks for datum in block.data]
        lengths = [len(datum.tokens) for datum in data]
        tokens_T = torch.from_numpy(np.concatenate([d.tokens for d in data]).astype(np.int64))
        positions_T = torch.cat([torch.arange(length) for length in lengths])
        segments: list[Segment] = []
        for block in blocks:
            start = segments[-1].stop if segments else 0
            weights = block.progress.item.adapter.weights
            segments.append(Segment(start, start + block.num_tokens, weights))
        context = PassContext(segments, PackedAttention([0, *np.cumsum(lengths).tolist()]))

        hidden_TD = self._base_model.hidden(tokens_T.to(device), positions_T.to(device), context)
        pieces: list[list[HeadPiece]] = [
            self._head_pieces(block, segment)
            for block, segment in zip(blocks, segments, strict=True)
        ]
        head = fused_head(
            self._base_model.unembedding,
            hidden_TD.detach(),
            [piece for of_block in pieces for piece in of_block],
            needs_gradient=needs_gradient,
            max_chunk_rows=self._head_chunk_rows,
        )
        # Without an adapter below the unembedding nothing wants the gradient.
        if head.gradient_TD is not None and hidden_TD.requires_grad:
            hidden_TD.backward(head.gradient_TD)  # type: ignore[no-untyped-call]

        results = iter(head.pieces)
        for block, of_block in zip(blocks, pieces, strict=True):
            mine = [next(results) for _ in of_block]
            logprobs_NK = torch.cat([piece.logprobs_NK for piece in mine])
            block.progress.loss_sums += [piece.loss_sum for piece in mine]
            block.progress.logprobs += unstack_logprobs(block.data, logprobs_NK)

    def _head_pieces(self, block: _Block, segment: Segment) -> list[HeadPiece]:
        """Cut a block for the head, counting from the block's own first row."""
        progress = block.progress
        inputs = stack_inputs(block.data, progress.loss_config, self._base_model.device)
        pieces: list[HeadPiece] = []
        for start in range(segment.start, segment.stop, self._head_chunk_rows):
            stop = min(start + self._head_chunk_rows, segment.stop)
            rows = slice(start - segment.start, stop - segment.start)
            mine = {key: value[rows] for key, value in inputs.items()}
            pieces.append(
                HeadPiece(
                    Segment(start, stop, segment.adapter),
                    mine.pop(TARGETS),
                    _bound(progress.loss, mine, progress.loss_config),
                )
            )
        return pieces


def _block_ranges(item: PassItem, max_block_tokens: int) -> list[DatumRange]:
    """The blocks of the whole operation that lie in the item's range."""
    data = item.body.data
    blocks = split_into_blocks([len(datum.tokens) for datum in data], max_block_tokens)
    wanted = item.datum_range or DatumRange(0, len(data))
    chosen = [b for b in blocks if b.start >= wanted.start and b.stop <= wanted.stop]
    if sum(b.stop - b.start for b in chosen) != wanted.stop - wanted.start:
        raise ServerError(f"{item.request_id}: {wanted} is not cut between blocks of its operation")
    return chosen


def _microbatches(blocks: Sequence[_Block], max_tokens: int) -> list[list[_Block]]:
    """Fill microbatches with whole blocks, in order."""
    microbatches: list[list[_Block]] = []
    num_tokens = 0
    for block in blocks:
        if not microbatches or num_tokens + block.num_tokens > max_tokens:
            microbatches.append([])
            num_tokens = 0
        microbatches[-1].append(block)
        num_tokens += block.num_tokens
    return microbatches


def _bound(loss: LossFunction, inputs: Inputs, config: Config) -> Callable[[Tensor], TokenLoss]:
    return lambda logprobs_NK: loss(logprobs_NK, inputs, config)


def _result(progress: _Progress) -> PassResult:
    assert progress.num_finished_blocks == progress.num_blocks, "microbatches are left to run"
    # fsum rounds once, so the sum is the same however an operation was spread over cycles.
    return PassResult(progress.logprobs, {"loss:sum": math.fsum(_loss_terms(progress))})


def _loss_terms(progress: _Progress) -> list[float]:
    return [value.item() for value in progress.loss_sums]
