"""Which scopes open which route: all of it in one table.

A key opens a route with any one of the scopes in its row. Routes below ``/admin`` need ``admin``,
and no other scope opens them. A route without a row opens for nobody, which a test finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cyclora_core.accounts import Scope
from cyclora_core.errors import Forbidden, ServerError

ADMIN_PREFIX = "/admin/"


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call a route."""

    scopes: tuple[Scope, ...]
    is_of_tenant: bool = False
    """Whether it shows all that the tenant has, which is not for a key of one project."""


_TRAIN = Rule((Scope.TRAIN,))
_SAMPLE = Rule((Scope.SAMPLE,))
_READ = Rule((Scope.READ,))
_ADMIN = Rule((Scope.ADMIN,))
_ANY = Rule(tuple(Scope))
"""About the key itself, or about what the server serves."""
_CLIENT = Rule((Scope.TRAIN, Scope.SAMPLE, Scope.READ))
"""What every client of the SDK calls, whatever it is for."""
_RUN = Rule((Scope.TRAIN, Scope.SAMPLE))
"""Sampling with the SDK: training loops sample from what they have trained."""

RULES: Mapping[str, Rule] = {
    "POST /api/v1/client/config": _ANY,
    "POST /api/v1/client/dynamic_config": _ANY,
    "GET /api/v1/get_server_capabilities": _ANY,
    "POST /api/v1/telemetry": _ANY,
    "POST /api/v1/auth/token": _ANY,
    "GET /api/v1/auth/apikey/me": _ANY,
    "DELETE /api/v1/auth/apikey/me": _ANY,
    "GET /api/v1/tokenizers/{base_model:path}": _ANY,
    "GET /api/v1/tokenizers/{base_model:path}/files/{name}": _ANY,
    # Sessions
    "POST /api/v1/create_session": _CLIENT,
    "POST /api/v1/session_heartbeat": _CLIENT,
    "POST /api/v1/sessions/{session_id}/finish": _CLIENT,
    "PUT /api/v1/sessions/{session_id}/project": _TRAIN,
    "GET /api/v1/sessions": _READ,
    "GET /api/v1/sessions/{session_id}": _READ,
    "POST /api/v1/sessions/search": _READ,
    "GET /api/v1/sessions/{session_id}/trace_export": _READ,
    # Training
    "POST /api/v1/create_model": _TRAIN,
    "POST /api/v1/get_info": _CLIENT,
    "POST /api/v1/forward": _TRAIN,
    "POST /api/v1/forward_backward": _TRAIN,
    "POST /api/v1/optim_step": _TRAIN,
    "POST /api/v1/unload_model": _TRAIN,
    "POST /api/v1/create_custom_loss": _TRAIN,
    "POST /api/v1/save_weights": _TRAIN,
    "POST /api/v1/save_weights_for_sampler": _TRAIN,
    "POST /api/v1/save_weights_external": _TRAIN,
    "POST /api/v1/load_weights": _TRAIN,
    "POST /api/v1/copy_weights": _TRAIN,
    "POST /api/v1/adapters": _TRAIN,
    "POST /api/v1/weights_info": _CLIENT,
    # Sampling
    "POST /api/v1/create_sampling_session": _RUN,
    "POST /api/v1/join_sampling_session": _RUN,
    "POST /api/v1/asample": _RUN,
    "POST /api/v1/cancel_future": _RUN,
    "GET /api/v1/samplers/{sampling_session_id}": _CLIENT,
    "POST /api/v1/retrieve_future": _RUN,
    "POST /api/v1/retrieve_futures": _RUN,
    "POST /v1/chat/completions": _SAMPLE,
    "POST /v1/completions": _SAMPLE,
    "GET /v1/models": _SAMPLE,
    "GET /v1/models/{name:path}": _SAMPLE,
    "POST /oai/api/v1/chat/completions": _SAMPLE,
    "POST /oai/api/v1/completions": _SAMPLE,
    "GET /oai/api/v1/models": _SAMPLE,
    "GET /oai/api/v1/models/{name:path}": _SAMPLE,
    # What there is
    "GET /api/v1/training_runs": _READ,
    "GET /api/v1/training_runs/{run}": _CLIENT,
    "GET /api/v1/training_runs/{run}/checkpoints": _READ,
    "GET /api/v1/checkpoints": _READ,
    "DELETE /api/v1/training_runs/{run}/checkpoints/{kind}/{name}": _TRAIN,
    "PUT /api/v1/training_runs/{run}/checkpoints/{kind}/{name}/ttl": _TRAIN,
    "POST /api/v1/training_runs/{run}/checkpoints/{kind}/{name}/publish": _TRAIN,
    "DELETE /api/v1/training_runs/{run}/checkpoints/{kind}/{name}/publish": _TRAIN,
    "GET /api/v1/training_runs/{run}/checkpoints/{kind}/{name}/archive": _READ,
    "GET /api/v1/training_runs/{run}/checkpoints/{kind}/{name}/external_weights_urls": _READ,
    "GET /api/v1/quotas": _CLIENT,
    "GET /api/v1/billing/usage/events": Rule((Scope.READ,), is_of_tenant=True),
    "GET /api/v1/billing/usage/checkpoints/current": Rule((Scope.READ,), is_of_tenant=True),
    "GET /api/v1/usage": Rule((Scope.READ,), is_of_tenant=True),
    "GET /api/v1/audit": Rule((Scope.READ, Scope.ADMIN), is_of_tenant=True),
}
"""By method and path, for every route that takes a key."""


def rule_of(method: str, path: str) -> Rule:
    """The rule of a route, by its path as it was declared.

    Raises:
        ServerError: nobody has said who may call it.
    """
    if path.startswith(ADMIN_PREFIX):
        return _ADMIN
    rule = RULES.get(f"{method} {path}")
    if rule is None:
        raise ServerError(f"{method} {path} has no row in the table of scopes")
    return rule


def check(rule: Rule, scopes: frozenset[Scope], project_id: str | None) -> None:
    """Let only keys pass that may call the route.

    Raises:
        Forbidden: the key has no scope that opens the route, or is that of one project.
    """
    if not scopes.intersection(rule.scopes):
        needed = " or ".join(rule.scopes)
        raise Forbidden(
            f"this needs an API key with the scope {needed}; the one that was sent has: "
            f"{', '.join(sorted(scopes))}"
        )
    if rule.is_of_tenant and project_id is not None:
        raise Forbidden(
            f"this is about all that the tenant has; the API key is for project {project_id!r} only"
        )
