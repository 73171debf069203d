"""How long a call goes on when the store cannot be reached or refuses to write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cyclora_core.errors import Unavailable

_T = TypeVar("_T")

RECONNECT_S = 15.0
"""Seconds that every call goes on after it first failed to reach the store: a restart with its
append-only file is then a pause and no error. With the longest hold of a poll before it, still less
than the 45 seconds after which the SDK takes a server for dead."""

_BACKOFF_BASE_S = 0.02
_BACKOFF_CAP_S = 1.0

_SILENT_S = 1.0
"""A trouble that is over within this is not worth a log line."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the store did not do what it was asked; in every case it has changed nothing."""

    message: str
    is_refusal: bool = False
    """Whether it answered, and said no until somebody makes room."""
    is_final: bool = False
    """Whether asking again cannot help."""


_UNREACHABLE = Trouble("the store does not answer; try again later")
_BUSY = Trouble("the store is busy with a long script; try again later")
_WRONG_CREDENTIALS = Trouble(
    "the store refuses the credentials in redis_url; correct them and start anew", is_final=True
)
# Code at the start of the reply, words that only this refusal holds, and what we make of it. Inside
# a script Redis before 7 reports the reply as part of an error of its own, hence the words.
_REFUSALS = (
    (
        "OOM",
        "OOM command not allowed",
        "the store has no memory left (its maxmemory is reached); nothing was changed, try again "
        "once it has room",
    ),
    (
        "MISCONF",
        "MISCONF ",
        "the store cannot write to its disk and accepts no changes; nothing was changed, try again "
        "once its disk has room",
    ),
    (
        "READONLY",
        "READONLY You can",
        "the store is a read-only replica and accepts no changes; nothing was changed, try again "
        "once it is the primary",
    ),
    (
        "NOREPLICAS",
        "NOREPLICAS ",
        "the store lacks the replicas it is configured to write to; nothing was changed, try again "
        "once they are back",
    ),
)


def trouble_of(error: RedisError) -> Trouble | None:
    """What an error of Redis means for a call that may be repeated; None: the call is wrong."""
    if isinstance(error, AuthenticationError | AuthorizationError):
        return _WRONG_CREDENTIALS
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        return _UNREACHABLE
    if not isinstance(error, ResponseError):
        return None
    text = str(error)
    code = getattr(error, "status_code", None)
    for name, words, message in _REFUSALS:
        if code == name or words in text or type(error).__name__ == _CLASSES.get(name):
            return Trouble(message, is_refusal=True)
    return _BUSY if text.startswith("BUSY ") else None


# redis-py takes the code off the text of those replies that it has a class for.
_CLASSES = {"OOM": "OutOfMemoryError", "READONLY": "ReadOnlyError"}


async def heeding_cancellation(call: Awaitable[_T]) -> _T:
    """Await a call of redis-py, and raise a cancellation that got lost in it.

    redis-py sends through ``asyncio.wait_for``, which before Python 3.12 returns as if nothing had
    been when it is cancelled just as it is done. Each cancellation is asked for once: a task that
    loses it runs for ever.
    """
    task = asyncio.current_task()
    num_cancelled = task.cancelling() if task else 0

    def is_lost() -> bool:
        return task is not None and task.cancelling() > num_cancelled

    try:
        answer = await call
    except RedisError:
        if is_lost():
            raise asyncio.CancelledError from None
        raise
    if is_lost():
        raise asyncio.CancelledError
    return answer


class Patience:
    """Repeats calls that met a trouble; all calls to the store are safe to repeat.

    A lost answer may be one of a step that was done: every script finds that out by itself.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s

    async def persist(
        self, attempt: Callable[[], Awaitable[_T]], patience_s: float | None = None
    ) -> _T:
        """Call ``attempt`` until it succeeds or patience ends.

        Raises:
            Unavailable: the store could not be reached for ``RECONNECT_S``, or refused for
                ``patience_s``, whichever applies; or it refuses our credentials.
        """
        bound_s = self._patience_s if patience_s is None else patience_s
        failed_s: float | None = None
        num_failures = 0
        is_told = False
        while True:
            try:
                answer = await heeding_cancellation(attempt())
            except RedisError as error:
                trouble = trouble_of(error)
                if trouble is None:
                    raise
                now_s = time.monotonic()
                failed_s = now_s if failed_s is None else failed_s
                waited_s = now_s - failed_s
                limit_s = bound_s if trouble.is_refusal else max(bound_s, RECONNECT_S)
                if trouble.is_final or waited_s >= limit_s:
                    raise Unavailable(trouble.message) from error
                if not is_told and waited_s >= _SILENT_S:
                    is_told = True
                    _log.warning("waiting for the store", reason=trouble.message, cause=str(error))
            else:
                if is_told:
                    waited_s = time.monotonic() - (failed_s or 0.0)
                    _log.info("store goes on", waited_s=round(waited_s, 3))
                return answer
            num_failures += 1
            await asyncio.sleep(min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2 ** min(num_failures, 8)))
