"""How the SDK's command line says that it succeeded."""

from __future__ import annotations

import signal
import subprocess


def has_succeeded(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command did what it was asked for.

    One in some hundred processes of SDK 0.38.0 ends in SIGABRT after the command has printed its
    answer: a thread of its HTTP library calls into Python while that shuts down. Some commands tell
    their progress on standard error, so that one may hold anything but an error.
    """
    has_error = any(word in done.stderr.lower() for word in ("error", "traceback"))
    has_answered = bool(done.stdout) and not has_error
    return done.returncode == 0 or (done.returncode == -signal.SIGABRT and has_answered)
