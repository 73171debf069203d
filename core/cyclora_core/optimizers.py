"""Optimizers by name; which one a model has is fixed when the model is made."""

from __future__ import annotations

from enum import StrEnum


class OptimizerType(StrEnum):
    """The values are the wire strings."""

    ADAMW = "adamw"
    DIMUON = "dimuon"
