"""Runs a custom loss on one datum: step by step, bounded, with autograd over its logprobs alone.

Each datum is a run of its own on freshly allocated tensors, so its numbers depend neither on the
other data nor on where the operation was cut.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cyclora_core.custom_loss import CustomLoss
from cyclora_core.custom_loss_arguments import MAX_INTEGER
from cyclora_core.custom_loss_program import Step, read_program
from cyclora_core.errors import UserError
from cyclora_core.losses import Config
from cyclora_workers.custom_loss.arguments import described, has_ref, is_int, refs, resolve
from cyclora_workers.custom_loss.bounds import ElementLimit, TimeLimit
from cyclora_workers.custom_loss.functions import DTYPES, FUNCTIONS, Function
from cyclora_workers.custom_loss.sizes import num_elements
from cyclora_workers.losses import Inputs
from cyclora_workers.sequence_losses import DatumLoss

_MAX_REASON_CHARS = 200
_ALLOWED_DTYPES = frozenset(DTYPES.values())
_REFUSALS = (RuntimeError, IndexError, TypeError, ValueError, ArithmeticError)
"""What torch and Python raise for arguments that do not fit; torch's own out-of-memory is ours."""


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """A step with its function; ``has_refs`` tells whether an argument depends on the datum."""

    step: Step
    run: Function
    has_refs: Sequence[bool]


class CustomLossRun:
    """The loss of one operation, to be called once per datum."""

    def __init__(self, loss: CustomLoss, time_limit: TimeLimit | None = None) -> None:
        """Prepare the calls.

        Args:
            loss: As it was uploaded.
            time_limit: None where the time it takes must decide nothing, as in a replay.

        Raises:
            UserError: the graph is not acceptable.
        """
        self._program = read_program(loss)
        self._inputs = loss.inputs
        self._time_limit = time_limit
        self._calls = [
            _Call(step, FUNCTIONS[step.operation.name], [has_ref(a) for a in step.arguments])
            for step in self._program.steps
        ]

    def __call__(self, logprobs: Tensor, inputs: Inputs, config: Config) -> DatumLoss:
        """The loss of one datum; without grad mode the coefficients are zero.

        Shapes:
            logprobs: [N] or [N, K] fp32; as the coefficients.

        Raises:
            UserError: the loss cannot be computed, or is no finite scalar with a finite gradient.
        """
        if self._time_limit is None:
            return self._run(logprobs, inputs)
        self._time_limit.begin_datum()
        try:
            return self._run(logprobs, inputs)
        finally:
            self._time_limit.end_datum()

    def _run(self, logprobs: Tensor, inputs: Inputs) -> DatumLoss:
        leaf = _fresh(logprobs).requires_grad_(torch.is_grad_enabled())
        given = [leaf]
        for each in self._inputs[1:]:
            value = _fresh(inputs[each.name])
            given.append(value.reshape(()) if each.rank == 0 else value)
        values: dict[str, Any] = dict(zip(self._program.placeholders, given, strict=True))
        limit = ElementLimit()
        for call in self._calls:
            values[call.step.name] = self._call(call, values, limit)
        try:
            loss = _scalar(values[self._program.loss])
            coefficient = _gradient(loss, leaf)
        except UserError as error:
            raise UserError(f"custom loss {self._program.loss_name!r}: {error}") from None
        metrics = {
            key: self._metric(key, values[node]) for key, node in self._program.metrics.items()
        }
        return DatumLoss(loss.detach().double(), coefficient.to(logprobs.device), metrics)

    def _call(self, call: _Call, values: dict[str, Any], limit: ElementLimit) -> Any:
        step = call.step
        try:
            if self._time_limit is not None:
                self._time_limit.check()
            arguments = [
                resolve(parameter, argument, values, has_refs)
                for parameter, argument, has_refs in zip(
                    step.operation.parameters, step.arguments, call.has_refs, strict=True
                )
            ]
            limit.take(num_elements(step.operation.name, arguments))
            return _checked(call.run(*arguments))
        except UserError as error:
            reason = str(error)
        except _REFUSALS as error:
            reason = _reason(error)
        shapes = ", ".join(described(values[name]) for name in refs(step.arguments))
        raise UserError(
            f"custom loss {self._program.loss_name!r}: node {step.name!r} "
            f"({step.operation.wire_names[0]}) of {shapes or 'nothing'}: {reason}"
        )

    def _metric(self, key: str, value: Any) -> Tensor:
        if isinstance(value, Tensor) and value.numel() == 1:
            return value.detach().double().reshape(())
        if isinstance(value, int | float):
            return torch.tensor(float(value), dtype=torch.float64)
        raise UserError(
            f"custom loss {self._program.loss_name!r}: metric {key!r} is {described(value)}; "
            "expected one number"
        )


def _reason(error: Exception) -> str:
    """What a tenant may read of a refusal by torch or Python; want of memory is ours."""
    if "DefaultCPUAllocator" in str(error):
        raise error
    return (str(error).splitlines() or [""])[0][:_MAX_REASON_CHARS]


def _fresh(value: Tensor) -> Tensor:
    """A copy on the CPU in memory of its own, whose alignment is always the same."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise UserError(f"its loss is {described(value)}; expected a tensor")
    if value.ndim != 0 or not value.dtype.is_floating_point:
        raise UserError(f"its loss is {described(value)}; expected a float tensor of shape []")
    if not math.isfinite(value.item()):
        raise UserError(f"its loss is {value.item()}; expected a finite number")
    return value


def _gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    if not leaf.requires_grad:
        return torch.zeros_like(leaf)
    if not loss.requires_grad:
        raise UserError("its loss does not depend on logprobs, so there is no gradient")
    try:
        with _in_one_order():
            (gradient,) = torch.autograd.grad(loss, leaf)
    except RuntimeError as error:
        raise UserError(f"the gradient of its loss: {_reason(error)}") from None
    finite = torch.isfinite(gradient)
    if not bool(finite.all()):
        place = (~finite).nonzero()[0].tolist()
        raise UserError(
            f"the gradient of its loss at logprobs{place} is {gradient[tuple(place)].item()}; "
            "expected finite numbers: a log or sqrt at 0 has none, nor does one that where() drops"
        )
    return gradient.contiguous()


@contextmanager
def _in_one_order() -> Generator[None, None, None]:
    """Have sums over repeated indices formed in order, not as threads come by."""
    before = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned_only)


def _checked(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.dtype not in _ALLOWED_DTYPES:
            raise UserError(f"its result is {value.dtype}; expected one of {', '.join(DTYPES)}")
    elif is_int(value) and abs(value) > MAX_INTEGER:
        raise UserError(f"its result is an integer beyond the accepted {MAX_INTEGER}")
    return value
