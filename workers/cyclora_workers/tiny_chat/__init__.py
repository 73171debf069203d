"""The built-in model ``cyclora/tiny-chat``: where it lies, and how it is made.

Importing this package loads no torch, so that a process which only needs the name or the folder
stays light; ``build.py`` holds the pre-training.
"""

from __future__ import annotations

from pathlib import Path

MODEL_NAME = "cyclora/tiny-chat"


def model_dir() -> Path:
    """The folder with the model's files, as ``from_pretrained`` expects them."""
    return Path(__file__).parent / "model"
