"""Packed passes: the data of any number of adapters through the base model together.

Every operation is cut into blocks by a rule that knows only that operation. Microbatches are made
of whole blocks, and everything that sums over tokens sums over the tokens of one block. So what a
tenant gets does not depend on who shares its microbatches: on CPU not in a single bit.

Legend: T packed tokens, N tokens of one block, K targets per token, D hidden.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from cyclora_core.blocks import MAX_BLOCK_TOKENS
from cyclora_core.errors import UserError
from cyclora_core.losses import full_config
from cyclora_core.operations import PassResult
from cyclora_workers.adapter import AdapterState, GradientMark
from cyclora_workers.base_model import BaseModel
from cyclora_workers.block_inputs import (
    TARGETS,
    datum_inputs,
    stack_coefficients,
    stack_inputs,
    stack_targets,
    unstack_logprobs,
    unstacked,
)
from cyclora_workers.context import PassContext, Segment
from cyclora_workers.custom_loss.bounds import TimeLimit
from cyclora_workers.custom_loss.run import CustomLossRun
from cyclora_workers.head import HEAD_CHUNK_ROWS, HeadLoss, HeadPiece, fused_head
from cyclora_workers.losses import LOSSES, TokenLoss
from cyclora_workers.metric_terms import MetricTerms
from cyclora_workers.pass_blocks import (
    Block,
    NotedTerms,
    PassItem,
    Progress,
    block_ranges,
    blocks_of,
    microbatches,
    shared_in,
)
from cyclora_workers.pass_check import check_pass
from cyclora_workers.prefix_attention import training_attention
from cyclora_workers.sequence_losses import SEQUENCE_LOSSES, DatumLossFunction
from cyclora_workers.target_rows import TargetRows, target_rows, to_data_order
from cyclora_workers.transfer import HostCopies, to_device


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
        shares_prefixes: bool = True,
        max_kept_tokens: int | None = None,
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
            shares_prefixes: Whether data of a block that begin alike compute that once. False is
                for comparisons only: the scheduler cuts operations as if they did.
            max_kept_tokens: A microbatch of more computes its layers again in the backward pass
                in place of keeping their activations; None keeps them always.

        Raises:
            UserError: the body of an item is not acceptable; ``check_pass`` tells beforehand.
        """
        self._base_model = base_model
        self._head_chunk_rows = head_chunk_rows
        self._max_kept_tokens = max_kept_tokens
        self._marks: dict[AdapterState, GradientMark] = {}
        self._progress: dict[str, Progress] = {}
        blocks: dict[bool, list[Block]] = {True: [], False: []}
        for item in items:
            check_pass(item.body, base_model.vocab_size, base_model.max_context_length)
            assert item.request_id not in self._progress, "one item per request and cycle"
            if item.needs_gradient and item.adapter not in self._marks:
                self._marks[item.adapter] = item.adapter.mark_gradient()
            shared = shared_in(item) if shares_prefixes else []
            ranges = block_ranges(item, max_block_tokens, shared)
            config = full_config(item.body.loss_fn, item.body.loss_fn_config)
            progress = Progress(item, config, len(ranges), _datum_loss(item))
            self._progress[item.request_id] = progress
            blocks[item.needs_gradient] += blocks_of(progress, ranges, shared)
        self._microbatches = iter(
            [
                *microbatches(blocks[True], max_tokens_per_microbatch),
                *microbatches(blocks[False], max_tokens_per_microbatch),
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

    def rollback(self, adapters: Container[AdapterState] | None = None) -> None:
        """Bring the gradients of these adapters, or of all, back to where they were before."""
        for adapter, mark in self._marks.items():
            if adapters is None or adapter in adapters:
                adapter.restore_gradient(mark)

    def failures(self) -> dict[str, UserError]:
        """Items by request_id whose own loss could not be computed.

        The others are as they should be, except items of the same adapters, whose gradients hold
        part of a failed one.
        """
        return {r: p.failure for r, p in self._progress.items() if p.failure is not None}

    def results(self) -> dict[str, PassResult]:
        """The result of each item by request_id, after the last microbatch."""
        return {request_id: p.result() for request_id, p in self._progress.items()}

    def terms(self) -> dict[str, MetricTerms]:
        """What each item's metrics are made of, to be joined with those of its other parts."""
        return {request_id: p.terms for request_id, p in self._progress.items()}

    def _run(self, blocks: Sequence[Block], needs_gradient: bool) -> None:
        device = self._base_model.device
        trees = [block.tree for block in blocks]
        tokens_T = torch.from_numpy(np.concatenate([t.tokens_R for t in trees]).astype(np.int64))
        positions_T = torch.from_numpy(np.concatenate([t.positions_R for t in trees]))
        segments: list[Segment] = []
        for block in blocks:
            start = segments[-1].stop if segments else 0
            weights = block.progress.item.adapter.weights
            segments.append(Segment(start, start + block.num_tokens, weights))
        attention = training_attention(
            trees,
            device=device,
            dtype=self._base_model.dtype,
            head_size=self._base_model.head_size,
        )
        num_rows = sum(tree.num_rows for tree in trees)
        is_recomputed = self._max_kept_tokens is not None and num_rows > self._max_kept_tokens
        context = PassContext(segments, attention, is_recomputed=is_recomputed)

        hidden_TD = self._base_model.hidden(
            to_device(tokens_T, device), to_device(positions_T, device), context
        )
        rows = [target_rows(tree, self._head_chunk_rows, device) for tree in trees]
        noted = NotedTerms()
        pieces: list[list[HeadPiece]] = [
            self._head_pieces(block, segment, of_block, hidden_TD.detach(), noted)
            for block, segment, of_block in zip(blocks, segments, rows, strict=True)
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
        copies, found = HostCopies(), list[Tensor]()
        for block, of_block in zip(blocks, rows, strict=True):
            mine = [next(results) for _ in of_block]
            found.append(copies.of(to_data_order(of_block, [piece.logprobs_NK for piece in mine])))
            if block.progress.item.body.loss_fn in LOSSES:
                noted.note(block.progress, "loss:sum", [piece.loss_sum for piece in mine])
        noted.fetch(copies)
        copies.wait()
        noted.hand_out()
        for block, logprobs_NK in zip(blocks, found, strict=True):
            block.progress.logprobs += unstack_logprobs(block.data, logprobs_NK)

    def _head_pieces(
        self,
        block: Block,
        segment: Segment,
        rows: Sequence[TargetRows],
        hidden_TD: Tensor,
        noted: NotedTerms,
    ) -> list[HeadPiece]:
        """What the head computes for the rows of a block."""
        progress, device = block.progress, self._base_model.device
        if progress.datum_loss is not None:
            loss = progress.datum_loss
            coefficient_NK = self._coefficients(block, segment, rows, hidden_TD, loss, noted)
            targets_NK = stack_targets(block.data, device)
            return _cut(segment, rows, targets_NK, lambda mine: _known(mine.of(coefficient_NK)))
        token_loss = LOSSES[progress.item.body.loss_fn]
        inputs = stack_inputs(block.data, progress.loss_config, device)

        def loss_of(mine: TargetRows) -> HeadLoss:
            own = {key: mine.of(value) for key, value in inputs.items() if key != TARGETS}
            return lambda logprobs_NK: token_loss(logprobs_NK, own, progress.loss_config)

        return _cut(segment, rows, inputs[TARGETS], loss_of)

    def _coefficients(
        self,
        block: Block,
        segment: Segment,
        rows: Sequence[TargetRows],
        hidden_TD: Tensor,
        loss: DatumLossFunction,
        noted: NotedTerms,
    ) -> Tensor:
        """The head's first pass, forward only, for a loss that sees each datum as a whole.

        Shapes:
            Returns [N, K].
        """
        progress, device = block.progress, self._base_model.device
        targets_NK = stack_targets(block.data, device)
        forward = fused_head(
            self._base_model.unembedding,
            hidden_TD,
            _cut(segment, rows, targets_NK, lambda _: _known(targets_NK.new_zeros(0))),
            needs_gradient=False,
            max_chunk_rows=self._head_chunk_rows,
        )
        logprobs_NK = to_data_order(rows, [piece.logprobs_NK for piece in forward.pieces])
        coefficients: list[Tensor] = []
        places = itertools.count(block.first_datum)
        found_by_datum = unstacked(block.data, logprobs_NK)
        for place, datum, logprobs in zip(places, block.data, found_by_datum, strict=False):
            if progress.failure is not None:
                coefficients.append(torch.zeros_like(logprobs))
                continue
            try:
                found = loss(logprobs, datum_inputs(datum, device), progress.loss_config)
            except UserError as error:
                # Kept, not raised: the others of this microbatch have done nothing wrong.
                progress.failure = UserError(f"data[{place}]: {error}")
                coefficients.append(torch.zeros_like(logprobs))
                continue
            noted.note(progress, "loss:sum", [found.loss])
            for metric, value in found.metrics.items():
                noted.note(progress, metric, [value])
            coefficients.append(found.coefficient)
        return stack_coefficients(coefficients)


def _cut(
    segment: Segment,
    rows: Sequence[TargetRows],
    targets_NK: Tensor,
    loss_of: Callable[[TargetRows], HeadLoss],
) -> list[HeadPiece]:
    """One piece for each run of rows, which count from the block's own first row."""
    return [
        HeadPiece(
            Segment(segment.start + mine.start, segment.start + mine.stop, segment.adapter),
            mine.of(targets_NK),
            loss_of(mine),
        )
        for mine in rows
    ]


def _datum_loss(item: PassItem) -> DatumLossFunction | None:
    if item.body.custom_loss is None:
        return SEQUENCE_LOSSES.get(item.body.loss_fn)
    return CustomLossRun(item.body.custom_loss, None if item.is_replay else TimeLimit())


def _known(coefficient_NK: Tensor) -> HeadLoss:
    """For the head's second pass: coefficients of a loss that was counted in the first."""
    nothing = coefficient_NK.new_zeros((), dtype=torch.float32)
    return lambda _logprobs_NK: TokenLoss(nothing, coefficient_NK)
