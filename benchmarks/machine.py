"""What every table must say: hardware, versions, date and command."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import peft
import torch
import transformers


def caption(what: str) -> str:
    """One line to stand above a table."""
    versions = (
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"peft {peft.__version__}, Python {platform.python_version()}"
    )
    command = " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    return (
        f"{what}. {_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"{versions}; {datetime.now(UTC):%Y-%m-%d}; `{command}`."
    )


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
