"""What quotas mean: which one a request is beyond, in words, and how a rate fills up again (pure).

What is new is checked against them by the scripts of the store, in the step that would accept it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from cyclora_core.clock import as_datetime
from cyclora_core.errors import CycloraError, OverBudget, OverQuota, UserError

MS_PER_MINUTE = 60_000

_WHO = "whoever administers this server"


class Quota(StrEnum):
    """The quotas by the names of their fields."""

    MAX_ADAPTERS = "max_adapters"
    MAX_RANK = "max_rank"
    MAX_QUEUED_TOKENS = "max_queued_tokens"
    MAX_CONCURRENT_SAMPLES = "max_concurrent_samples"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    MAX_STORED_BYTES = "max_stored_bytes"
    TOKENS_PER_DAY = "tokens_per_day"
    TOKENS_PER_MONTH = "tokens_per_month"


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """How much of its quotas a tenant uses now."""

    operations: int = 0
    """Accepted and not final yet, samples included."""
    samples: int = 0
    """Sequences of samples that are not final yet."""
    tokens: int = 0
    """Of operations that are not final yet; of a sample its prompt and the most it may draw."""
    adapters: int = 0
    """Models that have not ended."""
    stored_bytes: int = 0
    """Of checkpoints that were saved under a name, copied or uploaded."""
    tokens_today: int = 0
    """Metered since the day began, UTC; what was found in a cache is not counted."""
    tokens_this_month: int = 0
    startable_tokens: float | None = None
    """Tokens that may start now, fewer than none when more were started; None without a rate."""


@dataclass(frozen=True, slots=True)
class Excess:
    """A quota, and what would be more than it allows."""

    quota: Quota
    limit: int
    used: int
    """Of a budget: metered and queued together."""
    asked: int
    now_ms: int

    @classmethod
    def of(cls, reply: Sequence[bytes], asked: int, now_ms: int) -> Excess:
        """From what a script answers: "over", the quota, its limit, and what is used of it."""
        _, name, limit, used = reply
        return cls(Quota(name.decode()), int(limit), int(used), asked, now_ms)

    def error(self) -> CycloraError:
        """What to tell whoever asked: what is used up, how much of it, and what helps."""
        match self.quota:
            case Quota.TOKENS_PER_DAY | Quota.TOKENS_PER_MONTH:
                return OverBudget(self._of_budget())
            case Quota.MAX_QUEUED_TOKENS:
                return OverQuota(
                    f"{self.used} tokens are queued, and with the {self.asked} of this request "
                    f"there would be more than the {self.limit} that may be (quota {self.quota}); "
                    "it can come when some have finished"
                )
            case Quota.MAX_CONCURRENT_SAMPLES:
                return OverQuota(
                    f"{self.used} samples are queued or running, and with the {self.asked} of this "
                    f"request there would be more than the {self.limit} that may be (quota "
                    f"{self.quota}); it can come when some have finished"
                )
            case Quota.MAX_ADAPTERS:
                return UserError(
                    f"{self.used} models have not ended, and no more than {self.limit} may be at "
                    f"one time (quota {self.quota}); close clients that are no longer needed, with "
                    f"which their models end, or ask {_WHO} for more"
                )
            case Quota.MAX_RANK:
                return UserError(
                    f"lora_rank {self.asked} is not allowed; expected at most {self.limit} (quota "
                    f"{self.quota}), or ask {_WHO} for more"
                )
            case Quota.MAX_STORED_BYTES:
                return UserError(
                    f"{self.used} bytes of checkpoints are stored, and with the {self.asked} of "
                    f"this one there would be more than the {self.limit} that may be (quota "
                    f"{self.quota}); it was not stored, and what it was to be made of is as it "
                    f"was: delete checkpoints and try again, or ask {_WHO} for more"
                )
            case Quota.TOKENS_PER_MINUTE:
                raise AssertionError("who is over its rate waits, and is refused nothing")

    def _of_budget(self) -> str:
        is_day = self.quota is Quota.TOKENS_PER_DAY
        period = day_of(self.now_ms) if is_day else month_of(self.now_ms)
        ends = next_day(self.now_ms) if is_day else next_month(self.now_ms)
        too_large = " alone; it can never come with this budget" if self.asked > self.limit else ""
        return (
            f"paused: the token budget of {period} (UTC) is {self.limit}, of which {self.used} are "
            f"used or queued, and this request needs up to {self.asked}{too_large} (quota "
            f"{self.quota}); the next budget begins at {ends.isoformat()}, and {_WHO} can raise "
            "this one"
        )


def day_of(at_ms: int) -> str:
    """As 2026-11-22, UTC."""
    return as_datetime(at_ms).strftime("%Y-%m-%d")


def month_of(at_ms: int) -> str:
    """As 2026-11, UTC."""
    return as_datetime(at_ms).strftime("%Y-%m")


def next_day(at_ms: int) -> datetime:
    """When the day after this instant's begins, UTC."""
    at = as_datetime(at_ms)
    return datetime(at.year, at.month, at.day, tzinfo=UTC) + timedelta(days=1)


def next_month(at_ms: int) -> datetime:
    """When the month after this instant's begins, UTC."""
    at = as_datetime(at_ms)
    years, month = divmod(at.month, 12)
    return datetime(at.year + years, month + 1, 1, tzinfo=UTC)


def rate_level(per_minute: int, level: float, at_ms: int, now_ms: int) -> float:
    """Tokens that may start now, of ``level`` at an earlier instant; ``demand.lua`` counts alike.

    ::

        min(per_minute, level + per_minute * |now_ms - at_ms| / 60000)

    A clock that was set back by an hour must not make a tenant wait for that long.
    """
    return min(per_minute, level + per_minute * abs(now_ms - at_ms) / MS_PER_MINUTE)


def rate_wait_s(per_minute: int, level: float) -> float:
    """Seconds until more than nothing may start; 0 when it may now."""
    return max(0.0, -level / per_minute * 60)
