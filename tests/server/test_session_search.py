from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pydantic import TypeAdapter
from tinker.types.session_status import SessionStatus

from cyclora_core.records import EXPIRED, Session
from cyclora_server import session_search
from cyclora_server.wire import bodies
from server.doubles.builders import SESSION, STRANGER, TENANT

NIGHTLY = Session(
    SESSION,
    TENANT,
    1000,
    1000,
    display_name="Nightly eval, Straße 7",
    project_id="paper",
    user_metadata={"run": "7", "sweep": "b"},
)


def ended(reason: str) -> Session:
    return dataclasses.replace(NIGHTLY, finished_reason=reason, finished_detail="why")


def matches(session: Session = NIGHTLY, **filters: Any) -> bool:
    return session_search.matches(session, bodies.SearchSessions.model_validate(filters))


@pytest.mark.parametrize(
    ("filters", "is_found"),
    [
        ({}, True),
        ({"session_id": SESSION}, True),
        ({"session_id": "other"}, False),
        ({"display_name": "EVAL nightly"}, True),
        ({"display_name": "nightly train"}, False),
        ({"display_name": "strasse"}, True),
        ({"session_id": "other", "display_name": "nightly"}, True),
        ({"session_id": SESSION, "display_name": "nothing"}, True),
        ({"project_ids": ["paper", "other"]}, True),
        ({"project_ids": ["default"]}, False),
        ({"project_ids": []}, False),
        ({"user_metadata": {"run": "7", "sweep": "b"}}, True),
        ({"user_metadata": {"run": 7}}, True),
        ({"user_metadata": {"run": "7", "sweep": "c"}}, False),
        ({"user_metadata": {"other": "x"}}, False),
        ({"owner": {"type": "own"}}, True),
        ({"owner": {"type": "user", "owner_urns": [f"tml:organization_user:{TENANT}"]}}, True),
        ({"owner": {"type": "user", "owner_urns": [f"tml:organization_user:{STRANGER}"]}}, False),
    ],
)
def test_every_filter_must_let_a_session_pass(filters: dict[str, Any], is_found: bool) -> None:
    assert matches(**filters) is is_found


@pytest.mark.parametrize(
    ("session", "query", "is_found"),
    [
        (NIGHTLY, {"type": "active"}, True),
        (NIGHTLY, {"type": "client_finished"}, False),
        (ended("errored"), {"type": "active"}, False),
        (ended("errored"), {"type": "client_finished"}, True),
        (ended("errored"), {"type": "client_finished", "reasons": ["errored", "success"]}, True),
        (ended("errored"), {"type": "client_finished", "reasons": ["interrupted"]}, False),
        (ended(EXPIRED), {"type": "cancelled"}, True),
        (ended(EXPIRED), {"type": "client_finished"}, False),
        (ended(EXPIRED), {"type": "failed"}, False),
    ],
)
def test_a_session_is_found_by_how_it_stands(
    session: Session, query: dict[str, Any], is_found: bool
) -> None:
    assert matches(session, statuses=[query]) is is_found
    assert matches(session, statuses=[query, {"type": "failed"}]) is is_found


@pytest.mark.parametrize("session", [NIGHTLY, ended("success"), ended(EXPIRED)])
def test_the_sdk_understands_every_status(session: Session) -> None:
    value = session_search.status(session)

    adapter: TypeAdapter[Any] = TypeAdapter(SessionStatus)
    parsed = adapter.validate_python(value)
    assert parsed.model_dump(exclude_none=True) == value


def test_a_session_without_a_name_is_not_found_by_name() -> None:
    assert not matches(dataclasses.replace(NIGHTLY, display_name=None), display_name="a")
