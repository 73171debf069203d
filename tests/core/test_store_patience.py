from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    WatchError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cyclora_core.errors import Unavailable
from cyclora_core.store import patience
from cyclora_core.store.patience import Patience, trouble_of

OOM = "command not allowed when used memory > 'maxmemory'."


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OutOfMemoryError(OOM), "no memory left"),
        (ResponseError(f"Error running script (call to f_1): @user_script:3: -OOM {OOM}"), "no me"),
        (OutOfMemoryError(f"Command # 1 (HSET) of pipeline caused error: ('{OOM}',)"), "no mem"),
        (ResponseError("MISCONF Errors writing to the AOF file: No space left"), "to its disk"),
        (ReadOnlyError("You can't write against a read only replica."), "read-only replica"),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), "lacks the replicas"),
    ],
)
def test_refusals_to_write_say_what_is_low(error: RedisError, words: str) -> None:
    trouble = trouble_of(error)

    assert trouble is not None
    assert trouble.is_refusal
    assert words in trouble.message


@pytest.mark.parametrize(
    "error",
    [
        RedisConnectionError("refused"),
        RedisTimeoutError("slow"),
        BusyLoadingError("reading its files"),
        ResponseError("BUSY Valkey is busy running a script"),
    ],
)
def test_a_store_that_is_away_is_no_refusal(error: RedisError) -> None:
    trouble = trouble_of(error)

    assert trouble is not None
    assert not trouble.is_refusal


@pytest.mark.parametrize("error", [ResponseError("WRONGTYPE of key"), WatchError("changed")])
async def test_a_call_that_is_wrong_is_not_repeated(error: RedisError) -> None:
    calls = Calls(error)

    with pytest.raises(type(error)):
        await Patience(3600).persist(calls)

    assert calls.num == 1


async def test_wrong_credentials_are_not_tried_again() -> None:
    calls = Calls(AuthenticationError("invalid password"))

    with pytest.raises(Unavailable, match="credentials"):
        await Patience(3600).persist(calls)

    assert calls.num == 1


async def test_without_patience_a_refusal_fails_at_once_and_a_lost_connection_does_not() -> None:
    refusals, losses = Calls(OutOfMemoryError(OOM), fails=1), Calls(RedisTimeoutError(), fails=2)

    with pytest.raises(Unavailable, match="no memory left"):
        await Patience(0).persist(refusals)
    await Patience(0).persist(losses)

    assert (refusals.num, losses.num) == (1, 3)


async def test_patience_with_a_lost_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RECONNECT_S", 0.05)

    with pytest.raises(Unavailable, match="does not answer"):
        await Patience(0).persist(Calls(RedisTimeoutError()))


class Calls:
    """A call that fails the first so many times."""

    def __init__(self, error: RedisError, fails: int = 1000) -> None:
        self.num = 0
        self._error = error
        self._fails = fails

    async def __call__(self) -> None:
        self.num += 1
        if self.num <= self._fails:
            raise self._error


async def test_a_cancellation_that_a_call_loses_is_raised_after_it() -> None:
    """As ``asyncio.wait_for`` loses it before Python 3.12."""
    begun = asyncio.Event()

    async def deaf() -> str:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "answer"
        return "never"

    task = asyncio.create_task(Patience(0.0).persist(deaf))
    await begun.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_call_in_a_task_that_was_cancelled_before_is_not_disturbed() -> None:
    """Whoever cleans up after a cancellation still needs the store."""

    async def answer() -> str:
        return "answer"

    async def cleaning_up() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return await Patience(0.0).persist(answer)
        return "never"

    task = asyncio.create_task(cleaning_up())
    await asyncio.sleep(0)
    task.cancel()

    assert await task == "answer"
