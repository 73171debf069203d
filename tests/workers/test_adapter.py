"""Adapter state: flat buffers, their views, and what may change them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cyclora_core.errors import UserError
from cyclora_core.operations import LoraConfig, OptimStepBody
from cyclora_workers.adapter import AdapterLayout, AdapterState, ModuleGroup
from cyclora_workers.base_model import BaseModel
from cyclora_workers.optimizer import optimizer_step
from workers.builders import cross_entropy, item, load, qwen3, random_adapter, run


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load(qwen3(), tmp_path_factory.mktemp("base"))


def test_a_fresh_adapter_is_kaiming_uniform_in_A_and_zero_in_B(base_model: BaseModel) -> None:
    state = AdapterState.create(base_model, LoraConfig(16, seed=3))

    for module in state.layout.modules:
        lora_A_RD, lora_B_FR = state.layout.views(state.master_P)[module.name]
        # The bound of kaiming_uniform_ with a = sqrt(5), which PEFT uses.
        bound = module.in_features**-0.5
        assert lora_A_RD.abs().max() <= bound
        assert lora_A_RD.abs().max() > 0.9 * bound
        assert abs(lora_A_RD.mean()) < 0.2 * bound
        assert not lora_B_FR.any()


def test_a_fresh_adapter_changes_nothing_yet(base_model: BaseModel) -> None:
    body = cross_entropy([12])
    fresh = AdapterState.create(base_model, LoraConfig(4))
    zero = AdapterState.empty(base_model, LoraConfig(4))

    ours, theirs = (run(base_model, [item(s, body)]).results()["r"] for s in (fresh, zero))

    assert (ours.logprobs[0] == theirs.logprobs[0]).all()


def test_the_seed_alone_decides_the_weights(base_model: BaseModel) -> None:
    first = AdapterState.create(base_model, LoraConfig(4, seed=5))
    AdapterState.create(base_model, LoraConfig(8, seed=9))
    torch.manual_seed(123)
    same = AdapterState.create(base_model, LoraConfig(4, seed=5))
    other = AdapterState.create(base_model, LoraConfig(4, seed=6))

    assert torch.equal(first.master_P, same.master_P)
    assert not torch.equal(first.master_P, other.master_P)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 - 1])
def test_any_64_bit_seed_is_accepted(base_model: BaseModel, seed: int) -> None:
    assert AdapterState.create(base_model, LoraConfig(1, seed)).master_P.any()


def test_creating_an_adapter_leaves_the_global_random_state_alone(base_model: BaseModel) -> None:
    before = torch.get_rng_state()

    AdapterState.create(base_model, LoraConfig(4))

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("flags", "groups"),
    [
        ({}, {"attn", "mlp", "unembed"}),
        ({"train_attn": False}, {"mlp", "unembed"}),
        ({"train_mlp": False, "train_unembed": False}, {"attn"}),
    ],
)
def test_the_flags_choose_the_modules(
    base_model: BaseModel, flags: dict[str, bool], groups: set[str]
) -> None:
    state = AdapterState.create(base_model, LoraConfig(2, **flags))

    expected = [m for m in base_model.target_modules if m.group in groups]
    assert state.layout.modules == expected
    assert list(state.weights.modules) == [module.name for module in expected]


def test_scaling_is_32_over_the_rank(base_model: BaseModel) -> None:
    assert AdapterState.create(base_model, LoraConfig(8)).weights.scaling == 4.0
    assert AdapterState.create(base_model, LoraConfig(64)).weights.scaling == 0.5


def test_views_have_pefts_shapes_and_do_not_overlap(base_model: BaseModel) -> None:
    layout = AdapterLayout(base_model.target_modules, LoraConfig(3))
    touched_P = torch.zeros(layout.num_elements)

    for module in layout.modules:
        lora_A_RD, lora_B_FR = layout.views(touched_P)[module.name]
        assert lora_A_RD.shape == (3, module.in_features)
        assert lora_B_FR.shape == (module.out_features, 3)
        lora_A_RD += 1
        lora_B_FR += 1

    assert touched_P.max() == 1


def test_the_unembedding_is_one_target_module(base_model: BaseModel) -> None:
    groups = [module.group for module in base_model.target_modules]

    assert groups.count(ModuleGroup.UNEMBED) == 1
    assert groups.count(ModuleGroup.ATTN) == 8
    assert groups.count(ModuleGroup.MLP) == 6


@pytest.mark.parametrize(
    "config",
    [LoraConfig(0), LoraConfig(4, 0, train_attn=False, train_mlp=False, train_unembed=False)],
)
def test_an_adapter_of_nothing_is_refused(base_model: BaseModel, config: LoraConfig) -> None:
    with pytest.raises(UserError, match="at least"):
        AdapterState.create(base_model, config)


def test_a_snapshot_of_the_weights_is_independent(base_model: BaseModel) -> None:
    state = random_adapter(base_model, 4, 0)
    frozen = state.snapshot_weights()
    before_P = frozen.flat_P.clone()

    state.gradient_P.fill_(1.0)
    optimizer_step(state, OptimStepBody())

    assert torch.equal(frozen.flat_P, before_P)
    assert all(m.gradient_A_RD is None for m in frozen.modules.values())


def test_snapshots_between_two_steps_share_their_memory(base_model: BaseModel) -> None:
    """A copy is made where it is needed: at the step, which writes new weights anyway."""
    state = random_adapter(base_model, 4, 0)
    first, second = state.snapshot_weights(), state.snapshot_weights()
    training = state.weights

    optimizer_step(state, OptimStepBody())
    third = state.snapshot_weights()

    assert first.flat_P.data_ptr() == second.flat_P.data_ptr() == training.flat_P.data_ptr()
    assert third.flat_P.data_ptr() != first.flat_P.data_ptr()
    assert torch.equal(third.flat_P, state.master_P)


def test_without_a_snapshot_steps_write_in_place(base_model: BaseModel) -> None:
    state = random_adapter(base_model, 4, 0)
    state.snapshot_weights()
    optimizer_step(state, OptimStepBody())
    place = state.weights.flat_P.data_ptr()

    optimizer_step(state, OptimStepBody())

    assert state.weights.flat_P.data_ptr() == place


def test_a_moved_copy_trains_the_same_gradient_buffer(base_model: BaseModel) -> None:
    state, other = random_adapter(base_model, 4, 0), random_adapter(base_model, 4, 0)
    for step in range(3):
        state.snapshot_weights()
        for each in (state, other):
            run(base_model, [item(each, cross_entropy([9], step))])
            optimizer_step(each, OptimStepBody(1e-2))

    assert torch.equal(state.master_P, other.master_P)


def trained(base_model: BaseModel) -> AdapterState:
    """A state with moments, a step, and a gradient that was not applied yet."""
    state = random_adapter(base_model, 4, 0)
    run(base_model, [item(state, cross_entropy([9], 1))])
    optimizer_step(state, OptimStepBody(1e-2))
    run(base_model, [item(state, cross_entropy([9], 2))])
    return state


def test_an_imported_state_goes_on_bit_for_bit(base_model: BaseModel) -> None:
    original = trained(base_model)
    restored = AdapterState.empty(base_model, original.config)
    restored.import_tensors(original.export_tensors())

    for state in (original, restored):
        run(base_model, [item(state, cross_entropy([9], 3))])
        optimizer_step(state, OptimStepBody(1e-2))

    after = restored.export_tensors()
    assert all(torch.equal(after[k], v) for k, v in original.export_tensors().items())
    assert torch.equal(restored.weights.flat_P, original.weights.flat_P)


def test_exported_tensors_are_copies(base_model: BaseModel) -> None:
    state = trained(base_model)
    exported = state.export_tensors()
    before_P = exported["master_P"].clone()

    optimizer_step(state, OptimStepBody(1e-2))

    assert torch.equal(exported["master_P"], before_P)


def test_a_state_of_another_layout_is_refused_whole(base_model: BaseModel) -> None:
    state = random_adapter(base_model, 2, 0)
    before_P = state.master_P.clone()
    tensors = trained(base_model).export_tensors()

    with pytest.raises(UserError, match="master_P"):
        state.import_tensors(tensors)
    del tensors["num_steps"]
    with pytest.raises(UserError):
        state.import_tensors(tensors)

    assert torch.equal(state.master_P, before_P)


def test_a_gradient_can_be_brought_back(base_model: BaseModel) -> None:
    state = trained(base_model)
    mark, before_P = state.mark_gradient(), state.gradient_P.clone()
    run(base_model, [item(state, cross_entropy([9], 3))])

    state.restore_gradient(mark)

    assert torch.equal(state.gradient_P, before_P)
    assert state.num_accumulated_passes == 1


def test_a_compute_copy_has_the_base_models_dtype(tmp_path: Path) -> None:
    state = random_adapter(load(qwen3(), tmp_path, torch.bfloat16), 4, 0)

    assert state.weights.flat_P.dtype == torch.bfloat16
    assert state.master_P.dtype == state.gradient_P.dtype == torch.float32
