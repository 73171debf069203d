"""From logits to tokens and their logprobs: pure, and each row's bits are its own.

Legend: S rows (sequences), V vocabulary, K draws per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cyclora_core.payload import Array
from cyclora_workers.head import log_normalizers
from cyclora_workers.transfer import HostCopies, to_device

_SMALLEST_TEMPERATURE = 1e-30
"""Below this logits would overflow fp32; the distribution is a single token long before."""


@dataclass(frozen=True, slots=True)
class DrawRule:
    """How one row is drawn; ``temperature`` 0 is greedy, ``top_k`` 0 and ``top_p`` 1 keep all."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def is_truncated(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0


class TopkRow(NamedTuple):
    """The k most probable tokens of one row, most probable first.

    Shapes:
        tokens: [k] int32; logprobs: [k] fp32.
    """

    tokens: Array
    logprobs: Array


def normalizers_of(logits_SV: Tensor) -> Tensor:
    """What to subtract from logits, computed as the training head computes it: [S, 1] fp32."""
    if logits_SV.shape[0] == 1:
        # A sum over one single row is split over threads, which changes its last bit.
        return log_normalizers(logits_SV.expand(2, -1))[:1]
    return log_normalizers(logits_SV)


def logprobs_of(logits_SV: Tensor, tokens_SK: Tensor) -> Tensor:
    """Log-probabilities of tokens.

    Shapes:
        logits_SV: fp32; tokens_SK: int64. Returns [S, K] fp32.
    """
    return logits_SV.gather(1, tokens_SK) - normalizers_of(logits_SV)


