"""What tenants get of workers under load, cycle after cycle."""

from __future__ import annotations

from statistics import mean

import pytest

from cyclora_scheduler.settings import SchedulerSettings
from scheduler.simulation import Sampling, SamplingSimulation, Trainer, TrainingSimulation

SPEED = 20_000.0


@pytest.mark.parametrize(("light", "heavy"), [(64, 64), (1000, 64), (64, 2000), (4000, 4000)])
def test_weights_one_to_three_train_tokens_one_to_three(light: int, heavy: int) -> None:
    """Whatever the sizes of their steps, as long as both always have more than their share."""
    one = [Trainer(f"one{n}", [light] * 16, 4, tenant_id="one") for n in range(16)]
    three = [Trainer(f"three{n}", [heavy] * 16, 4, tenant_id="three") for n in range(16)]
    simulation = TrainingSimulation(
        [*one, *three],
        {"w": SPEED},
        {"one": 1.0, "three": 3.0},
        SchedulerSettings(target_cycle_s=0.5),
    )

    simulation.run(200.0)

    light_tokens, heavy_tokens = (sum(each.num_tokens for each in group) for group in (one, three))
    assert heavy_tokens / light_tokens == pytest.approx(3.0, rel=0.05)


def test_one_model_with_steps_larger_than_cycles_gets_its_tenants_share() -> None:
    """Also where a step ends within a cycle, and the next one cannot begin in it."""
    one, three = Trainer("one", [1000] * 100, 9), Trainer("three", [1000] * 100, 9)
    simulation = TrainingSimulation(
        [one, three],
        {"w": SPEED},
        {"one": 1.0, "three": 3.0},
        SchedulerSettings(target_cycle_s=0.5),
    )

    simulation.run(400.0)

    assert three.num_tokens / one.num_tokens == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("weights", [{}, {"large": 100.0}, {"large": 0.01}])
def test_large_steps_beside_small_ones_cost_these_about_a_cycle(weights: dict[str, float]) -> None:
    alone = Trainer("small", [16] * 4)
    TrainingSimulation([alone], {"w": SPEED}).run(10.0)
    small = Trainer("small", [16] * 4)
    large = Trainer("large", [500] * 200, num_pipelined=1000)
    simulation = TrainingSimulation([large, small], {"w": SPEED}, weights)

    simulation.run(300.0)

    # One more for the cycle that runs when a step is sent, as anything is that comes meanwhile.
    longest_s = max(simulation.cycle_s)
    assert longest_s <= 1.1 * SchedulerSettings().target_cycle_s
    assert mean(small.step_s) <= mean(alone.step_s) + longest_s
    assert max(small.step_s) <= max(alone.step_s) + 2 * longest_s
    assert large.num_tokens >= 0.9 * 300.0 * SPEED


def test_thousands_of_tenants_on_many_workers_all_get_their_share() -> None:
    """A heavy one of weight three on each; nobody waits longer than a fair turn."""
    speeds = {f"w{number:03}": SPEED for number in range(100)}
    heavy = [
        Trainer(f"heavy{n}", [256] * 64, num_pipelined=8, worker_id=f"w{n:03}") for n in range(100)
    ]
    small = [Trainer(f"t{n:04}", [100] * 4, worker_id=f"w{n % 100:03}") for n in range(2000)]
    weights = {trainer.tenant_id: 3.0 for trainer in heavy}
    simulation = TrainingSimulation([*heavy, *small], speeds, weights)

    simulation.run(8.0)

    assert all(len(trainer.step_s) >= 2 for trainer in small)
    assert max(max(trainer.step_s) for trainer in small) <= 2.2 * max(simulation.cycle_s)
    assert all(trainer.num_tokens > 0 for trainer in heavy)


@pytest.mark.parametrize("memory_tokens", [2_000, 20_000])
@pytest.mark.parametrize(("light", "heavy"), [(64, 64), (200, 64), (32, 200)])
def test_weights_one_to_three_sample_tokens_one_to_three(
    light: int, heavy: int, memory_tokens: int
) -> None:
    one = Sampling("one", 8, light, num_waiting=260)
    three = Sampling("three", 8, heavy, num_waiting=260)
    simulation = SamplingSimulation([one, three], memory_tokens, {"one": 1.0, "three": 3.0})

    simulation.run(1000)

    taken = {each.tenant_id: each.num_taken * (8 + each.max_tokens) for each in (one, three)}
    assert taken["three"] / taken["one"] == pytest.approx(3.0, rel=0.05)
