"""Freed memory stays with the process; looked at in one of its own, of which it is a property."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
import torch
from cyclora_workers.freed_memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        held = [torch.ones(num_mib * 2**18) for num_mib in (3, 40, 70)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with ThreadPoolExecutor(1) as engine:
    # The heap may grow a few times before everything has its place in it.
    print(min(engine.submit(faults).result() for _ in range(6)))
"""
_PAGES_OF_A_ROUND = (3 + 40 + 70) * 2**20 // 4096


def num_faults(way: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM, way], capture_output=True, text=True, check=True
    )
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is of Linux")
def test_the_engine_thread_takes_the_pages_it_freed_instead_of_new_ones() -> None:
    assert num_faults("kept") < _PAGES_OF_A_ROUND / 10
    assert num_faults("as delivered") > _PAGES_OF_A_ROUND
