"""All benchmarks, one after the other: ``make bench``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("train.py",)


def main() -> None:
    folder = Path(__file__).parent
    for name in BENCHMARKS:
        subprocess.run([sys.executable, str(folder / name), *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
