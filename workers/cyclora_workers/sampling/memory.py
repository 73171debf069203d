"""KV memory of rows: taken block by block as they grow, shared where they begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from cyclora_workers.adapter import AdapterWeights
from cyclora_workers.sampling.block_pool import BlockPool, OutOfBlocks
from cyclora_workers.sampling.kv_pool import BLOCK_TOKENS, KvPool, KvShape
from cyclora_workers.sampling.prefix_keys import PrefixScopes, chained_keys
from cyclora_workers.sampling.request import Row


class Start(Enum):
    """What became of a row that wanted to begin."""

    STARTED = auto()
    NO_ROOM = auto()
    LATER = auto()
    """Another row is computing a prefix that this one can use as soon as it is there."""


def num_blocks_for(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS)


class KvMemory:
    """Block tables of all rows over one pool.

    Only whole blocks are shared; the one that a row writes into next is its own.
    """

    def __init__(self, shape: KvShape, max_tokens: int) -> None:
        """Hold at most ``max_tokens``, rounded down to whole blocks.

        Raises:
            ValueError: that is less than a block.
        """
        if max_tokens < BLOCK_TOKENS:
            raise ValueError(f"max_kv_tokens is {max_tokens}; it must be at least {BLOCK_TOKENS}")
        self.pool = KvPool(shape, max_tokens // BLOCK_TOKENS)
        self._blocks = BlockPool(max_tokens // BLOCK_TOKENS)
        self._scopes = PrefixScopes()
        self._computing: dict[bytes, Row] = {}
        self._unclear: list[int] = []

    @property
    def num_blocks(self) -> int:
        return self._blocks.num_blocks

    @property
    def num_available_blocks(self) -> int:
        """Blocks that no row holds; prefixes that nobody uses make way."""
        return self._blocks.num_available

    def use(self) -> dict[str, int]:
        """How many blocks rows hold, how many hold known prefixes, how many are free."""
        free, remembered = self._blocks.num_free, self._blocks.num_remembered
        held = self._blocks.num_blocks - free - remembered
        return {"held": held, "remembered": remembered, "free": free}

    def scope(self, tenant_id: str, adapter: AdapterWeights | None) -> bytes:
        """Rows of one scope share equal prefixes; across scopes nothing is shared."""
        return self._scopes.root(tenant_id, adapter)

    def start(self, row: Row, *, num_spare_blocks: int) -> Start:
        """Give a row what it needs for all its tokens, of which a known prefix is found computed.

        Args:
            row: without any blocks.
            num_spare_blocks: as many must stay available to those that are growing.
        """
        tokens = row.all_tokens()
        keys = list(chained_keys(row.request.scope, tokens[: row.num_reusable_tokens]))
        found = self._blocks.find(keys)
        missing_keys = keys[len(found) :]
        if missing_keys and missing_keys[0] in self._computing:
            return Start.LATER
        self._blocks.hold(found)
        num_missing = num_blocks_for(len(tokens)) - len(found)
        if num_missing + num_spare_blocks > self._blocks.num_available:
            self._blocks.release(found)
            return Start.NO_ROOM
        row.blocks = found + self._take(num_missing)
        row.keys = keys[: len(found)]
        row.num_cached = len(found) * BLOCK_TOKENS
        self._computing |= dict.fromkeys(missing_keys, row)
        row.awaited_keys = missing_keys
        return Start.STARTED

    def grow(self, row: Row) -> bool:
        """Make sure that the row's next token has a place; False when there is no room."""
        if row.num_cached < len(row.blocks) * BLOCK_TOKENS:
            return True
        try:
            row.blocks += self._take(1)
        except OutOfBlocks:
            return False
        return True

    def advance(self, row: Row, num_tokens: int) -> None:
        """The row's next tokens were computed; complete blocks are remembered under their key."""
        row.num_cached += num_tokens
        first, stop = len(row.keys), row.num_cached // BLOCK_TOKENS
        if first == stop:
            return
        tokens = row.all_tokens()[first * BLOCK_TOKENS : stop * BLOCK_TOKENS]
        parent = row.keys[-1] if row.keys else row.request.scope
        for block, key in zip(row.blocks[first:stop], chained_keys(parent, tokens), strict=True):
            self._blocks.remember(block, key)
            self._computing.pop(key, None)
            row.keys.append(key)

    def fork(self, row: Row, siblings: Sequence[Row]) -> list[Row]:
        """Let siblings go on from what a row has computed; returns those that found room.

        They hold its whole blocks too, and each gets a copy of the block that is not complete.
        """
        num_whole, rest = divmod(row.num_cached, BLOCK_TOKENS)
        whole, keys = row.blocks[:num_whole], row.keys[:num_whole]
        num_copies = 1 if rest else 0
        num_forked = len(siblings)
        if num_copies:
            num_forked = min(num_forked, self._blocks.num_available)
        copies = self._blocks.take(num_copies * num_forked)
        self.pool.copy(row.blocks[num_whole : num_whole + 1] * len(copies), copies)
        forked = list(siblings[:num_forked])
        for index, sibling in enumerate(forked):
            self._blocks.hold(whole)
            sibling.blocks = whole + copies[index * num_copies : (index + 1) * num_copies]
            sibling.keys = list(keys)
            sibling.num_cached = row.num_cached
        return forked

    def drop(self, row: Row) -> None:
        """Let go of all that a row holds; what it computed is remembered while there is room."""
        self._blocks.release(row.blocks)
        for key in row.awaited_keys:
            if self._computing.get(key) is row:
                del self._computing[key]
        row.blocks, row.keys, row.awaited_keys, row.num_cached = [], [], [], 0

    def prepare(self) -> None:
        """Clear the blocks that were taken since the last pass; before every pass."""
        self.pool.clear(self._unclear)
        self._unclear = []

    def _take(self, num_blocks: int) -> list[int]:
        taken = self._blocks.take(num_blocks)
        self._unclear += taken
        return taken
