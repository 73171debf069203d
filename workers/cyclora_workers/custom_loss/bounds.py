"""How much a custom loss may take: elements before they are allocated, and time between steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from cyclora_core.custom_loss import MAX_TOTAL_ELEMENTS, MAX_VALUE_ELEMENTS
from cyclora_core.errors import UserError

MAX_DATUM_S = 2.0
MAX_OPERATION_S = 20.0
"""Seconds that the custom loss of one operation may take in one cycle, all its data together."""


class TimeLimit:
    """Wall-clock time of the data of one operation; counts only while a loss runs.

    It is looked at between steps: one step is short, since its elements are bounded.
    """

    def __init__(
        self,
        datum_s: float = MAX_DATUM_S,
        operation_s: float = MAX_OPERATION_S,
        mono_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._datum_s, self._operation_s, self._mono_s = datum_s, operation_s, mono_s
        self._used_s = 0.0
        self._started_s = 0.0

    def begin_datum(self) -> None:
        self._started_s = self._mono_s()

    def end_datum(self) -> None:
        self._used_s += self._mono_s() - self._started_s

    def check(self) -> None:
        """Stop a loss that has run too long.

        Raises:
            UserError: the datum, or the operation so far, took longer than it may.
        """
        datum_s = self._mono_s() - self._started_s
        if datum_s > self._datum_s:
            raise UserError(f"it ran longer than {self._datum_s:g} s for one datum; simplify it")
        if self._used_s + datum_s > self._operation_s:
            raise UserError(
                f"it ran longer than {self._operation_s:g} s for the data of one operation; send "
                "fewer at a time, or simplify it"
            )


class ElementLimit:
    """Elements that the values of one datum may still have together."""

    def __init__(self) -> None:
        self._left = MAX_TOTAL_ELEMENTS

    def take(self, num_elements: int) -> None:
        """Claim the elements of one value before it is made.

        Raises:
            UserError: it would be too large, or all values together would.
        """
        if num_elements > MAX_VALUE_ELEMENTS:
            raise UserError(
                f"its result would have {num_elements} elements; at most {MAX_VALUE_ELEMENTS} are "
                "accepted"
            )
        self._left -= num_elements
        if self._left < 0:
            raise UserError(
                f"the loss's values would have more than {MAX_TOTAL_ELEMENTS} elements together; "
                "use fewer operations, or shorter data"
            )
