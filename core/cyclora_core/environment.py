"""Settings from the environment: what is wrong ends the start, in words for the operator.

One env file serves all processes, so a process accepts what another one, or the client, reads. The
names lie in ``setting_names.txt``, which deploy/env_example.py writes: processes may not import one
another's settings (docs/decisions/0055-unknown-variables.md).
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

PREFIX = "CYCLORA_"

EXIT_CONFIGURATION = 78
"""EX_CONFIG of sysexits: what the process was told can never work, so it is not tried again."""

_SettingsT = TypeVar("_SettingsT", bound=BaseSettings)

_LEAST_LIKENESS = 0.6
"""Of a name that is worth suggesting: one with a letter missing has more than 0.9."""


@cache
def known_names() -> frozenset[str]:
    """Every variable that some process, or the client, reads."""
    return frozenset(files("cyclora_core").joinpath("setting_names.txt").read_text().split())


def unknown_variables(variables: Mapping[str, str]) -> list[str]:
    """What is wrong with each variable of our prefix that nobody reads; values are not repeated.

    Letters may be lower or upper case, as pydantic reads them.
    """
    found: list[str] = []
    for name in sorted(variables):
        if not name.upper().startswith(PREFIX) or name.upper() in known_names():
            continue
        # Without the prefix, which makes any two look alike.
        choices = sorted(known.removeprefix(PREFIX) for known in known_names())
        nearest = difflib.get_close_matches(
            name.upper().removeprefix(PREFIX), choices, 1, cutoff=_LEAST_LIKENESS
        )
        instead = (
            f"did you mean {PREFIX}{nearest[0]}?" if nearest else "deploy/env.example lists all"
        )
        found.append(f"{name} is no setting of cyclora; {instead}{_hint(variables[name])}")
    return found


def settings_or_exit(kind: type[_SettingsT]) -> _SettingsT:
    """The settings of this process; a wrong or unknown variable ends it with exit code 78."""
    wrong = unknown_variables(os.environ)
    try:
        settings = kind()
    except ValidationError as error:
        wrong += [_explain(each) for each in error.errors()]
    else:
        if not wrong:
            return settings
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    raise SystemExit(EXIT_CONFIGURATION)


def _explain(error: Any) -> str:
    """One error of pydantic's, by the name of the variable."""
    if not error["loc"]:  # about several settings at once; says which
        return str(error["msg"]).removeprefix("Value error, ")
    name = f"{PREFIX}{'_'.join(map(str, error['loc'])).upper()}"
    value = str(error["input"])
    # A URL may hold a password.
    shown = "" if "@" in value else f", got {value[:100]!r}"
    return f"{name}: {error['msg'][:1].lower()}{error['msg'][1:]}{shown}{_hint(value)}"


def _hint(value: str) -> str:
    if not value.startswith("tcp://"):
        return ""
    return " (Kubernetes sets such variables for services; enableServiceLinks: false prevents it)"
