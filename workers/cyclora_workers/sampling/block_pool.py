"""Who holds which block of the KV cache, and which blocks hold a known prefix.

A block is free, held by one or more rows, or remembered: nobody holds it, but it still contains
the keys and values of a known prefix. Remembered blocks are given away last, those not used for
longest first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence


class OutOfBlocks(Exception):
    """More blocks were asked for than are free or merely remembered."""


class BlockPool:
    """Numbers of blocks with their reference counts; blocks count from 1."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = deque(range(1, num_blocks + 1))
        self._num_holders = [0] * (num_blocks + 1)
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._unheld: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free) + len(self._unheld)

    @property
    def num_free(self) -> int:
        """Blocks without anything of use in them."""
        return len(self._free)

    @property
    def num_remembered(self) -> int:
        """Blocks that nobody holds, with a known prefix in them."""
        return len(self._unheld)

    def num_holders(self, block: int) -> int:
        return self._num_holders[block]

    def take(self, num_blocks: int) -> list[int]:
        """Blocks of any content, each with one holder.

        Raises:
            OutOfBlocks: so many are not available; nothing was taken then.
        """
        if num_blocks > self.num_available:
            raise OutOfBlocks(f"{num_blocks} blocks; {self.num_available} are available")
        taken: list[int] = []
        for _ in range(num_blocks):
            if self._free:
                block = self._free.popleft()
            else:
                block, _ = self._unheld.popitem(last=False)
                del self._block_of[self._key_of.pop(block)]
            self._num_holders[block] = 1
            taken.append(block)
        return taken

    def hold(self, blocks: Iterable[int]) -> None:
        """One more holder for each block."""
        for block in blocks:
            if self._num_holders[block] == 0:
                del self._unheld[block]
            self._num_holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each block of a sequence; its end is forgotten before its start."""
        for block in reversed(blocks):
            assert self._num_holders[block] > 0, f"block {block} is held by nobody"
            self._num_holders[block] -= 1
            if self._num_holders[block] > 0:
                continue
            if block in self._key_of:
                self._unheld[block] = None
            else:
                self._free.append(block)

    def remember(self, block: int, key: bytes) -> None:
        """A held block is complete now; of several with one key the first stays known."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """Blocks of the longest known prefix; they are not held by this."""
        found: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found
