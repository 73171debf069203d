"""Experts of any size: nobody's bits depend on who else was sent to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

from cyclora_core.operations import DimuonStepBody
from cyclora_core.optimizers import OptimizerType
from cyclora_core.peft import ModuleGroup
from cyclora_workers.adapter import AdapterState
from cyclora_workers.architecture import UnsupportedModel
from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import Segment
from cyclora_workers.optimizer import optimizer_step
from cyclora_workers.routing import Routing
from parity.families import FAMILIES, Family
from workers.builders import CPU, cross_entropy, item, load, random_adapter, run
from workers.sampling.builders import threads

MIXTURES = ["gpt-oss", "mixtral", "olmoe", "qwen3-moe"]
ODD: dict[str, Any] = {"vocab_size": 131, "num_experts_per_tok": 3, "hidden_size": 48}
SHAPES: dict[str, Family] = {
    "many experts": Family(
        "qwen3_moe", {**ODD, "num_experts": 19, "moe_intermediate_size": 36, "head_dim": 12}
    ),
    "few experts": Family("mixtral", {**ODD, "num_local_experts": 3, "intermediate_size": 71}),
    "biases": Family(
        "gpt_oss",
        {**ODD, "num_local_experts": 7, "intermediate_size": 50, "head_dim": 20},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_random_packs_of_odd_shapes_change_no_bit(
    shape: str, dtype: torch.dtype, num_threads: int, tmp_path: Path
) -> None:
    base_model = load(SHAPES[shape].make(), tmp_path, dtype)
    rng = np.random.default_rng([num_threads, len(shape)])
    with threads(num_threads):
        for _ in range(5):
            seed = int(rng.integers(1000))
            lengths = [int(n) for n in rng.integers(1, 150, 3)]
            state = random_adapter(base_model, int(rng.integers(1, 30)), seed)
            mine = item(state, cross_entropy(lengths, seed), "mine")
            alone = run(base_model, [mine]).results()["mine"]
            alone_P = state.gradient_P.clone()
            state.gradient_P.zero_()
            others = [
                item(
                    random_adapter(base_model, int(rng.integers(1, 30)), seed + place),
                    cross_entropy([int(n) for n in rng.integers(1, 390, 3)], seed + place),
                    f"neighbour {place}",
                )
                for place in (1, 2)
            ]

            beside = run(base_model, [others[0], mine, others[1]]).results()["mine"]

            for ours, other in zip(alone.logprobs, beside.logprobs, strict=True):
                np.testing.assert_array_equal(ours, other)
            assert torch.equal(alone_P, state.gradient_P)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_lora_flags_decide_over_experts_and_never_over_routers(
    mixture: str, tmp_path: Path
) -> None:
    targets = load(FAMILIES[mixture].make(), tmp_path).target_modules

    experts = [target for target in targets if target.num_experts]
    assert [t.name.split(".")[2:] for t in experts] == [
        [str(layer), "mlp", "experts", parameter]
        for layer in range(2)
        for parameter in ("gate_up_proj", "down_proj")
    ]
    assert {target.group for target in experts} == {ModuleGroup.MLP}
    assert [t for t in targets if t.group is ModuleGroup.MLP] == experts


@pytest.mark.parametrize(("lora_rank", "expected"), [(1, 1), (2, 1), (3, 1), (8, 2), (32, 10)])
def test_active_experts_share_the_rank(lora_rank: int, expected: int, tmp_path: Path) -> None:
    base_model = load(FAMILIES["qwen3-moe"].make(), tmp_path)
    weights = random_adapter(base_model, lora_rank, 0).weights

    module = weights.modules["model.layers.0.mlp.experts.gate_up_proj"]
    assert module.lora_A_RD.shape == (6, expected, 32)
    assert module.lora_B_FR.shape == (6, 48, expected)


def test_a_fresh_adapter_changes_nothing_and_has_an_a_for_every_expert(tmp_path: Path) -> None:
    base_model = load(FAMILIES["mixtral"].make(), tmp_path)
    state = random_adapter(base_model, 4, 0)
    for _, lora_B in state.layout.views(state.master_P).values():
        lora_B.zero_()
    state.refresh_weights()
    body = cross_entropy([20])

    adapted = run(base_model, [item(state, body)]).results()["r"].logprobs[0]

    state.master_P.zero_()
    state.refresh_weights()
    bare = run(base_model, [item(state, body)]).results()["r"].logprobs[0]
    np.testing.assert_array_equal(adapted, bare)


def test_dimuon_moves_every_expert_by_itself(tmp_path: Path) -> None:
    """An expert that no token went to has no gradient, and stays where it is."""
    base_model = load(SHAPES["many experts"].make(), tmp_path)
    config = random_adapter(base_model, 6, 0).config
    state = AdapterState.create(base_model, config, OptimizerType.DIMUON)
    run(base_model, [item(state, cross_entropy([2]))])
    name = "model.layers.0.mlp.experts.down_proj"
    gradient_B = state.layout.views(state.gradient_P)[name][1].clone()
    before_B = state.layout.views(state.master_P)[name][1].clone()

    optimizer_step(state, DimuonStepBody(learning_rate=1e-2))

    after_B = state.layout.views(state.master_P)[name][1]
    moved = [not torch.equal(a, b) for a, b in zip(after_B, before_B, strict=True)]
    assert moved == [bool(each.any()) for each in gradient_B]
    assert any(moved)
    assert not all(moved)


def test_every_choice_has_a_row_among_those_of_its_expert_and_segment() -> None:
    generator = torch.Generator().manual_seed(0)
    indices_TK = torch.stack([torch.randperm(9, generator=generator)[:2] for _ in range(96)])
    segments = [Segment(0, 1, None), Segment(1, 70, None), Segment(70, 90, None)]

    routing = Routing.of(indices_TK, 9, segments)

    found: set[tuple[int, int]] = set()
    for run_ in routing.runs:
        for row in range(run_.start, run_.stop):
            token = int(routing.token_of_row_P[row])
            assert run_.segment.start <= token < run_.segment.stop
            place = indices_TK[token].tolist().index(run_.expert)
            assert routing.row_of_token_TK[token, place] == row
            found.add((token, place))
    assert found == {(token, place) for token in range(90) for place in range(2)}
    assert all(rows.start % 32 == 0 == rows.stop % 32 for rows in routing.experts)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Qwen3MoeConfig(**ODD, num_hidden_layers=2, mlp_only_layers=[0]), "dense layers among"),
        (
            MixtralConfig(**ODD, num_hidden_layers=1, num_local_experts=4, intermediate_size=601),
            "experts have 601 features",
        ),
    ],
    ids=["dense layers", "odd width"],
)
def test_what_would_be_computed_wrongly_is_refused(
    config: Any, message: str, tmp_path: Path
) -> None:
    for key, value in (("num_attention_heads", 4), ("num_key_value_heads", 2), ("head_dim", 12)):
        setattr(config, key, value)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)

    with pytest.raises(UnsupportedModel, match=message):
        BaseModel.load("tests/tiny", tmp_path, dtype=torch.float32, device=CPU)
