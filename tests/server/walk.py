"""Every route of the application, documented or not."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import FastAPI
from starlette.routing import Mount, Route


def routes(app: FastAPI) -> Iterator[Route]:
    """Those of the application itself, and those of the routers that it includes."""
    for route in app.routes:
        router = getattr(route, "original_router", None)
        for each in [route] if router is None else router.routes:
            if isinstance(each, Route):
                yield each
            else:
                assert isinstance(each, Mount), f"{each} may hold routes that are not walked"


def methods_and_paths(app: FastAPI) -> list[tuple[str, str]]:
    return [(method, route.path) for route in routes(app) for method in sorted(route.methods or ())]
