"""The blocks of a pack's operations, filled into microbatches, and how far each operation is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cyclora_core.blocks import shared_tokens, split_into_blocks
from cyclora_core.errors import ServerError, UserError
from cyclora_core.losses import Config
from cyclora_core.operations import Datum, PassBody, PassResult
from cyclora_core.payload import Array
from cyclora_core.types import DatumRange
from cyclora_workers.adapter import AdapterState
from cyclora_workers.metric_terms import reduced
from cyclora_workers.prefix_tree import PrefixTree
from cyclora_workers.sequence_losses import DatumLossFunction
from cyclora_workers.transfer import HostCopies


@dataclass(frozen=True, slots=True, eq=False)
class PassItem:
    """One forward or forward_backward operation, or the part of it that this cycle runs."""

    request_id: str
    adapter: AdapterState
    body: PassBody
    needs_gradient: bool
    datum_range: DatumRange | None = None
    """Must begin and end between blocks of the whole operation; None is all its data."""
    is_replay: bool = False
    """It has succeeded before, so the time that it takes must decide nothing."""


@dataclass(slots=True, eq=False)
class Progress:
    """What is known so far of one item's result, in the order of its data."""

    item: PassItem
    loss_config: Config
    num_blocks: int
    datum_loss: DatumLossFunction | None
    """The loss, if it sees each datum as a whole."""
    failure: UserError | None = None
    """Why the loss of one of its data could not be computed; what it accumulated is void."""
    num_finished_blocks: int = 0
    logprobs: list[Array] = field(default_factory=list[Array])
    terms: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """What the metrics are made of so far."""

    def result(self) -> PassResult:
        """The result, once every block was run."""
        assert self.num_finished_blocks == self.num_blocks, "microbatches are left to run"
        return PassResult(self.logprobs, reduced(self.terms))


@dataclass(slots=True, eq=False)
class NotedTerms:
    """What the metrics of a microbatch's operations are made of, fetched in one copy."""

    _of: list[tuple[Progress, str]] = field(default_factory=list[tuple[Progress, str]])
    _terms: list[Tensor] = field(default_factory=list[Tensor])
    _fetched: Tensor | None = None

    def note(self, progress: Progress, metric: str, terms: Iterable[Tensor]) -> None:
        """Keep what a metric is to be made of: float64 scalars."""
        for term in terms:
            self._of.append((progress, metric))
            self._terms.append(term)

    def fetch(self, copies: HostCopies) -> None:
        """Ask for what is on the device; what is on the host needs no asking."""
        on_device = [term for term in self._terms if term.device.type != "cpu"]
        self._fetched = copies.of(torch.stack(on_device)) if on_device else None

    def hand_out(self) -> None:
        """Give every operation its terms, once the copies have been waited for."""
        fetched = iter(() if self._fetched is None else self._fetched.tolist())
        for (progress, metric), term in zip(self._of, self._terms, strict=True):
            value = term.item() if term.device.type == "cpu" else next(fetched)
            progress.terms.setdefault(metric, []).append(value)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Whole data of one operation whose gradient is summed at once."""

    progress: Progress
    data: Sequence[Datum]
    tree: PrefixTree
    first_datum: int
    """Place of its first datum in the whole operation."""

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model, each shared one counted once."""
        return self.tree.num_rows


def blocks_of(
    progress: Progress, ranges: Sequence[DatumRange], shared: Sequence[int]
) -> list[Block]:
    """The blocks of an item, whose data share as many tokens as ``shared`` says."""
    blocks: list[Block] = []
    for part in ranges:
        places = slice(part.start, part.stop)
        data = progress.item.body.data[places]
        tree = PrefixTree([datum.tokens for datum in data], shared[places])
        blocks.append(Block(progress, data, tree, part.start))
    return blocks


def shared_in(item: PassItem) -> list[int]:
    """How many tokens each datum of the whole operation shares with the one before it."""
    return shared_tokens([datum.tokens for datum in item.body.data])


def block_ranges(
    item: PassItem, max_block_tokens: int, shared: Sequence[int] = ()
) -> list[DatumRange]:
    """The blocks of the whole operation that lie in the item's range."""
    data = item.body.data
    blocks = split_into_blocks([len(datum.tokens) for datum in data], max_block_tokens, shared)
    wanted = item.datum_range or DatumRange(0, len(data))
    chosen = [b for b in blocks if b.start >= wanted.start and b.stop <= wanted.stop]
    if sum(b.stop - b.start for b in chosen) != wanted.stop - wanted.start:
        raise ServerError(f"{item.request_id}: {wanted} is not cut between blocks of its operation")
    return chosen


def microbatches(blocks: Sequence[Block], max_tokens: int) -> list[list[Block]]:
    """Fill microbatches with whole blocks, in order."""
    filled: list[list[Block]] = []
    num_tokens = 0
    for block in blocks:
        if not filled or num_tokens + block.num_tokens > max_tokens:
            filled.append([])
            num_tokens = 0
        filled[-1].append(block)
        num_tokens += block.num_tokens
    return filled
