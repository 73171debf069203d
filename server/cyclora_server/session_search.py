"""Which sessions a search is about, and what it shows of them: pure, one session at a time."""

from __future__ import annotations

from typing import Any

from cyclora_core.records import EXPIRED, Session
from cyclora_server import projects
from cyclora_server.auth import user_urn
from cyclora_server.wire import bodies


def matches(session: Session, search: bodies.SearchSessions) -> bool:
    """Whether every filter of the search lets a session of the caller's tenant pass."""
    metadata = session.user_metadata
    return (
        _matches_name(session, search)
        and (search.project_ids is None or projects.of_session(session) in search.project_ids)
        and all(metadata.get(name) == value for name, value in search.user_metadata.items())
        and _matches_owner(session, search.owner)
        and (search.statuses is None or any(_has(session, each) for each in search.statuses))
    )


def _matches_name(session: Session, search: bodies.SearchSessions) -> bool:
    """By id or by display name; where both are given, one of them is enough."""
    if search.session_id is None and search.display_name is None:
        return True
    if search.session_id is not None and search.session_id == session.session_id:
        return True
    if search.display_name is None or session.display_name is None:
        return False
    name = session.display_name.casefold()
    return all(word in name for word in search.display_name.casefold().split())


def _matches_owner(session: Session, owner: bodies.SearchOwner) -> bool:
    return owner.type != "user" or user_urn(session.tenant_id) in owner.owner_urns


def _has(session: Session, query: bodies.StatusQuery) -> bool:
    if status(session)["type"] != query.type:
        return False
    return query.reasons is None or session.finished_reason in query.reasons


def status(session: Session) -> dict[str, Any]:
    """How a session stands, as the SDK reads it.

    One whose client is gone is ``cancelled``, with the reason in words: ``failed`` would have to
    name the request, run or sampling session that failed it, and there is none.
    """
    if session.finished_reason is None:
        return {"type": "active"}
    if session.finished_reason == EXPIRED:
        found: dict[str, Any] = {"type": "cancelled"}
    else:
        found = {"type": "client_finished", "reason": {"type": session.finished_reason}}
    if session.finished_detail is not None:
        found["detail"] = session.finished_detail
    return found
