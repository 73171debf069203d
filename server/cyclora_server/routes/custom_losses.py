"""Losses that tenants upload; see docs/custom-losses.md for what they may consist of."""

from __future__ import annotations

from fastapi import APIRouter, Request

from cyclora_core import ids
from cyclora_core.custom_loss import MAX_UPLOAD_BYTES, CustomLoss, LossInput, Node
from cyclora_core.custom_loss_program import read_program
from cyclora_core.errors import Gone, PayloadTooLarge, UserError
from cyclora_core.store.custom_losses import (
    MAX_BYTES_PER_SESSION,
    MAX_BYTES_PER_TENANT,
    MAX_LOSSES_PER_SESSION,
    MAX_LOSSES_PER_TENANT,
    CreateLossOutcome,
)
from cyclora_server import access
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.body import documented, offload, read_body
from cyclora_server.services import Json, ServicesDep
from cyclora_server.submission import promise
from cyclora_server.wire import bodies
from cyclora_server.wire.reading import parse, read_json

router = APIRouter(prefix="/api/v1", tags=["training"], dependencies=needs_key)


@router.post(
    "/create_custom_loss",
    summary="Check and store a traced loss function for the session",
    openapi_extra=documented(bodies.CreateCustomLoss),
)
async def create_custom_loss(
    request: Request, identity: IdentityDep, services: ServicesDep
) -> Json:
    # Refused with a 4xx: no other request waits behind the number of a loss.
    raw = await read_body(request, services)
    if len(raw) > MAX_UPLOAD_BYTES:
        raise PayloadTooLarge(
            f"the custom loss takes {len(raw)} bytes; at most {MAX_UPLOAD_BYTES} are accepted"
        )
    body = parse(bodies.CreateCustomLoss, read_json(raw))
    session = await access.owned_session(services, identity, body.session_id)
    loss = _custom_loss(body)
    await offload(len(raw), read_program, loss)
    number = body.custom_loss_seq_id
    with services.capacity.admitted(len(raw)):
        outcome = await services.store.custom_losses.create(
            identity.tenant_id, session.session_id, number, loss
        )
    _check(outcome, session.session_id, number)
    return promise(ids.loss_id(session.session_id, number))


def _custom_loss(body: bodies.CreateCustomLoss) -> CustomLoss:
    return CustomLoss(
        body.name,
        [LossInput(each.name, each.rank) for each in body.inputs],
        [Node(n.op, n.name, n.target, n.args, n.kwargs) for n in body.graph.nodes],
    )


def _check(outcome: CreateLossOutcome, session_id: str, number: int) -> None:
    match outcome:
        case CreateLossOutcome.CONFLICT:
            raise UserError(
                f"custom_loss_seq_id {number} of session {session_id} was used before for another "
                "loss; a retry must send the same one, a new loss the next number"
            )
        case CreateLossOutcome.FINISHED:
            raise Gone(f"session {session_id} was finished; open a new one")
        case CreateLossOutcome.SESSION_FULL:
            raise UserError(
                f"session {session_id} has no room for another custom loss; it may have "
                f"{MAX_LOSSES_PER_SESSION} of {MAX_BYTES_PER_SESSION} bytes together, until it ends"
            )
        case CreateLossOutcome.TENANT_FULL:
            raise UserError(
                "there is no room for another custom loss; the sessions of a tenant may have "
                f"{MAX_LOSSES_PER_TENANT} of {MAX_BYTES_PER_TENANT} bytes together: finish those "
                "that are done"
            )
        case CreateLossOutcome.ACCEPTED | CreateLossOutcome.DUPLICATE:
            pass
