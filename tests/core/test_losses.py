"""The table of loss functions, and what is checked with it alone."""

from __future__ import annotations

import numpy as np
import pytest

from cyclora_core.errors import UserError
from cyclora_core.losses import check_values, full_config, loss_rule


def test_defaults_fill_in_what_a_config_leaves_out() -> None:
    assert full_config("ppo", {"clip_low_threshold": 0.5}) == {
        "clip_low_threshold": 0.5,
        "clip_high_threshold": 1.2,
    }
    assert full_config("cispo", {}) == {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}


@pytest.mark.parametrize(
    ("loss_fn", "config", "message"),
    [
        ("ppo", {"clip": 0.2}, "has 'clip', which ppo does not take"),
        ("cross_entropy", {"beta": 0.1}, "expected nothing"),
        ("dro", {"beta": float("nan")}, "expected a finite fp32 number"),
        ("ppo", {"clip_high_threshold": 1e300}, "is 1e.300; expected a finite fp32 number"),
        ("ppo", {"clip_low_threshold": 1.5}, "1.5 is above clip_high_threshold 1.2"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(
    loss_fn: str, config: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        full_config(loss_fn, config)


def test_stable_reinforce_is_refused_with_its_reason_and_what_to_use() -> None:
    with pytest.raises(UserError, match=r"not public; use ppo or importance_sampling"):
        loss_rule("stable_reinforce")


def test_a_long_unknown_name_is_cut() -> None:
    with pytest.raises(UserError, match="is unknown; expected one of cross_entropy") as caught:
        loss_rule("x" * 10_000)

    assert len(str(caught.value)) < 300


def test_equal_thresholds_do_not_cross() -> None:
    ones = np.ones(3, np.float32)

    check_values(
        "datum", {"clip_low_threshold": ones, "clip_high_threshold": ones}, full_config("ppo", {})
    )


def test_data_without_thresholds_of_their_own_need_no_config() -> None:
    check_values("datum", {"advantages": np.ones(3)}, {})


def test_a_ratio_mask_that_marks_no_token_is_refused() -> None:
    """The mean over no tokens would be NaN, and the whole adapter with it."""
    with pytest.raises(UserError, match="datum has no token whose sequence_ratio_mask is not 0"):
        check_values("datum", {"sequence_ratio_mask": np.zeros(3)}, full_config("gspo", {}))
