"""Settings as administrators may read them: without anything that opens a door."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET_NAME_RE = re.compile(r"(secret|password|passphrase|token|credential|api_key)(_|$)")
_SECRET_IN_QUERY_RE = re.compile(
    r"([?&][^=&#]*(?:password|secret|token|key|signature)[^=&#]*=)[^&#]*", re.IGNORECASE
)


def shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, in the order in which they are declared, as JSON can hold them.

    What a name calls a secret is hidden unless it is a number or a switch, and so are passwords
    in URLs, wherever these are.
    """
    return {name: _shown(name, value) for name, value in settings.items()}


def _shown(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if _SECRET_NAME_RE.search(name.lower()):
        return HIDDEN
    if isinstance(value, Mapping):
        return {str(key): _shown(str(key), each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown(name, each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return without_password(str(value))


def without_password(text: str) -> str:
    """A URL without user, password and what its query calls a secret; any other text unchanged."""
    scheme, is_url, rest = text.partition("://")
    if not is_url:
        return text
    end = min((at for mark in "/?#" if (at := rest.find(mark)) >= 0), default=len(rest))
    _, has_user, host = rest[:end].rpartition("@")
    path = _SECRET_IN_QUERY_RE.sub(rf"\g<1>{HIDDEN}", rest[end:])
    return f"{scheme}://{HIDDEN}@{host}{path}" if has_user else f"{scheme}://{host}{path}"
