"""age encryption (age-encryption.org/v1) of exported files, to those who may read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyrage

from cyclora_core.errors import UserError

MAX_RECIPIENTS = 10
SUFFIX = ".age"
"""Ends the name of every encrypted file."""

_SSH_PREFIX = "ssh-"
_MAX_SHOWN_CHARS = 80

_pyrage: Any = pyrage  # parts of it come without types


def check_recipients(recipients: Sequence[str]) -> None:
    """Refuse recipients before anything is computed for them.

    Raises:
        UserError: there are none or too many, or one is no public key.
    """
    if not 1 <= len(recipients) <= MAX_RECIPIENTS:
        raise UserError(
            f"age_encryption_recipients has {len(recipients)} entries; expected 1 to "
            f"{MAX_RECIPIENTS}, or leave it out for files that are not encrypted"
        )
    for recipient in recipients:
        _parse(recipient)


def encrypt(data: bytes, recipients: Sequence[str]) -> bytes:
    """Bytes that each of the recipients, and nobody else, can decrypt with ``age -d``.

    Raises:
        UserError: a recipient is no public key.
    """
    return _pyrage.encrypt(data, [_parse(recipient) for recipient in recipients])


def _parse(recipient: str) -> Any:
    kind = _pyrage.ssh if recipient.startswith(_SSH_PREFIX) else _pyrage.x25519
    try:
        return kind.Recipient.from_str(recipient)
    except (_pyrage.RecipientError, UnicodeEncodeError):
        # Shown in part only: somebody may have sent the private key by mistake.
        shown = recipient[:8] if "SECRET" in recipient.upper() else recipient[:_MAX_SHOWN_CHARS]
        raise UserError(
            f"age_encryption_recipients has {shown!r}, which is no public key; expected age1... "
            "(X25519), ssh-ed25519 ... or ssh-rsa ..."
        ) from None
