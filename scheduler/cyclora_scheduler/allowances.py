"""What may start now: work of tenants beyond their rate waits (pure).

Planning sees only what is left, so nobody waits for the company of what does not run, and a tenant
that waits for its rate earns no credit meanwhile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from cyclora_core.types import PendingOperation
from cyclora_core.waiting import Waiting, WaitingModel


def within_allowances(waiting: Waiting) -> Waiting:
    """All that waits, without what is beyond the allowances of its tenants.

    The oldest comes first, whether pass or sample. While anything is left of an allowance, the next
    one may start however large it is, and its tenant owes the rest: work larger than a minute's
    tokens runs too. A pass of which a part ran goes on: it was charged when it started. What costs
    nothing, such as a step or a save, waits only behind passes of its model.
    """
    if not waiting.allowances:
        return waiting
    left = dict(waiting.allowances)
    starting = [each for model in waiting.models for each in _starting(model)]
    starting += [sample.operation for sample in waiting.samples]
    beyond: set[str] = set()
    for operation in sorted(starting, key=lambda o: (o.submitted_at_ms, o.request_id)):
        tenant_id = operation.tenant_id
        if tenant_id not in left:
            continue
        if left[tenant_id] > 0:
            left[tenant_id] -= operation.num_tokens
        else:
            beyond.add(operation.request_id)
    models = [
        dataclasses.replace(model, operations=head)
        for model in waiting.models
        if (head := _before(model.operations, beyond))
    ]
    samples = [each for each in waiting.samples if each.operation.request_id not in beyond]
    return dataclasses.replace(waiting, models=models, samples=samples)


def _starting(model: WaitingModel) -> Iterator[PendingOperation]:
    """The passes of a model that its next cycle could start: those before a step behind a pass."""
    has_pass = False
    for operation in model.operations:
        if operation.kind.is_pass:
            has_pass = True
            if not (operation.seq_id == model.partial_seq_id and model.partial_stop > 0):
                yield operation
        elif has_pass:
            return


def _before(operations: Sequence[PendingOperation], beyond: set[str]) -> Sequence[PendingOperation]:
    """The operations in front of the first one that may not start."""
    for index, operation in enumerate(operations):
        if operation.request_id in beyond:
            return operations[:index]
    return operations
