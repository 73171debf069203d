"""tinker-cookbook's training loops, unpatched, against a running server."""

from __future__ import annotations

import pytest

from contract.conftest import Running
from cookbook.conftest import LoopRun, RunLoop

pytestmark = [pytest.mark.contract, pytest.mark.slow]


def test_the_supervised_loop_teaches_and_evaluates(taught: LoopRun) -> None:
    losses = taught.metric("train_mean_nll")
    evaluated = taught.metric("test/nll")

    assert len(losses) == 8
    assert losses[-1] < 0.2 * losses[0]
    assert len(evaluated) == 2
    assert evaluated[1] < evaluated[0]


def test_the_supervised_loop_keeps_its_periodic_checkpoints_and_drops_the_rolling_ones(
    up: Running, taught: LoopRun
) -> None:
    final = taught.checkpoint("final")
    model_id = final["state_path"].split("/")[2]
    listed = up.rest("cookbook").list_checkpoints(model_id).result().checkpoints

    names = {each.checkpoint_id: each for each in listed}
    assert {"weights/000003", "sampler_weights/000003", "weights/final"} <= names.keys()
    assert "weights/000002" not in names
    assert names["weights/000003"].expires_at is not None
    assert names["weights/final"].expires_at is None


def test_the_supervised_loop_goes_on_with_the_same_numbers_after_a_crash(
    run_loop: RunLoop, taught: LoopRun, start_path: str
) -> None:
    # Batch 3 of the first epoch: the newest state is the one before it.
    crashed = run_loop("supervised", checkpoint=start_path, crash_at_batch=3)
    assert crashed.metric("train_mean_nll") == taught.metric("train_mean_nll")[:3]

    resumed = run_loop("supervised", checkpoint=start_path, folder=crashed.folder)

    steps = [int(step) for step in resumed.metric("step")]
    losses = dict(zip(steps, resumed.metric("train_mean_nll"), strict=True))
    assert list(losses) == list(range(8))
    assert list(losses.values()) == taught.metric("train_mean_nll")
    assert resumed.checkpoint("final")["batch"] == 0


@pytest.mark.parametrize("loop", ["reinforce_streaming", "reinforce_off_policy"])
def test_the_reinforcement_loop_learns_from_mixed_rewards(run_loop: RunLoop, loop: str) -> None:
    assert_reinforced(run_loop(loop))


def test_the_reinforcement_loop_in_step_finds_the_logprobs_of_its_fresh_samples(
    run_loop: RunLoop,
) -> None:
    """Its first step trains on what its own weights have just drawn."""
    run = run_loop("reinforce_in_step")

    assert_reinforced(run)
    assert run.metric("optim/kl_sample_train_v1")[0] == pytest.approx(0, abs=1e-4)
    assert run.metric("kl_policy_base")[0] == pytest.approx(0, abs=1e-4)
    assert run.metric("kl_policy_base")[-1] != 0


def assert_reinforced(run: LoopRun) -> None:
    assert len(run.metric("env/all/reward/total")) == 3
    assert max(run.metric("env/all/by_group/frac_mixed")) > 0
    assert max(run.metric("grad_norm")) > 0
    assert run.checkpoint("final")["batch"] == 3


def test_the_preference_loop_widens_its_margin(run_loop: RunLoop) -> None:
    run = run_loop("prefer")

    margins = run.metric("margin")
    assert margins[0] == pytest.approx(0, abs=1e-4)
    assert margins == sorted(margins)
    assert run.metric("dpo_loss")[-1] < run.metric("dpo_loss")[0]


def test_the_distillation_loop_measures_its_distance_from_another_model(
    run_loop: RunLoop, taught: LoopRun
) -> None:
    run = run_loop("distill", checkpoint=taught.checkpoint("final")["sampler_path"])

    distances = run.metric("teacher_kl")
    assert len(distances) == 4
    assert distances[0] > 1


def test_the_distillation_loop_starts_at_no_distance_from_its_own_base_model(
    run_loop: RunLoop,
) -> None:
    run = run_loop("distill")

    distances = run.metric("teacher_kl")
    assert len(distances) == 4
    assert abs(distances[0]) < 1e-4
