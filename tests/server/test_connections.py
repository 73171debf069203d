from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cyclora_core.clock import ManualClock
from cyclora_server.connections import HeaderWatch


@dataclass(eq=False)
class Transport:
    is_aborted: bool = False

    def abort(self) -> None:
        self.is_aborted = True


@dataclass
class Cycle:
    response_complete: bool


@dataclass(eq=False)
class Fake:
    """A connection as uvicorn keeps it."""

    cycle: Any = None
    timeout_keep_alive_task: Any = None
    transport: Transport = field(default_factory=Transport)


def test_a_connection_without_a_request_is_closed_after_the_timeout(clock: ManualClock) -> None:
    watch, silent = HeaderWatch(20.0, clock), Fake()
    watch.look([silent])
    clock.advance(20.0)

    assert watch.look([silent]) == 0
    clock.advance(1.0)
    assert watch.look([silent]) == 1
    assert silent.transport.is_aborted


def test_a_held_poll_is_no_silent_connection(clock: ManualClock) -> None:
    watch, held = HeaderWatch(20.0, clock), Fake(Cycle(response_complete=False))
    watch.look([held])
    clock.advance(100.0)

    assert watch.look([held]) == 0


def test_silence_after_an_answer_is_left_to_the_keep_alive(clock: ManualClock) -> None:
    watch, idle = HeaderWatch(20.0, clock), Fake(Cycle(response_complete=True), object())
    watch.look([idle])
    clock.advance(60.0)

    assert watch.look([idle]) == 0


def test_a_next_request_that_never_gets_complete_is_closed(clock: ManualClock) -> None:
    watch, kept = HeaderWatch(20.0, clock), Fake(Cycle(response_complete=True))
    watch.look([kept])
    clock.advance(21.0)

    assert watch.look([kept]) == 1


def test_waiting_counts_anew_for_each_request(clock: ManualClock) -> None:
    watch, busy = HeaderWatch(20.0, clock), Fake()
    watch.look([busy])
    clock.advance(15.0)
    busy.cycle = Cycle(response_complete=False)
    watch.look([busy])
    clock.advance(15.0)
    busy.cycle = Cycle(response_complete=True)

    assert watch.look([busy]) == 0