def choose(
    logits_SV: Tensor, rules: Sequence[DrawRule], uniforms_SK: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw K tokens per row; returns them with their logprobs.

    The logprobs are those of the temperature-scaled distribution before truncation (of the
    unscaled one for greedy rows), so at temperature 1 they equal what ``forward`` returns.

    Shapes:
        logits_SV: fp32; uniforms_SK: fp64 in [0, 1), one per draw. Returns [S, K] int64 and
        [S, K] fp32.
    """
    logits_SV = _scaled(logits_SV, rules)
    tokens_SK = _draw_all(logits_SV, rules, uniforms_SK)
    return tokens_SK, logprobs_of(logits_SV, tokens_SK)


def draw_alternatives(logits_SV: Tensor, temperature: float, uniforms_SK: Tensor) -> Tensor:
    """K tokens per row from the whole temperature-scaled distribution, with replacement.

    Shapes:
        As ``choose``; returns [S, K] int64.
    """
    rules = [DrawRule(temperature)] * logits_SV.shape[0]
    return _draw_all(_scaled(logits_SV, rules), rules, uniforms_SK)


def top_logprobs(
    logits_SV: Tensor, rules: Sequence[DrawRule], ks: Sequence[int], copies: HostCopies
) -> list[TopkRow | None]:
    """The ``ks[s]`` most probable tokens of each row, None for 0, with logprobs as in ``choose``.

    One group per k, for the reason that ``_groups`` gives. The numbers are there when ``copies``
    have been waited for.
    """
    found: list[TopkRow | None] = [None] * len(ks)
    for k in sorted(set(ks) - {0}):
        rows = [row for row, wanted in enumerate(ks) if wanted == k]
        rows_S = _index(rows, logits_SV)
        scaled_SV = _scaled(logits_SV[rows_S], [rules[row] for row in rows])
        tokens_SK = scaled_SV.topk(k, -1).indices
        logprobs_SK = copies.of(logprobs_of(scaled_SV, tokens_SK)).numpy()
        tables = zip(rows, copies.of(tokens_SK.to(torch.int32)).numpy(), logprobs_SK, strict=True)
        for row, tokens, logprobs in tables:
            found[row] = TopkRow(tokens, logprobs)
    return found


def _scaled(logits_SV: Tensor, rules: Sequence[DrawRule]) -> Tensor:
    divisors = [_divisor(rule) for rule in rules]
    if all(divisor == 1.0 for divisor in divisors):
        return logits_SV
    divisors_S = to_device(torch.tensor(divisors, dtype=torch.float32), logits_SV.device)
    return logits_SV / divisors_S[:, None]


def _draw_all(logits_SV: Tensor, rules: Sequence[DrawRule], uniforms_SK: Tensor) -> Tensor:
    tokens_SK = torch.empty(uniforms_SK.shape, dtype=torch.int64, device=logits_SV.device)
    for rows in _groups(rules):
        first = rules[rows[0]]
        is_all = len(rows) == len(rules)
        rows_S = _index(rows, logits_SV)
        group_SV = logits_SV if is_all else logits_SV[rows_S]
        group_uniforms_SK = uniforms_SK if is_all else uniforms_SK[rows_S]
        if first.is_greedy:
            tokens_SK[rows_S] = group_SV.argmax(-1, keepdim=True)
        elif first.is_truncated:
            top_p = [rules[row].top_p for row in rows]
            tokens_SK[rows_S] = _draw_truncated(group_SV, first.top_k, top_p, group_uniforms_SK)
        else:
            tokens_SK[rows_S] = _draw(group_SV, group_uniforms_SK)
    return tokens_SK


def _index(rows: Sequence[int], like: Tensor) -> Tensor:
    return to_device(torch.tensor(rows), like.device)


def _divisor(rule: DrawRule) -> float:
    return 1.0 if rule.is_greedy else max(rule.temperature, _SMALLEST_TEMPERATURE)


def _groups(rules: Sequence[DrawRule]) -> list[list[int]]:
    """Rows that are drawn by one call.

    One group per top_k: which of several equal logits ``topk`` keeps may depend on k, and must
    not depend on the largest k among the neighbours.
    """
    groups: dict[tuple[bool, bool, int], list[int]] = {}
    for row, rule in enumerate(rules):
        is_truncated = rule.is_truncated and not rule.is_greedy
        key = (rule.is_greedy, is_truncated, rule.top_k if is_truncated else 0)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _draw(logits_SV: Tensor, uniforms_SK: Tensor) -> Tensor:
    """Inverse of the cumulative distribution; fp64, as fp32 would lose the improbable tail."""
    cumulative_SV = torch.softmax(logits_SV, -1).cumsum(-1, dtype=torch.float64)
    return _invert(cumulative_SV, uniforms_SK * cumulative_SV[:, -1:])


def _draw_truncated(
    logits_SV: Tensor, top_k: int, top_p: Sequence[float], uniforms_SK: Tensor
) -> Tensor:
    """Keep the top_k most probable, of those the fewest that hold top_p of their mass; then draw.

    Shapes:
        top_p: [S]. Columns below are tokens in falling order of probability.
    """
    vocab_size = logits_SV.shape[1]
    if 0 < top_k < vocab_size:
        kept_SV, tokens_SV = logits_SV.topk(top_k, -1)
    else:
        kept_SV, tokens_SV = torch.sort(logits_SV, stable=True, dim=-1, descending=True)
    cumulative_SV = torch.softmax(kept_SV, -1).cumsum(-1, dtype=torch.float64)
    bounds_S1 = to_device(torch.tensor(top_p, dtype=torch.float64), logits_SV.device)[:, None]
    bounds_S1 = bounds_S1 * cumulative_SV[:, -1:]
    # The first column whose cumulative mass reaches the bound is the last one kept.
    last_S1 = torch.searchsorted(cumulative_SV, bounds_S1).clamp_(max=cumulative_SV.shape[1] - 1)
    mass_S1 = cumulative_SV.gather(1, last_S1)
    return tokens_SV.gather(1, _invert(cumulative_SV, uniforms_SK * mass_S1))


def _invert(cumulative_SV: Tensor, targets_SK: Tensor) -> Tensor:
    """The first column whose cumulative value exceeds the target; never one of probability 0.

    NaN logits find no column at all; the clamp keeps the index valid, and the NaN logprob tells.
    """
    columns_SK = torch.searchsorted(cumulative_SV, targets_SK, right=True)
    return columns_SK.clamp_(max=cumulative_SV.shape[1] - 1)
