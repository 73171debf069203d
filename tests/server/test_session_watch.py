from __future__ import annotations

from cyclora_server.session_watch import SessionWatch


def watch() -> SessionWatch:
    return SessionWatch(timeout_s=60, max_blind_s=30)


def looks(watch: SessionWatch, live: dict[str, int], *moments_s: float) -> list[list[str]]:
    return [watch.look(live, moment_s) for moment_s in moments_s]


def test_a_session_without_a_sign_of_life_is_overdue_after_its_time() -> None:
    assert looks(watch(), {"a": 5}, 0, 30, 59, 60) == [[], [], [], ["a"]]


def test_a_sign_of_life_counts_whatever_the_clock_of_its_sender_says() -> None:
    one = watch()
    looks(one, {"a": 5}, 0, 30)

    assert looks(one, {"a": 4}, 59, 60, 89, 118) == [[], [], [], []]
    assert looks(one, {"a": 4}, 119) == [["a"]]


def test_what_happened_while_nobody_looked_counts_against_nobody() -> None:
    """A store that was away for an hour has heard of no client for an hour."""
    one = watch()
    looks(one, {"a": 5}, 0, 30)

    assert looks(one, {"a": 5}, 3600, 3630, 3659) == [[], [], []]
    assert looks(one, {"a": 5}, 3660) == [["a"]]


def test_one_that_was_overdue_gets_its_time_again() -> None:
    """Work was left: that is a sign of life too."""
    one = watch()
    looks(one, {"a": 5}, 0, 30, 60)

    assert looks(one, {"a": 5}, 90, 119, 120) == [[], [], ["a"]]


def test_one_that_ended_is_forgotten() -> None:
    one = watch()
    looks(one, {"a": 5}, 0, 30)
    looks(one, {}, 40)

    assert looks(one, {"a": 5}, 60) == [[]]
