"""What a forward or forward_backward body must look like before it may share a microbatch."""

from __future__ import annotations

import numpy as np

from cyclora_core.custom_loss import check_datum
from cyclora_core.errors import ServerError, UserError
from cyclora_core.losses import CUSTOM, LossRule, check_values, full_config, loss_rule
from cyclora_core.operations import Datum, PassBody
from cyclora_core.payload import Array


def check_pass(body: PassBody, vocab_size: int, max_context_length: int) -> None:
    """Refuse a body that would fail, or poison its adapter, inside a shared microbatch.

    Raises:
        UserError: an unknown loss function or config key; a datum that is empty or too long, has a
            token outside of the vocabulary, lacks an input, has one that its loss function does not
            read, or one of another shape than its target_tokens, or that is not finite, or has clip
            thresholds that cross.
    """
    config = full_config(body.loss_fn, body.loss_fn_config)
    if (body.custom_loss is None) == (body.loss_fn == CUSTOM):
        raise ServerError(f"loss_fn {body.loss_fn!r} and an uploaded loss belong together")
    rule = loss_rule(body.loss_fn)
    for index, datum in enumerate(body.data):
        num_tokens = len(datum.tokens)
        if not 1 <= num_tokens <= max_context_length:
            raise UserError(
                f"datum {index} has {num_tokens} tokens; 1 to {max_context_length} are accepted"
            )
        _check_vocabulary(f"model_input of datum {index}", datum.tokens, vocab_size)
        if body.custom_loss is not None:
            check_datum(f"datum {index}", datum.loss_fn_inputs, body.custom_loss)
            _check_targets(index, datum, body.loss_fn, rule)
        else:
            _check_inputs(index, datum, body.loss_fn, rule)
            check_values(f"datum {index}", datum.loss_fn_inputs, config)
        targets = datum.loss_fn_inputs["target_tokens"]
        _check_vocabulary(f"target_tokens of datum {index}", targets, vocab_size)


def _check_inputs(index: int, datum: Datum, loss_fn: str, rule: LossRule) -> None:
    accepted = rule.inputs | rule.optional_inputs
    found = datum.loss_fn_inputs.keys()
    if missing := rule.inputs - found:
        raise UserError(f"datum {index} lacks {_listed(missing)}, which {loss_fn} needs")
    if unknown := found - accepted:
        raise UserError(
            f"datum {index} has {_listed(unknown)}, which {loss_fn} does not read; "
            f"it reads {_listed(accepted)}"
        )
    _check_targets(index, datum, loss_fn, rule)
    shape = datum.loss_fn_inputs["target_tokens"].shape
    for key, value in datum.loss_fn_inputs.items():
        if value.shape != shape:
            raise UserError(
                f"{key} of datum {index} has shape {value.shape}; target_tokens have {shape}"
            )
        if not np.isfinite(value).all():
            raise UserError(f"{key} of datum {index} holds a value that is not finite")


def _check_targets(index: int, datum: Datum, loss_fn: str, rule: LossRule) -> None:
    shape = datum.loss_fn_inputs["target_tokens"].shape
    num_tokens = len(datum.tokens)
    is_top_k = rule.takes_top_k and len(shape) == 2 and shape[1] > 0
    if shape != (num_tokens,) and not (is_top_k and shape[0] == num_tokens):
        top_k = f" or ({num_tokens}, K)" if rule.takes_top_k else ""
        raise UserError(
            f"target_tokens of datum {index} have shape {shape}; {loss_fn} needs ({num_tokens},)"
            f"{top_k}, one row per token of model_input"
        )


def _check_vocabulary(what: str, tokens: Array, vocab_size: int) -> None:
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        bad = tokens.min() if tokens.min() < 0 else tokens.max()
        raise UserError(f"{what} holds token {bad}; the vocabulary is 0 to {vocab_size - 1}")


def _listed(names: frozenset[str] | set[str]) -> str:
    return ", ".join(sorted(names))
