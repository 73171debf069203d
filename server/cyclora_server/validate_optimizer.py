"""Which optimizer a model gets, and what a step of it may ask for: pure checks.

The optimizer is fixed when a model is made: its state is worth nothing to another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cyclora_core.errors import UserError
from cyclora_core.operations import DimuonStepBody, OptimStepBody
from cyclora_core.optimizers import OptimizerType
from cyclora_core.records import Checkpoint
from cyclora_core.types import ModelRecord
from cyclora_server.wire import bodies
from cyclora_server.wire.reading import parse

MAX_PARAMETER = 1e18
"""Bound on each number of a step: products of two still are finite in fp32."""

_CONFIGS: Mapping[OptimizerType, Mapping[str, Any]] = {
    OptimizerType.ADAMW: {},
    OptimizerType.DIMUON: {"version": 1},
}
_MAX_SHOWN = 60


def config_json(optimizer_type: OptimizerType) -> dict[str, Any]:
    """The ``optimizer_config`` that clients are told."""
    return {"type": optimizer_type, **_CONFIGS[optimizer_type]}


def optimizer_type(config: bodies.OptimizerConfig) -> OptimizerType:
    """The optimizer that an ``optimizer_config`` selects.

    Raises:
        UserError: it is unknown, or its config has a key or a version that is.
    """
    found = _by_name(config.type)
    accepted = _CONFIGS[found]
    for name, value in (config.model_extra or {}).items():
        if name not in accepted:
            raise UserError(
                f"optimizer_config has {name[:_MAX_SHOWN]!r}, which {found} does not take here; "
                f"expected {_listed(['type', *accepted])}"
            )
        if value != accepted[name] or isinstance(value, bool):
            raise UserError(
                f"{name} of optimizer_config is {str(value)[:_MAX_SHOWN]}; expected "
                f"{accepted[name]} for {found}"
            )
    return found


def _by_name(name: Any) -> OptimizerType:
    if name not in list(OptimizerType):
        raise UserError(
            f"optimizer type {str(name)[:_MAX_SHOWN]!r} is not supported; expected "
            f"{' or '.join(OptimizerType)}"
        )
    return OptimizerType(name)


def optimizer_of_new_model(
    config: bodies.OptimizerConfig | None, checkpoint: Checkpoint, with_optimizer: bool
) -> OptimizerType:
    """The optimizer of a model that begins with a load.

    Raises:
        UserError: ``config`` contradicts the optimizer whose state is to be loaded.
    """
    if not with_optimizer:
        return optimizer_type(config or bodies.OptimizerConfig())
    if config is not None and optimizer_type(config) is not checkpoint.optimizer_type:
        raise UserError(
            f"optimizer_config selects {config.type}; the optimizer state of {checkpoint.path!r} "
            f"is of {checkpoint.optimizer_type}: leave optimizer_config out, or set optimizer false"
        )
    return checkpoint.optimizer_type


def check_load(
    model: ModelRecord,
    config: bodies.OptimizerConfig | None,
    checkpoint: Checkpoint,
    with_optimizer: bool,
) -> None:
    """Refuse a load that would give an existing model another optimizer, or that one's state."""
    if config is not None and optimizer_type(config) is not model.optimizer_type:
        raise UserError(
            f"optimizer_config selects {config.type}; the model has {model.optimizer_type}, which "
            "is fixed: create a new model from the checkpoint"
        )
    if with_optimizer and checkpoint.optimizer_type is not model.optimizer_type:
        raise UserError(
            f"the optimizer state of checkpoint {checkpoint.path!r} is of "
            f"{checkpoint.optimizer_type}; the model has {model.optimizer_type}: set optimizer "
            "false, or create a new model from the checkpoint"
        )


def optim_step(
    body: bodies.OptimStep, optimizer_type: OptimizerType
) -> OptimStepBody | DimuonStepBody:
    """The optimizer step to run on a model that has this optimizer.

    Raises:
        UserError: the parameters are another optimizer's, or outside their range.
    """
    given = body.optimizer_params
    if given is not None and body.adam_params is not None:
        raise UserError("adam_params and optimizer_params were both sent; a step takes one of them")
    is_adamw = given is None or _by_name(given.get("type", "adamw")) is OptimizerType.ADAMW
    if optimizer_type is OptimizerType.DIMUON:
        if is_adamw or given is None:
            raise UserError(
                "the model was created with dimuon, which does not take the parameters of adamw; "
                "expected DimuonParams, in optimizer_params with type dimuon"
            )
        return _dimuon_step(given)
    if not is_adamw:
        raise UserError(
            "the model was created with adamw, which does not take the parameters of dimuon; "
            "expected AdamParams, in adam_params"
        )
    return _adamw_step(body.adam_params or parse(bodies.AdamParams, given or {}))


def _adamw_step(params: bodies.AdamParams) -> OptimStepBody:
    for name in ("learning_rate", "eps", "weight_decay", "grad_clip_norm"):
        check_range(name, getattr(params, name), 0.0, MAX_PARAMETER)
    for name in ("beta1", "beta2"):
        check_range(name, getattr(params, name), 0.0, 1.0)
    return OptimStepBody(**params.model_dump())


def _dimuon_step(given: Mapping[str, Any]) -> DimuonStepBody:
    known = bodies.DimuonParams.model_fields.keys() | {"type"}
    for name in given:
        if name not in known and given[name] is not None:
            raise UserError(
                f"optimizer_params has {name[:_MAX_SHOWN]!r}, which dimuon does not take here; "
                f"expected {_listed(known)}"
            )
    params = parse(bodies.DimuonParams, given)
    check_range("learning_rate", params.learning_rate, 0.0, MAX_PARAMETER)
    check_range("beta1", params.beta1, 0.0, 1.0)
    check_range("grad_clip_norm", params.grad_clip_norm, -MAX_PARAMETER, MAX_PARAMETER)
    # Of this optimizer alone the SDK says that negative values switch clipping off, as 0 does.
    return DimuonStepBody(params.learning_rate, params.beta1, max(params.grad_clip_norm, 0.0))


def check_range(name: str, value: float, low: float, below: float) -> None:
    """Refuse a value outside [low, below); NaN is outside of everything."""
    if not low <= value < below:
        bound = "a finite number" if below == math.inf else f"less than {below:g}"
        raise UserError(f"{name} is {value}; expected at least {low:g} and {bound}")


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))
