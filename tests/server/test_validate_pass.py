from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.losses import custom_loss, method, ref
from cyclora_core.errors import UserError
from cyclora_core.operations import Datum, PassBody
from cyclora_server.validate_pass import check_pass
from server.doubles.builders import BASE


def ints(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(values, np.int64)


def floats(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.asarray(values, np.float32)


def tokens(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.asarray(values, np.int32)


def inputs(loss_fn: str, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"target_tokens": ints(2, 3)}
    if loss_fn == "cross_entropy":
        values["weights"] = floats(1, 0)
    else:
        values |= {"logprobs": floats(-1, -2), "advantages": floats(1, -1)}
    if loss_fn == "gspo":
        values["sequence_ratio_mask"] = floats(0, 1)
    values |= changes
    return {name: value for name, value in values.items() if value is not None}


def a_pass(loss_fn: str = "cross_entropy", **changes: Any) -> PassBody:
    config = changes.pop("config", {})
    datum = Datum(changes.pop("tokens", tokens(1, 2)), inputs(loss_fn, **changes))
    return PassBody(loss_fn, config, [datum])


def refused(body: PassBody, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check_pass(body, BASE)


@pytest.mark.parametrize(
    "body",
    [
        a_pass(),
        a_pass(weights=floats(-1.5, 1e6)),
        a_pass(target_tokens=ints(1, 2, 3, 4).reshape(2, 2), weights=np.ones((2, 2), np.float32)),
        a_pass("importance_sampling"),
        a_pass("ppo"),
        a_pass("ppo", config={"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}),
        a_pass("cispo", clip_low_threshold=floats(0, 0), clip_high_threshold=floats(4, 4)),
        a_pass("dro", config={"beta": 0.05}),
        a_pass("gspo"),
        a_pass("gspo", config={"clip_low_threshold": 0.999, "clip_high_threshold": 1.001}),
        a_pass("gspo", clip_high_threshold=floats(1.1, 1.2)),
        a_pass(
            tokens=tokens(*range(32)), target_tokens=ints(*[99] * 32), weights=floats(*[1] * 32)
        ),
    ],
)
def test_a_sound_pass_is_accepted(body: PassBody) -> None:
    check_pass(body, BASE)


def test_an_unknown_loss_is_refused_with_the_known_ones() -> None:
    refused(a_pass("hinge"), "'hinge' is unknown; expected one of cross_entropy, importance_sam")


def test_a_loss_that_tinker_has_and_we_do_not_is_refused_by_name() -> None:
    complaint = "'stable_reinforce' is not supported .*use ppo or importance_sampling"
    refused(a_pass("stable_reinforce"), complaint)


def test_the_refusal_of_stable_reinforce_gives_the_reason() -> None:
    refused(a_pass("stable_reinforce"), "its formula is not public")


def test_a_missing_loss_input_is_named() -> None:
    refused(a_pass(weights=None), r"data\[0\] lacks loss_fn_inputs weights; cross_entropy needs")


def test_gspo_needs_to_know_which_tokens_were_sampled() -> None:
    refused(a_pass("gspo", sequence_ratio_mask=None), "lacks loss_fn_inputs sequence_ratio_mask")
    refused(a_pass("gspo", sequence_ratio_mask=floats(0, 0)), r"data\[0\] has no token whose")


def test_an_unknown_loss_input_is_named() -> None:
    refused(a_pass(mask=floats(1, 1)), "loss_fn_inputs mask, which cross_entropy does not take")


def test_per_token_clip_thresholds_are_for_clipped_losses_only() -> None:
    refused(
        a_pass("importance_sampling", clip_low_threshold=floats(0, 0)), "clip_low_threshold, which"
    )


def test_an_unknown_config_key_is_named() -> None:
    refused(a_pass("ppo", config={"beta": 1.0}), "has 'beta', which ppo does not take")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_config_value_that_is_no_number_is_refused(value: float) -> None:
    refused(a_pass("dro", config={"beta": value}), "expected a finite fp32 number")


@pytest.mark.parametrize(
    ("config", "inputs", "complaint"),
    [
        (
            {"clip_low_threshold": 1.25, "clip_high_threshold": 0.75},
            {},
            "loss_fn_config: clip_low_threshold 1.25 is above clip_high_threshold 0.75",
        ),
        ({"clip_low_threshold": 1.25}, {}, "1.25 is above clip_high_threshold 1.2;"),
        (
            {},
            {"clip_low_threshold": floats(0.5, 0.75), "clip_high_threshold": floats(1, 0.5)},
            r"data\[0\] at token 1: clip_low_threshold 0.75 is above clip_high_threshold 0.5",
        ),
        (
            {"clip_high_threshold": 1.5},
            {"clip_low_threshold": floats(1.5, 1.75)},
            r"data\[0\] at token 1: clip_low_threshold 1.75 is above clip_high_threshold 1.5",
        ),
    ],
)
def test_clip_thresholds_that_cross_are_refused(
    config: dict[str, float], inputs: dict[str, Any], complaint: str
) -> None:
    """The tokens' own, the config's, and a token's own beside the config's other one."""
    refused(a_pass("ppo", config=config, **inputs), complaint)


def test_empty_data_are_refused() -> None:
    refused(PassBody("cross_entropy", {}, []), "data is empty")


def test_an_empty_datum_is_refused() -> None:
    refused(a_pass(tokens=tokens()), r"data\[0\] has an empty model_input")


@pytest.mark.parametrize("token", [-1, 100])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    refused(a_pass(tokens=tokens(1, token)), rf"model_input has token id {token}; expected 0..99")


@pytest.mark.parametrize("token", [-100, 100])
def test_a_target_outside_the_vocabulary_is_refused(token: int) -> None:
    refused(a_pass(target_tokens=ints(token, 1)), rf"target_tokens has token id {token}")


def test_a_datum_longer_than_the_context_is_refused() -> None:
    refused(a_pass(tokens=tokens(*[1] * 33)), "33 tokens; org/tiny takes at most 32")


def test_targets_of_another_length_than_the_input_are_refused() -> None:
    refused(a_pass(target_tokens=ints(1, 2, 3)), "has 3 rows; expected 2")


def test_targets_that_are_no_integers_are_refused() -> None:
    refused(a_pass(target_tokens=floats(1, 2)), "dtype float32; expected int64")


def test_loss_weights_that_are_no_floats_are_refused() -> None:
    refused(a_pass(weights=ints(1, 0)), "dtype int64; expected float32")


def test_loss_weights_of_another_shape_than_the_targets_are_refused() -> None:
    refused(a_pass(weights=floats(1)), r"weights has shape \[1\]; expected \[2\]")


def test_top_k_targets_are_for_cross_entropy_only() -> None:
    refused(a_pass("ppo", target_tokens=ints(1, 2).reshape(2, 1)), r"ppo takes \[2\] only")


@pytest.mark.parametrize("num_targets", [0, 257])
def test_the_number_of_targets_per_position_is_bounded(num_targets: int) -> None:
    refused(a_pass(target_tokens=np.zeros((2, num_targets), np.int64)), "expected 1 to 256")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_inputs_that_are_not_finite_are_refused(value: float) -> None:
    """One NaN would make the whole adapter NaN at the next optimizer step."""
    refused(a_pass("ppo", advantages=floats(0, value)), "advantages holds .*; expected finite")


CUSTOM = custom_loss(method("total", "sum", ref("logprobs")), scale=0, old=1, table=2)


def custom_pass(**changes: Any) -> PassBody:
    given: dict[str, Any] = {
        "target_tokens": ints(2, 3),
        "scale": floats(0.5),
        "old": floats(1, 2, 3),
        "table": np.zeros((4, 5), np.float32),
    }
    datum = Datum(tokens(1, 2), given | changes)
    return PassBody("custom", {}, [datum], "id", CUSTOM)


def test_inputs_of_a_custom_loss_have_the_rank_it_declared_and_any_length() -> None:
    check_pass(custom_pass(), BASE)
    check_pass(custom_pass(scale=ints(7).reshape(1, 1), old=floats(np.inf)), BASE)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"scale": floats(1, 2)}, r"data\[0\].scale has shape \[2\], .* expected one element"),
        ({"old": floats(1).reshape(1, 1)}, r"old has shape \[1, 1\], .* expected rank 1"),
        ({"table": floats(1)}, r"table has shape \[1\], .* expected rank 2"),
        ({"target_tokens": ints(1, 2).reshape(2, 1)}, "declared logprobs with rank 1"),
        ({"target_tokens": ints(1, 2, 3)}, "has 3 rows; expected 2"),
        ({"target_tokens": ints(1, 100)}, "token id 100"),
        ({"target_tokens": floats(1, 2)}, "expected int64"),
        ({"old": np.zeros(2**23 + 1, np.float32)}, "8388609 elements; a custom loss takes at most"),
    ],
)
def test_inputs_that_do_not_fit_a_custom_loss_are_refused(
    changes: dict[str, Any], complaint: str
) -> None:
    refused(custom_pass(**changes), complaint)


def test_a_custom_loss_without_an_input_is_refused() -> None:
    body = custom_pass()
    datum = Datum(body.data[0].tokens, {"target_tokens": ints(2, 3), "old": floats(1)})

    refused(replace(body, data=[datum]), r"data\[0\] lacks loss_fn_inputs scale, table, which")


def test_a_custom_loss_takes_no_other_config() -> None:
    refused(replace(custom_pass(), loss_fn_config={"beta": 1.0}), "has 'beta', which custom does")


def test_an_input_of_a_custom_loss_has_one_dtype_in_all_data() -> None:
    one, other = custom_pass().data[0], custom_pass(old=ints(1, 2)).data[0]

    refused(
        replace(custom_pass(), data=[one, other]),
        r"data\[1\].old has dtype int64; expected float32 like data\[0\]",
    )
