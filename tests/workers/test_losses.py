"""Losses and coefficients against the published formulas under autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cyclora_core.losses import LOSS_RULES, full_config
from cyclora_core.operations import Datum, PassBody
from cyclora_workers.losses import LOSSES
from cyclora_workers.sequence_losses import SEQUENCE_LOSSES, gspo
from parity.peft_reference import reference_loss

N = 64


def inputs(loss_fn: str, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    found: dict[str, Any] = {
        "weights": rng.normal(size=N).astype(np.float32),
        "logprobs": (-3 * rng.random(N)).astype(np.float32),
        "advantages": rng.normal(size=N).astype(np.float32),
    }
    return {key: found[key] for key in LOSS_RULES[loss_fn].inputs - {"target_tokens"}} | more


def logprobs() -> Tensor:
    return -3 * torch.rand(N, generator=torch.Generator().manual_seed(1))


def thresholds(value: float) -> Any:
    return np.linspace(value, value + 0.3, N, dtype=np.float32)


@pytest.mark.parametrize(
    ("loss_fn", "config", "more"),
    [
        ("cross_entropy", {}, {}),
        ("importance_sampling", {}, {}),
        ("ppo", {}, {}),
        ("ppo", {"clip_low_threshold": 0.5, "clip_high_threshold": 1.5}, {}),
        ("ppo", {}, {"clip_low_threshold": thresholds(0.4)}),
        ("cispo", {}, {}),
        ("cispo", {"clip_high_threshold": 1.1}, {}),
        (
            "cispo",
            {},
            {"clip_low_threshold": thresholds(0.7), "clip_high_threshold": thresholds(1.0)},
        ),
        ("dro", {}, {}),
        ("dro", {"beta": 1.5}, {}),
    ],
)
def test_loss_and_coefficient_follow_the_formula(
    loss_fn: str, config: dict[str, float], more: dict[str, Any]
) -> None:
    given = inputs(loss_fn, **more)
    leaf = logprobs().requires_grad_()
    datum = Datum(np.zeros(N, np.int32), given)
    expected = reference_loss(PassBody(loss_fn, config, [datum]), datum, leaf)
    expected.backward()

    tensors = {key: torch.from_numpy(value) for key, value in given.items()}
    loss, coefficient = LOSSES[loss_fn](logprobs(), tensors, full_config(loss_fn, config))

    torch.testing.assert_close(loss.sum(), expected.detach())
    torch.testing.assert_close(coefficient, leaf.grad)


def test_ppo_has_no_gradient_where_the_clipped_term_is_smaller() -> None:
    given = {
        "logprobs": torch.zeros(4),
        "advantages": torch.tensor([1.0, -1.0, 1.0, -1.0]),
    }
    ratio = torch.tensor([2.0, 0.5, 0.5, 2.0])

    _, coefficient = LOSSES["ppo"](ratio.log(), given, full_config("ppo", {}))

    assert coefficient.tolist() == pytest.approx([0.0, 0.0, -0.5, 2.0])


def sequence(**inputs: Any) -> dict[str, Tensor]:
    """Four tokens whose sampler logprobs are 0, so that a ratio is exp(logprob)."""
    found = {
        "logprobs": [0.0] * 4,
        "advantages": [1.0, -1.0, 2.0, 0.0],
        "sequence_ratio_mask": [1.0, 0.0, 1.0, 0.0],
    }
    return {key: torch.tensor(value) for key, value in (found | inputs).items()}


def test_gspo_gives_every_token_the_geometric_mean_of_the_masked_ratios() -> None:
    logprobs_N = torch.tensor([1.1, 8.0, 0.9, 0.5]).log()
    ratio = (1.1 * 0.9) ** 0.5

    found = gspo(logprobs_N, sequence(), full_config("gspo", {}))

    assert found.loss.item() == pytest.approx(-ratio * 2.0)
    assert found.coefficient.tolist() == pytest.approx([-ratio, ratio, -2.0 * ratio, 0.0])


def test_gspo_drops_the_tokens_of_a_clipped_sequence_by_the_sign_of_their_advantage() -> None:
    found = gspo(torch.full((4,), 2.0).log(), sequence(), full_config("gspo", {}))

    assert found.coefficient.tolist() == pytest.approx([0.0, 2.0, 0.0, 0.0])
    assert found.loss.item() == pytest.approx(-1.2 + 2.0 - 2.4)


def test_gspo_clips_each_token_by_its_own_thresholds() -> None:
    given = sequence(clip_high_threshold=[3.0, 3.0, 1.5, 3.0])

    found = gspo(torch.full((4,), 2.0).log(), given, full_config("gspo", {}))

    assert found.coefficient.tolist() == pytest.approx([-2.0, 2.0, 0.0, 0.0])


def test_the_value_of_the_ratio_mask_does_not_weigh() -> None:
    logprobs_N = torch.tensor([1.1, 8.0, 0.9, 0.5]).log()
    config = full_config("gspo", {})

    ones, others = (
        gspo(logprobs_N, sequence(sequence_ratio_mask=mask), config).loss.item()
        for mask in ([1.0, 0.0, 1.0, 0.0], [0.25, 0.0, -7.0, 0.0])
    )

    assert ones == others


def test_cross_entropy_takes_several_targets_per_token() -> None:
    weights = torch.tensor([[1.0, 0.0, -2.0], [0.5, 0.5, 0.0]])
    found = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])

    loss, coefficient = LOSSES["cross_entropy"](found, {"weights": weights}, {})

    assert loss.sum().item() == pytest.approx(1.0 - 6.0 + 2.0 + 2.5)
    assert torch.equal(coefficient, -weights)


def test_every_loss_that_is_accepted_has_a_formula() -> None:
    assert LOSSES.keys() | SEQUENCE_LOSSES.keys() == LOSS_RULES.keys()
    assert not LOSSES.keys() & SEQUENCE_LOSSES.keys()
