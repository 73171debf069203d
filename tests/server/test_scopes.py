"""Which keys open which route: the table against all routes that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations

import httpx
import pytest
from fastapi import FastAPI

from cyclora_core.accounts import Scope
from cyclora_core.errors import ServerError
from cyclora_server.scopes import RULES, rule_of
from server.doubles.builders import KEY
from server.doubles.store import StoreDouble
from server.test_auth import PUBLIC
from server.walk import methods_and_paths

ALL_SCOPES = [frozenset(each) for size in (1, 2, 3) for each in combinations(sorted(Scope), size)]


def keyed_routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of every route that takes a key, documented or not."""
    for method, path in methods_and_paths(app):
        if path not in PUBLIC:
            yield method, path


def test_the_table_has_a_row_for_every_route_and_none_beside(app: FastAPI) -> None:
    routes = {f"{method} {path}" for method, path in keyed_routes(app)}

    assert {each for each in routes if " /admin/" not in each} == set(RULES)


def test_a_route_that_nobody_has_thought_of_opens_for_nobody() -> None:
    with pytest.raises(ServerError, match="no row"):
        rule_of("GET", "/api/v1/new")


def test_no_tenants_scope_opens_administration() -> None:
    assert rule_of("GET", "/admin/v1/anything").scopes == (Scope.ADMIN,)


@pytest.mark.parametrize("scopes", ALL_SCOPES, ids="+".join)
async def test_a_key_opens_what_its_scopes_open_and_nothing_else(
    app: FastAPI, client: httpx.AsyncClient, store: StoreDouble, scopes: frozenset[Scope]
) -> None:
    """Every refusal names the scope that is missing, before anything of the request is read."""
    for method, path in keyed_routes(app):
        store.api_keys.change(KEY, scopes=scopes, revoked_at_ms=None)
        rule = rule_of(method, path)
        url = re.sub(r"\{[^}]*\}", "x", path)
        answer = await client.request(method, url, content=b"{")

        is_open = bool(scopes & set(rule.scopes))
        assert (answer.status_code == 403) is not is_open, f"{method} {path}: {answer.text}"
        if not is_open:
            assert " or ".join(rule.scopes) in answer.text
            assert ", ".join(sorted(scopes)) in answer.text


async def test_what_is_about_the_whole_tenant_is_closed_to_a_key_of_one_project(
    app: FastAPI, client: httpx.AsyncClient, store: StoreDouble
) -> None:
    store.api_keys.change(KEY, project_id="alpha")
    closed = [each for each in keyed_routes(app) if rule_of(*each).is_of_tenant]
    assert len(closed) >= 3

    for method, path in closed:
        answer = await client.request(method, path)
        assert answer.status_code == 403
        assert "alpha" in answer.text
