"""What a forward or forward_backward may consist of: pure checks on decoded data.

Every refusal names what was wrong, the offending value, and what would be accepted. The checks are
complete on purpose: data that passed here and still cannot run would fail inside a cycle that other
tenants share.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cyclora_core.custom_loss import CustomLoss, check_datum
from cyclora_core.errors import UserError
from cyclora_core.losses import LossRule, check_values, full_config, loss_rule
from cyclora_core.operations import Datum, PassBody
from cyclora_core.payload import Array
from cyclora_core.types import BaseModelInfo

MAX_TARGETS_PER_POSITION = 256
"""K of top-K targets [N, K]; each costs a logprob per position."""


def check_pass(body: PassBody, base: BaseModelInfo) -> None:
    """Refuse a pass that could not run.

    Raises:
        UserError: with the first thing that is wrong.
    """
    rule = loss_rule(body.loss_fn)
    config = full_config(body.loss_fn, body.loss_fn_config)
    if not body.data:
        raise UserError("data is empty; expected at least one datum")
    for i, datum in enumerate(body.data):
        where = f"data[{i}]"
        _check_model_input(where, datum, base)
        if body.custom_loss is None:
            _check_inputs(where, datum, body.loss_fn, rule)
        else:
            check_datum(where, datum.loss_fn_inputs, body.custom_loss)
        targets = datum.loss_fn_inputs["target_tokens"]
        _check_targets(f"{where}.target_tokens", targets, datum.tokens.size, body.loss_fn, rule)
        check_tokens(f"{where}.target_tokens", targets, base.vocab_size)
        if body.custom_loss is None:
            _check_like_targets(where, datum)
            check_values(where, datum.loss_fn_inputs, config)
    if body.custom_loss is not None:
        _check_one_dtype(body)


def with_loss(body: PassBody, loss: CustomLoss) -> PassBody:
    """A pass with the uploaded loss that it names, and without the inputs which that leaves unread.

    The SDK sends all that a datum has; other losses refuse what they do not read, since it is
    likely a mistake there.
    """
    data = [
        Datum(each.tokens, {k: v for k, v in each.loss_fn_inputs.items() if k in loss.input_keys})
        for each in body.data
    ]
    return replace(body, data=data, custom_loss=loss)


def check_tokens(where: str, tokens: Array, vocab_size: int) -> None:
    """Refuse token ids that the base model has no embedding for."""
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
        bad = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
        raise UserError(f"{where} has token id {bad}; expected 0..{vocab_size - 1}")


def _check_model_input(where: str, datum: Datum, base: BaseModelInfo) -> None:
    num_tokens = datum.tokens.size
    if num_tokens == 0:
        raise UserError(f"{where} has an empty model_input; expected at least one token")
    if num_tokens > base.max_context_length:
        raise UserError(
            f"{where} has {num_tokens} tokens; {base.name} takes at most {base.max_context_length}"
        )
    check_tokens(f"{where}.model_input", datum.tokens, base.vocab_size)


def _check_inputs(where: str, datum: Datum, loss_fn: str, rule: LossRule) -> None:
    missing = rule.inputs - datum.loss_fn_inputs.keys()
    if missing:
        raise UserError(
            f"{where} lacks loss_fn_inputs {_names(missing)}; {loss_fn} needs {_names(rule.inputs)}"
        )
    unknown = datum.loss_fn_inputs.keys() - rule.inputs - rule.optional_inputs
    if unknown:
        accepted = _names(rule.inputs | rule.optional_inputs)
        raise UserError(
            f"{where} has loss_fn_inputs {_names(unknown)}, which {loss_fn} does not take; "
            f"expected {accepted}"
        )


def _check_one_dtype(body: PassBody) -> None:
    """Data are stored end to end: integers beside floats would become floats."""
    first = body.data[0].loss_fn_inputs
    for i, datum in enumerate(body.data):
        for name, values in datum.loss_fn_inputs.items():
            if values.dtype != first[name].dtype:
                raise UserError(
                    f"data[{i}].{name} has dtype {values.dtype.name}; expected "
                    f"{first[name].dtype.name} like data[0]"
                )


def _check_like_targets(where: str, datum: Datum) -> None:
    shape = datum.loss_fn_inputs["target_tokens"].shape
    for name, values in datum.loss_fn_inputs.items():
        if name != "target_tokens":
            _check_floats(f"{where}.{name}", values, shape)


def _check_targets(
    where: str, targets: Array, num_tokens: int, loss_fn: str, rule: LossRule
) -> None:
    if targets.dtype.kind != "i":
        raise UserError(f"{where} has dtype {targets.dtype.name}; expected int64")
    if targets.ndim == 2 and not rule.takes_top_k:
        raise UserError(f"{where} has shape {targets.shape}; {loss_fn} takes [{num_tokens}] only")
    if targets.shape[0] != num_tokens:
        raise UserError(
            f"{where} has {targets.shape[0]} rows; expected {num_tokens}, one per token of "
            "model_input"
        )
    if targets.ndim == 2 and not 1 <= targets.shape[1] <= MAX_TARGETS_PER_POSITION:
        raise UserError(
            f"{where} has {targets.shape[1]} targets per position; expected 1 to "
            f"{MAX_TARGETS_PER_POSITION}"
        )


def _check_floats(where: str, values: Array, shape: tuple[int, ...]) -> None:
    if values.dtype.kind != "f":
        raise UserError(f"{where} has dtype {values.dtype.name}; expected float32")
    if values.shape != shape:
        raise UserError(
            f"{where} has shape {list(values.shape)}; expected {list(shape)} like target_tokens"
        )
    finite = np.isfinite(values)
    if not finite.all():
        bad = values[~finite].flat[0]
        raise UserError(f"{where} holds {bad}; expected finite numbers")


def _names(names: frozenset[str] | set[str]) -> str:
    return ", ".join(sorted(name[:60] for name in names)) or "nothing"
