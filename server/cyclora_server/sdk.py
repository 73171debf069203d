"""Which SDK sent a request, where the answer must depend on it."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Depends, Header

_EXTERNAL_SINCE = (0, 29)
_VERSION_RE = re.compile(r"(\d{1,6})\.(\d{1,6})\b")


async def knows_external(
    version: Annotated[str | None, Header(alias="X-Stainless-Package-Version")] = None,
) -> bool:
    """Whether the client can read checkpoints of the type ``external``.

    SDKs before 0.29 fail over a whole list that holds one. Whoever does not tell its version, or
    not in numbers, is no such SDK.
    """
    match = _VERSION_RE.match(version or "")
    return match is None or (int(match[1]), int(match[2])) >= _EXTERNAL_SINCE


KnowsExternalDep = Annotated[bool, Depends(knows_external)]
