from __future__ import annotations

from cyclora_workers.phases import Phase, Phases


class Stopwatch:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def test_each_moment_counts_for_the_inner_phase_and_once() -> None:
    watch = Stopwatch()
    phases = Phases(watch)
    watch.s += 1
    with phases.of(Phase.PASSES):
        watch.s += 2
        with phases.of(Phase.DECODE):
            watch.s += 4
        watch.s += 8
        with phases.of(Phase.SETTLE):
            watch.s += 16
    watch.s += 32
    with phases.of(Phase.PASSES):
        watch.s += 64

    assert phases.seconds == {Phase.PASSES: 74, Phase.DECODE: 4, Phase.SETTLE: 16}
    assert phases.total_s == 127


def test_a_phase_that_fails_has_ended() -> None:
    watch = Stopwatch()
    phases = Phases(watch)
    try:
        with phases.of(Phase.STEPS):
            watch.s += 1
            raise RuntimeError
    except RuntimeError:
        watch.s += 5
    with phases.of(Phase.SETTLE):
        watch.s += 2

    assert phases.seconds == {Phase.STEPS: 1, Phase.SETTLE: 2}
