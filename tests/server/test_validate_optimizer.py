from __future__ import annotations

import re
from typing import Any

import pytest
from tinker import types
from tinker.types.optim_step_request import OptimStepRequest

from cyclora_core.errors import UserError
from cyclora_core.operations import DimuonStepBody, OptimStepBody
from cyclora_core.optimizers import OptimizerType
from cyclora_server import validate_optimizer
from cyclora_server.wire import bodies
from cyclora_server.wire.reading import parse
from server.doubles.builders import MODEL, checkpoint, model_record

ADAMW, DIMUON = OptimizerType


def step(optimizer_type: OptimizerType = ADAMW, **params: Any) -> OptimStepBody | DimuonStepBody:
    value = {"model_id": MODEL, "seq_id": 1, **params}
    return validate_optimizer.optim_step(parse(bodies.OptimStep, value), optimizer_type)


def dimuon_step(**params: Any) -> OptimStepBody | DimuonStepBody:
    given = {"type": "dimuon", "learning_rate": 0.1, **params}
    return step(DIMUON, optimizer_params=given)


def config(**fields: Any) -> bodies.OptimizerConfig:
    return parse(bodies.OptimizerConfig, fields)


def sent_by_the_sdk(params: types.AdamParams | types.DimuonParams) -> dict[str, Any]:
    request = OptimStepRequest(optim_params=params, model_id=MODEL, seq_id=1)
    return request.model_dump(mode="json", exclude_none=True)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ADAMW),
        ({"type": "adamw"}, ADAMW),
        ({"type": "dimuon"}, DIMUON),
        ({"type": "dimuon", "version": 1}, DIMUON),
        ({"type": "dimuon", "version": None}, DIMUON),
    ],
)
def test_an_optimizer_is_chosen_by_its_type(
    fields: dict[str, Any], expected: OptimizerType
) -> None:
    assert validate_optimizer.optimizer_type(config(**fields)) is expected


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"type": "sgd"}, "type 'sgd' is not supported; expected adamw or dimuon"),
        ({"type": "dimuon", "version": 2}, "version of optimizer_config is 2; expected 1"),
        ({"type": "dimuon", "version": True}, "version of optimizer_config is True"),
        ({"type": "adamw", "version": 1}, "'version', which adamw does not take"),
        ({"type": "dimuon", "damping": 0.1}, "'damping', which dimuon does not take .* version"),
    ],
)
def test_another_optimizer_or_key_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        validate_optimizer.optimizer_type(config(**fields))


@pytest.mark.parametrize("optimizer_type", OptimizerType)
def test_the_config_that_clients_are_told_is_one_they_may_send(
    optimizer_type: OptimizerType,
) -> None:
    told = config(**validate_optimizer.config_json(optimizer_type))

    assert validate_optimizer.optimizer_type(told) is optimizer_type


def test_a_new_model_has_the_optimizer_of_its_state_or_the_one_it_asks_for() -> None:
    of_dimuon = checkpoint(optimizer_type=DIMUON)
    chosen = validate_optimizer.optimizer_of_new_model

    assert chosen(None, of_dimuon, True) is DIMUON
    assert chosen(config(type="dimuon"), of_dimuon, True) is DIMUON
    assert chosen(None, of_dimuon, False) is ADAMW
    assert chosen(config(type="dimuon"), checkpoint(), False) is DIMUON
    with pytest.raises(UserError, match=r"selects adamw; the optimizer state .* is of dimuon"):
        chosen(config(type="adamw"), of_dimuon, True)


def test_a_load_does_not_change_a_models_optimizer() -> None:
    model = model_record()
    check = validate_optimizer.check_load

    check(model, None, checkpoint(optimizer_type=DIMUON), False)
    check(model, config(type="adamw"), checkpoint(), True)
    with pytest.raises(UserError, match="is of dimuon; the model has adamw: set optimizer false"):
        check(model, None, checkpoint(optimizer_type=DIMUON), True)
    with pytest.raises(UserError, match="selects dimuon; the model has adamw, which is fixed"):
        check(model, config(type="dimuon"), checkpoint(), False)


def test_an_optimizer_step_has_the_sdks_defaults() -> None:
    assert step(adam_params={}) == step() == OptimStepBody()
    assert dimuon_step() == DimuonStepBody(0.1)


@pytest.mark.parametrize("params", [types.AdamParams(), types.DimuonParams(learning_rate=0.1)])
def test_what_the_sdk_sends_is_a_step_of_its_optimizer_alone(
    params: types.AdamParams | types.DimuonParams,
) -> None:
    mine, other = (ADAMW, DIMUON) if isinstance(params, types.AdamParams) else (DIMUON, ADAMW)
    sent = sent_by_the_sdk(params)

    assert step(mine, **sent).learning_rate == params.learning_rate
    with pytest.raises(UserError, match=f"created with {other}, .* parameters of {mine}; expected"):
        step(other, **sent)


def test_a_step_of_adamw_by_its_name_is_accepted() -> None:
    assert step(optimizer_params={"type": "adamw", "beta1": 0.5}) == OptimStepBody(beta1=0.5)


def test_a_step_has_one_set_of_parameters() -> None:
    with pytest.raises(UserError, match="both sent"):
        step(adam_params={}, optimizer_params={"type": "adamw"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1e-9),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", 1e300),
        ("beta1", 1.0),
        ("beta1", -0.1),
        ("beta2", 1.0),
        ("beta2", float("nan")),
        ("eps", -1e-9),
        ("weight_decay", -0.1),
        ("grad_clip_norm", -0.1),
        ("grad_clip_norm", float("nan")),
    ],
)
def test_a_parameter_of_adamw_outside_its_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=re.escape(f"{name} is {value}; expected at least 0 and")):
        step(adam_params={name: value})


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
        ({"learning_rate": None}, "learning_rate is null"),
        ({"beta1": 1.0}, "beta1 is 1.0"),
        ({"grad_clip_norm": float("inf")}, "grad_clip_norm is inf"),
        ({"damping": 0.1}, "'damping', which dimuon does not take .* beta1, grad_clip_norm"),
        ({"rank_lr_correction_exponent": 0.5}, "'rank_lr_correction_exponent'"),
        ({"weight_decay": 0.0}, "'weight_decay'"),
    ],
)
def test_a_parameter_of_dimuon_that_does_not_act_is_refused(
    params: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        dimuon_step(**params)


def test_dimuon_has_no_default_for_its_learning_rate() -> None:
    with pytest.raises(UserError, match="learning_rate"):
        step(DIMUON, optimizer_params={"type": "dimuon"})


@pytest.mark.parametrize("clip", [0.0, -1.0])
def test_clipping_of_dimuon_is_off_at_zero_and_below(clip: float) -> None:
    assert dimuon_step(grad_clip_norm=clip) == DimuonStepBody(0.1, grad_clip_norm=0.0)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_the_sdk_sends_as_null_is_not_taken_for_the_default(value: float) -> None:
    """The SDK's JSON has no NaN and no infinity; it writes both as null."""
    request = OptimStepRequest(
        optim_params=types.AdamParams(learning_rate=value), model_id=MODEL, seq_id=1
    )
    sent = request.model_dump(mode="json")

    with pytest.raises(UserError, match="learning_rate is null"):
        step(adam_params=sent["adam_params"])
