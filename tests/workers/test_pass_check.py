"""Bodies that must not get into a microbatch which others share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cyclora_core.errors import UserError
from cyclora_core.operations import Datum, PassBody
from cyclora_workers.pass_check import check_pass


def body(loss_fn: str = "cross_entropy", tokens: Any = (1, 2, 3), **changes: Any) -> PassBody:
    """A good body with some inputs replaced, or taken away with None."""
    length = len(tokens)
    inputs: dict[str, Any] = {"target_tokens": np.arange(length)}
    if loss_fn == "cross_entropy":
        inputs["weights"] = np.ones(length, np.float32)
    else:
        inputs |= {"logprobs": np.zeros(length), "advantages": np.zeros(length)}
    inputs |= {key: value if value is None else np.asarray(value) for key, value in changes.items()}
    given = {key: value for key, value in inputs.items() if value is not None}
    return PassBody(loss_fn, {}, [Datum(np.asarray(tokens, np.int32), given)])


def check(checked: PassBody) -> None:
    check_pass(checked, vocab_size=10, max_context_length=8)


@pytest.mark.parametrize(
    "good",
    [
        body(),
        body("ppo"),
        body("cispo", clip_high_threshold=[2.0, 2.0, 2.0]),
        body(tokens=[9]),
        body(tokens=range(8)),
        body(target_tokens=np.zeros((3, 4), np.int64), weights=np.ones((3, 4))),
        PassBody("dro", {"beta": 0.1}, []),
    ],
)
def test_a_good_body_passes(good: PassBody) -> None:
    check(good)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (body("hinge"), "loss_fn 'hinge' is unknown"),
        (PassBody("dro", {"gamma": 0.1}, []), "has 'gamma', which dro does not take"),
        (body(tokens=[]), "datum 0 has 0 tokens; 1 to 8"),
        (body(tokens=[1] * 9), "datum 0 has 9 tokens; 1 to 8"),
        (
            body(tokens=[1, 10, 2]),
            "model_input of datum 0 holds token 10; the vocabulary is 0 to 9",
        ),
        (body(target_tokens=[1, -100, 2]), "target_tokens of datum 0 holds token -100"),
        (body(weights=None), "datum 0 lacks weights, which cross_entropy needs"),
        (body(target_tokens=None), "lacks target_tokens"),
        (body(advantages=[1.0, 1.0, 1.0]), "has advantages, which cross_entropy does not read"),
        (body("dro", clip_low_threshold=[1.0, 1.0, 1.0]), "dro does not read"),
        (body(target_tokens=[1, 2]), r"have shape \(2,\); cross_entropy needs \(3,\) or \(3, K\)"),
        (body(target_tokens=np.zeros((3, 0), np.int64)), r"have shape \(3, 0\)"),
        (body("ppo", target_tokens=np.zeros((3, 1), np.int64)), r"ppo needs \(3,\), one row"),
        (body(weights=[1.0, 2.0]), r"weights of datum 0 has shape \(2,\)"),
        (body(weights=[1.0, float("nan"), 0.0]), "weights of datum 0 holds a value that is not"),
        (
            body("ppo", clip_low_threshold=[0.8, 0.8, 1.3]),
            "datum 0 at token 2: clip_low_threshold 1.3 is",
        ),
        (body("ppo", logprobs=[0.0, -np.inf, 0.0]), "logprobs of datum 0 holds a value that is"),
    ],
)
def test_a_bad_body_is_refused_with_what_is_wrong(bad: PassBody, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(bad)
