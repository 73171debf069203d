"""Tie this process to the life of its parent, then become the command that follows.

Run as ``python -I -S tether.py PARENT_PID COMMAND...`` for every child of ``cyclora up``: when the
supervisor ends, also by SIGKILL, the kernel sends the child SIGTERM. A separate program rather
than a ``preexec_fn``, because Python code between fork and exec may deadlock in a process that
has threads, and the terminal display has one. The process id stays the same.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent_pid, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            sys.exit(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
    # A parent that died before the call above would never be noticed.
    if os.getppid() != parent_pid:
        sys.exit("the supervisor has ended")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
