"""Dimuon against a reference that takes the polar factor from a singular value decomposition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cyclora_core.errors import UserError
from cyclora_core.operations import DimuonStepBody, LoraConfig, OptimStepBody
from cyclora_core.optimizers import OptimizerType
from cyclora_workers.adapter import AdapterState
from cyclora_workers.base_model import BaseModel
from cyclora_workers.checkpoint import load_checkpoint, save_checkpoint
from cyclora_workers.dimuon import matrix_sign
from cyclora_workers.optimizer import optimizer_step
from workers.builders import cross_entropy, item, load, qwen3, run

BODY = DimuonStepBody(learning_rate=1e-2, beta1=0.8)
DIMUON = OptimizerType.DIMUON


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load(qwen3(num_hidden_layers=2), tmp_path_factory.mktemp("base"))


def new_state(base_model: BaseModel, rank: int = 4) -> AdapterState:
    return AdapterState.create(base_model, LoraConfig(rank, seed=3), DIMUON)


def polar_factor(matrix: Tensor) -> Tensor:
    """With the values that are zero but for rounding left out."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u @ torch.diag((s > 1e-6 * s.max()).double()) @ vh).float()


def matrices(state: AdapterState, flat_P: Tensor) -> list[Tensor]:
    return [each for pair in state.layout.views(flat_P).values() for each in pair]


def fill_gradient(state: AdapterState, seed: int, scale: float = 1.0) -> None:
    """In the views alone, as passes do."""
    generator = torch.Generator().manual_seed(seed)
    for view in matrices(state, state.gradient_P):
        view.copy_(torch.randn(view.shape, generator=generator) * scale)
    state.num_accumulated_passes = 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (4, 32), (32, 97), (48, 48)])
def test_the_matrix_sign_is_the_polar_factor(shape: tuple[int, int]) -> None:
    x_MSL = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))

    sign_MSL = matrix_sign(x_MSL)

    for sign_SL, x_SL in zip(sign_MSL, x_MSL, strict=True):
        torch.testing.assert_close(sign_SL, polar_factor(x_SL), rtol=0, atol=1e-5)
    norms = torch.linalg.vector_norm(sign_MSL, dim=(1, 2))
    torch.testing.assert_close(norms, torch.full((3,), shape[0] ** 0.5))


@pytest.mark.parametrize("scale", [0.0, 1e-37, 1e-20, 1e30])
def test_the_matrix_sign_of_any_length_is_a_number(scale: float) -> None:
    x_MSL = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0)).sign() * scale

    sign_MSL = matrix_sign(x_MSL)

    expected_MSL = matrix_sign(x_MSL.sign())
    torch.testing.assert_close(sign_MSL, expected_MSL, rtol=0, atol=1e-5)


def test_rounding_noise_of_a_gradient_of_low_rank_is_not_made_a_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    u_S, v_L = torch.randn(8, generator=generator), torch.randn(64, generator=generator)
    x_SL = torch.outer(u_S, v_L)

    (sign_SL,) = matrix_sign(x_SL[None])

    values = torch.linalg.svdvals(sign_SL)
    assert values[0] == pytest.approx(1.0, abs=1e-5)
    assert values[1] < 0.03
    torch.testing.assert_close(sign_SL, x_SL / (u_S.norm() * v_L.norm()), rtol=0, atol=0.02)


def test_directions_smaller_than_the_largest_by_four_orders_count_in_full() -> None:
    generator = torch.Generator().manual_seed(0)
    q_SS, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    r_LS, _ = torch.linalg.qr(torch.randn(32, 8, generator=generator))
    x_SL = q_SS @ torch.diag(torch.logspace(0, -3.9, 8)) @ r_LS.T

    (sign_SL,) = matrix_sign(x_SL[None])

    torch.testing.assert_close(torch.linalg.svdvals(sign_SL), torch.ones(8), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 4, 40])
