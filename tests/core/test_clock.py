from __future__ import annotations

from cyclora_core.clock import ManualClock


def test_time_passes_on_both_clocks_and_a_jump_moves_only_the_wall() -> None:
    clock = ManualClock(1000)

    clock.advance(2)
    clock.jump_wall(-3600)
    clock.advance(1)

    assert (clock.now_ms(), clock.mono_s()) == (1000 + 3000 - 3_600_000, 3.0)
