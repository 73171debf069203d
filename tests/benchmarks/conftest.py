"""Makes the modules of ``benchmarks/`` importable here, and only these.

With that folder on the path, its ``server.py`` would take the place of ``tests/server``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_FOLDER = Path(__file__).parents[2] / "benchmarks"
# Each after those that it imports.
_MODULES = ("machine", "rounds", "report", "plots", "shapes", "work", "bounds", "run")

for _name in _MODULES:
    _spec = importlib.util.spec_from_file_location(_name, _FOLDER / f"{_name}.py")
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])
