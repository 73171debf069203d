from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.dependencies import utils


async def test_no_request_goes_to_a_thread_for_what_its_route_depends_on(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FastAPI runs a dependency that is a plain function in a thread: two switches a request."""
    threaded: set[str] = set()

    async def noted(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        threaded.add(function.__qualname__)
        return function(*args, **kwargs)

    monkeypatch.setattr(utils, "run_in_threadpool", noted)
    for path, item in app.openapi()["paths"].items():
        for method in item:
            await client.request(method, path)

    assert not threaded
