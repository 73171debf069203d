"""How many objects a body would become, counted before any is made.

A body is bounded in bytes, yet empty messages and empty JSON objects take thirty times their bytes
once they are parsed: a compressed request of a few kilobytes could fill the memory of a server.
"""

from __future__ import annotations

from typing import Any

from cyclora_core.errors import PayloadTooLarge

MAX_MESSAGES = 200_000
"""Messages within one protobuf body; the SDK sends about ten per datum, and 1024 data."""

MAX_JSON_CONTAINERS = 1_000_000
MAX_JSON_ITEMS = 8_000_000
"""Elements of all lists and objects; the SDK sends at most 5 MB of numbers at a time."""

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_MIN_MESSAGE_BYTES = 2


def check_json(raw: bytes) -> None:
    """Refuse a JSON text of too many elements; brackets and commas in strings count as well.

    Raises:
        PayloadTooLarge: it has more than ``MAX_JSON_CONTAINERS`` or ``MAX_JSON_ITEMS``.
    """
    containers = raw.count(b"[") + raw.count(b"{")
    items = raw.count(b",")
    for number, limit, what in (
        (containers, MAX_JSON_CONTAINERS, "lists and objects"),
        (items, MAX_JSON_ITEMS, "elements"),
    ):
        if number > limit:
            raise PayloadTooLarge(f"the body has {number} {what}; at most {limit} are accepted")


def check_protobuf(raw: bytes, descriptor: Any) -> None:
    """Refuse a body of too many messages; what is malformed is left to the parser to refuse.

    ``descriptor`` describes the message that ``raw`` is of.

    Raises:
        PayloadTooLarge: it has more than ``MAX_MESSAGES``.
    """
    if len(raw) < MAX_MESSAGES * _MIN_MESSAGE_BYTES:
        return
    children = _Children()
    num_messages = 0
    pending = [(0, len(raw), descriptor)]
    while pending:
        at, end, parent = pending.pop()
        fields = children.of(parent)
        while at < end:
            tag, at = _varint(raw, at, end)
            wire_type = tag & 7
            if wire_type == _VARINT:
                _, at = _varint(raw, at, end)
            elif wire_type == _FIXED64:
                at += 8
            elif wire_type == _FIXED32:
                at += 4
            elif wire_type != _DELIMITED:
                return
            else:
                size, at = _varint(raw, at, end)
                child = fields.get(tag >> 3)
                if child is not None:
                    num_messages += 1
                    if num_messages > MAX_MESSAGES:
                        raise PayloadTooLarge(
                            f"the body has more than the accepted {MAX_MESSAGES} messages"
                        )
                    pending.append((at, min(at + size, end), child))
                at += size


class _Children:
    """The fields of a message that are messages themselves, by number."""

    def __init__(self) -> None:
        self._known: dict[str, dict[int, Any]] = {}

    def of(self, descriptor: Any) -> dict[int, Any]:
        name: str = descriptor.full_name
        if name not in self._known:
            self._known[name] = {
                field.number: field.message_type
                for field in descriptor.fields
                if field.message_type
            }
        return self._known[name]


def _varint(raw: bytes, at: int, end: int) -> tuple[int, int]:
    """A variable-length integer and where it ends; past the end it ends there."""
    value = shift = 0
    while at < end:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            break
    return value, end
