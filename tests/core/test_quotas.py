"""What quotas mean, in numbers and in words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cyclora_core.accounts import MAX_LIMIT, Quotas
from cyclora_core.errors import OverBudget, OverQuota, UserError
from cyclora_core.quotas import (
    Excess,
    Quota,
    day_of,
    month_of,
    next_day,
    next_month,
    rate_level,
    rate_wait_s,
)


def ms(*parts: int) -> int:
    return round(datetime(*parts, tzinfo=UTC).timestamp() * 1000)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("at", "day", "month", "following"),
    [
        ((2026, 11, 30, 23, 59), "2026-11-30", "2026-11", ((2026, 12, 1), (2026, 12, 1))),
        ((2026, 12, 31, 0, 0), "2026-12-31", "2026-12", ((2027, 1, 1), (2027, 1, 1))),
        ((2028, 2, 28, 12, 0), "2028-02-28", "2028-02", ((2028, 2, 29), (2028, 3, 1))),
    ],
)
def test_days_and_months_begin_at_midnight_utc(
    at: tuple[int, ...], day: str, month: str, following: tuple[tuple[int, ...], ...]
) -> None:
    at_ms = ms(*at)
    assert (day_of(at_ms), month_of(at_ms)) == (day, month)
    starts = [round(each.timestamp() * 1000) for each in (next_day(at_ms), next_month(at_ms))]
    assert starts == [ms(*each) for each in following]


def test_a_rate_fills_up_to_the_tokens_of_one_minute() -> None:
    assert rate_level(600, -300, 0, 15_000) == -150
    assert rate_level(600, 500, 0, 60_000) == 600
    assert rate_level(600, -300, 3_600_000, 0) == 600  # a clock that was set back
    assert rate_wait_s(600, -150) == 15
    assert rate_wait_s(600, 1) == 0


def test_a_used_up_budget_says_how_much_until_when_and_whom_to_ask() -> None:
    error = Excess(Quota.TOKENS_PER_DAY, 1000, 950, 60, ms(2026, 11, 22, 13)).error()

    assert isinstance(error, OverBudget)
    for part in ("2026-11-22", "1000", "950", "60", "2026-11-23T00:00:00+00:00", "administers"):
        assert part in str(error)
    assert "never" not in str(error)


def test_a_request_larger_than_the_whole_budget_is_told_so() -> None:
    error = Excess(Quota.TOKENS_PER_MONTH, 1000, 0, 1001, ms(2026, 11, 22)).error()

    assert "can never come" in str(error)
    assert "2026-12-01" in str(error)


@pytest.mark.parametrize(
    ("quota", "kind"),
    [
        (Quota.MAX_QUEUED_TOKENS, OverQuota),
        (Quota.MAX_CONCURRENT_SAMPLES, OverQuota),
        (Quota.MAX_ADAPTERS, UserError),
        (Quota.MAX_RANK, UserError),
        (Quota.MAX_STORED_BYTES, UserError),
    ],
)
def test_every_refusal_names_its_quota_and_limit(quota: Quota, kind: type[Exception]) -> None:
    error = Excess(quota, 1234, 1200, 56, 0).error()

    assert isinstance(error, kind)
    assert f"quota {quota}" in str(error)
    assert "1234" in str(error)
    assert "56" in str(error) or quota is Quota.MAX_ADAPTERS


@pytest.mark.parametrize("wrong", [{"max_rank": 0}, {"tokens_per_minute": 0}, {"max_adapters": -1}])
def test_a_quota_that_would_make_no_sense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}.*expected"):
        Quotas(**wrong)
    with pytest.raises(ValueError, match="expected"):
        Quotas(max_stored_bytes=MAX_LIMIT + 1)
