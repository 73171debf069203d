"""The words of the kill matrix, shared by the processes under test and the test itself."""

from __future__ import annotations

from enum import StrEnum

WIRE_FOLDER_VARIABLE = "FAULTS_WIRE_FOLDER"
"""Environment variable that tells a worker with tripwires where these two files are."""

ARMED_FILE = "armed"
"""Exists while something is armed; holds ``{point}/{kind}``."""

SOCKET_FILE = "wire.sock"


class Victim(StrEnum):
    """Whose process is killed."""

    SERVER = "server"
    SCHEDULER = "scheduler"
    WORKER = "worker"
    VALKEY = "valkey"


class Kind(StrEnum):
    """What the worker is working on at that moment."""

    FORWARD_BACKWARD = "forward_backward"
    OPTIM_STEP = "optim_step"
    SAVE = "save"
    HAND_OVER = "hand_over"
    LOAD = "load"
    SAMPLE = "sample"


class Point(StrEnum):
    """How far the worker is with it; ``tripwires`` says what each means for each kind."""

    BEFORE_CLAIM = "before claim"
    AFTER_CLAIM = "after claim"
    IN_FORWARD = "in forward"
    AFTER_GRADIENTS = "after gradients"
    BEFORE_SETTLE = "before settle"
    AFTER_SETTLE = "after settle"