@pytest.mark.parametrize("grad_clip_norm", [0.0, 0.5])
def test_steps_equal_the_reference(base_model: BaseModel, rank: int, grad_clip_norm: float) -> None:
    """With rank 40 the adapters on 32 features are taller than they are wide."""
    state = new_state(base_model, rank)
    weights = [each.clone() for each in matrices(state, state.master_P)]
    momenta = [torch.zeros_like(each) for each in weights]

    for step, learning_rate in enumerate((1e-2, 0.0, 5e-2)):
        fill_gradient(state, step)
        gradients = [each.clone() for each in matrices(state, state.gradient_P)]
        norm = torch.stack([each.square().sum() for each in gradients]).sum().sqrt().item()
        factor = min(1.0, grad_clip_norm / norm) if grad_clip_norm else 1.0
        for weight, momentum, gradient in zip(weights, momenta, gradients, strict=True):
            momentum.mul_(0.8).add_(0.2 * factor * gradient)
            weight.sub_(learning_rate * polar_factor(momentum))
        body = replace(BODY, learning_rate=learning_rate, grad_clip_norm=grad_clip_norm)
        metrics = optimizer_step(state, body)

        assert metrics == {"grad_norm": pytest.approx(norm), "num_steps": step + 1.0}
    for ours, theirs in zip(matrices(state, state.master_P), weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    for ours, theirs in zip(matrices(state, state.first_moment_P), momenta, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_clipping_acts_where_gradients_of_several_steps_meet(base_model: BaseModel) -> None:
    """The sign alone forgets the length; the momentum weighs the steps by it."""
    states = [new_state(base_model), new_state(base_model)]
    for state, clip in zip(states, (0.0, 1.0), strict=True):
        for seed, scale in enumerate((100.0, 1.0)):
            fill_gradient(state, seed, scale)
            optimizer_step(state, replace(BODY, grad_clip_norm=clip))

    assert not torch.allclose(states[0].master_P, states[1].master_P, atol=1e-3)


def test_a_matrix_without_a_gradient_does_not_move(base_model: BaseModel) -> None:
    """At first every B is zero, and with it the gradient of every A."""
    state = new_state(base_model)
    run(base_model, [item(state, cross_entropy([9, 4], 1))])
    before = [each.clone() for each in matrices(state, state.master_P)]

    optimizer_step(state, BODY)

    after = matrices(state, state.master_P)
    assert all(torch.equal(a, b) for a, b in zip(before[::2], after[::2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before[1::2], after[1::2], strict=True))
    assert bool(state.master_P.isfinite().all())


def test_a_step_without_any_gradient_goes_on_along_the_momentum(base_model: BaseModel) -> None:
    fresh, moving = new_state(base_model), new_state(base_model)
    start_P = fresh.master_P.clone()
    fill_gradient(moving, 0)
    optimizer_step(moving, BODY)
    first_P = start_P - moving.master_P

    assert optimizer_step(fresh, BODY)["grad_norm"] == 0.0
    optimizer_step(moving, BODY)

    assert torch.equal(fresh.master_P, start_P)
    torch.testing.assert_close(start_P - moving.master_P, 2 * first_P, rtol=0, atol=1e-6)


def test_a_step_leaves_a_zero_gradient_zero_gaps_and_a_fresh_compute_copy(
    base_model: BaseModel,
) -> None:
    state = new_state(base_model, rank=3)
    fill_gradient(state, 0)

    optimizer_step(state, BODY)

    assert not state.gradient_P.any()
    assert state.num_accumulated_passes == 0
    assert torch.equal(state.weights.flat_P, state.master_P)
    covered_P = torch.zeros(state.layout.num_elements, dtype=torch.bool)
    for view in matrices(state, covered_P):
        view.fill_(True)
    assert covered_P.logical_not().any()
    assert not state.master_P[~covered_P].any()


def test_training_lowers_the_loss(base_model: BaseModel) -> None:
    state = new_state(base_model)
    body = cross_entropy([12, 7], 1)
    for datum in body.data:
        datum.loss_fn_inputs["weights"][:] = 1.0
    losses: list[float] = []
    for _ in range(10):
        losses.append(run(base_model, [item(state, body)]).results()["r"].metrics["loss:sum"])
        optimizer_step(state, replace(BODY, learning_rate=0.05))

    assert losses[-1] < losses[0] / 2


def test_numbers_do_not_depend_on_the_neighbours_in_the_batch(base_model: BaseModel) -> None:
    alone, shared, other = (new_state(base_model) for _ in range(3))
    body = cross_entropy([9, 4], 1)
    for _ in range(2):
        run(base_model, [item(alone, body)])
        run(base_model, [item(other, cross_entropy([30]), "o"), item(shared, body)])
        for state in (other, shared, alone):
            optimizer_step(state, BODY)

    assert torch.equal(alone.master_P, shared.master_P)


def test_a_step_of_another_optimizer_is_refused_and_changes_nothing(
    base_model: BaseModel,
) -> None:
    dimuon, adamw = new_state(base_model), AdapterState.create(base_model, LoraConfig(4))
    for state, body in ((dimuon, OptimStepBody()), (adamw, BODY)):
        fill_gradient(state, 0)
        before = state.export_tensors()
        mine, other = state.optimizer_type, body.optimizer_type
        with pytest.raises(UserError, match=f"created with {mine}; a step of {other}"):
            optimizer_step(state, body)
        assert all(torch.equal(before[k], v) for k, v in state.export_tensors().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"beta1": 1.0}, "beta1 is 1.0"),
        ({"grad_clip_norm": -1.0}, "grad_clip_norm is -1.0"),
    ],
)
def test_a_parameter_out_of_range_is_refused(
    base_model: BaseModel, change: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        optimizer_step(new_state(base_model), replace(BODY, **change))


def trained(base_model: BaseModel) -> AdapterState:
    state = new_state(base_model)
    fill_gradient(state, 0)
    optimizer_step(state, BODY)
    return state


def test_it_has_one_moment_and_no_memory_for_another(base_model: BaseModel) -> None:
    state, adamw = new_state(base_model), AdapterState.create(base_model, LoraConfig(4))

    assert adamw.num_bytes - state.num_bytes == state.first_moment_P.nbytes
    assert state.export_tensors()["second_moment_P"].numel() == 0


def test_a_checkpoint_goes_on_bit_for_bit(base_model: BaseModel, tmp_path: Path) -> None:
    state = trained(base_model)
    save_checkpoint(state, base_model, tmp_path / "c", with_optimizer=True)
    resumed = AdapterState.empty(base_model, state.config, DIMUON)

    load_checkpoint(resumed, tmp_path / "c", with_optimizer=True)

    for each in (state, resumed):
        fill_gradient(each, 1)
        optimizer_step(each, BODY)
    after = resumed.export_tensors()
    assert all(torch.equal(after[k], v) for k, v in state.export_tensors().items())


def test_optimizer_state_of_another_optimizer_is_not_loaded(
    base_model: BaseModel, tmp_path: Path
) -> None:
    state = trained(base_model)
    save_checkpoint(state, base_model, tmp_path / "d", with_optimizer=True)
    adamw = AdapterState.empty(base_model, state.config)
    save_checkpoint(adamw, base_model, tmp_path / "a", with_optimizer=True)

    with pytest.raises(UserError, match="optimizer state is of dimuon; the model has adamw"):
        load_checkpoint(adamw, tmp_path / "d", with_optimizer=True)
    with pytest.raises(UserError, match="optimizer state is of adamw; the model has dimuon"):
        load_checkpoint(state, tmp_path / "a", with_optimizer=True)
    load_checkpoint(adamw, tmp_path / "d", with_optimizer=False)

    assert torch.equal(adamw.master_P, state.master_P)
    assert not adamw.first_moment_P.any()


def test_a_snapshot_of_another_optimizer_is_refused_whole(base_model: BaseModel) -> None:
    state = AdapterState.create(base_model, LoraConfig(4))
    before_P = state.master_P.clone()

    with pytest.raises(UserError, match="second_moment_P"):
        state.import_tensors(trained(base_model).export_tensors())

    assert torch.equal(state.master_P, before_P)
