"""The exception tree, split by who must act.

::

    CycloraError
      UserError             the request can never succeed as sent; the tenant must change it
        NotFound            no such object, or it belongs to another tenant
        Unauthorized        no API key, or one that is unknown or revoked
        Forbidden           the API key is known but may not do this
        Gone                the object existed and has ended or expired
        PayloadTooLarge     the body exceeds a documented bound
      Unavailable           nothing is wrong with the request; try again later
        Overloaded          there is no room for more work at the moment
          OverQuota         the tenant has as much queued as it may have
        OverBudget          the tenant's tokens of the day or month are used up
      ServerError           our fault; the tenant sees an error id, never the cause
        FencedOut           this process lost its right to settle what it worked on

A message states what was wrong, the offending value, and what would be accepted. Only
``cyclora_server.problems`` knows which HTTP status each class becomes.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorCategory(StrEnum):
    """Who must act on a failed future; the values are the wire strings of the SDK."""

    UNKNOWN = "unknown"
    SERVER = "server"
    USER = "user"


class CycloraError(Exception):
    """Root of every error raised by this project."""

    category = ErrorCategory.UNKNOWN


class UserError(CycloraError):
    """The request can never succeed as it was sent."""

    category = ErrorCategory.USER


class NotFound(UserError):
    """No such object, or it belongs to another tenant: the two must look alike."""


class Unauthorized(UserError):
    """No API key was sent, or it is unknown or revoked."""


class Forbidden(UserError):
    """The API key is known but has no right to this."""


class Gone(UserError):
    """The object existed and has ended or expired."""


class PayloadTooLarge(UserError):
    """The body, or what it decompresses to, exceeds a documented bound."""


class Unavailable(CycloraError):
    """Nothing is wrong with the request; it may succeed later."""

    category = ErrorCategory.SERVER


class Overloaded(Unavailable):
    """There is no room for more work at the moment; the caller should slow down."""


class OverQuota(Overloaded):
    """The tenant has as much queued as it may have; some of it must finish first."""


class OverBudget(Unavailable):
    """The tenant's tokens of the day or month are used up; its client pauses."""


class ServerError(CycloraError):
    """Something of ours failed; the text is for our logs, not for the tenant."""

    category = ErrorCategory.SERVER


class FencedOut(ServerError):
    """This process was declared dead meanwhile and may no longer settle its work."""
