"""Metrics of a pass as the numbers that they are made of.

An operation may be spread over blocks, microbatches and cycles. Its parts keep every number, so
that what comes out does not depend on where it was cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

MetricTerms = Mapping[str, Sequence[float]]
"""By metric key: one number per piece of the head, or per datum where the loss sees whole data."""


def joined(first: MetricTerms, second: MetricTerms) -> MetricTerms:
    """The terms of consecutive parts of one operation."""
    keys = {**first, **second}
    return {key: [*first.get(key, ()), *second.get(key, ())] for key in keys}


def reduced(terms: MetricTerms) -> dict[str, float]:
    """What the suffix of each key says; ``loss:sum`` is always there, or the SDK raises.

    ::

        name:sum   sum of the terms
        name:mean  sum of the terms / number of the terms

    ``fsum`` rounds once, so the order and the grouping of the terms change no bit.
    """
    return {
        key: _sum(values) / (len(values) if key.endswith(":mean") else 1)
        for key, values in {"loss:sum": (), **terms}.items()
    }


def _sum(values: Sequence[float]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # infinities of both signs, or a sum beyond the largest
        return math.nan
