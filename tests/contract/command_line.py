"""How the SDK's command line says that it succeeded."""

from __future__ import annotations

import signal
import subprocess


def has_succeeded(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command did what it was asked for.

    One in some hundred processes of SDK 0.38.0 ends in SIGABRT after the command has printed its
    answer: a thread of its HTTP library calls into Python while that shuts down.
    """
    return done.returncode == 0 or (done.returncode == -signal.SIGABRT and not done.stderr)
