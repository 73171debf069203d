"""The text that the built-in model learns from: chats generated from a seed, nothing downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from cyclora_workers.tiny_chat.everyday import draw_exchange
from cyclora_workers.tiny_chat.pairsum import draw_pair_exchange

PAIR_SHARE = 0.3
"""Share of chats about the pair task; the others are everyday questions."""

_PLAIN_SYSTEMS = (
    "You are a helpful assistant.",
    "You are Tiny, a small chat model.",
    "You are a friendly assistant. Answer briefly.",
    "Answer the question.",
    "Be polite.",
)
_SHORT_SYSTEMS = ("Answer in one word.", "Answer with one word only.", "Give only the answer.")


class Message(NamedTuple):
    """One turn of a chat; ``role`` is system, user or assistant."""

    role: str
    content: str


def _pair_chat(rng: Random) -> list[Message]:
    question, answer = draw_pair_exchange(rng)
    chat = [Message("user", question), Message("assistant", answer)]
    if rng.random() < 0.15:
        chat.insert(0, Message("system", rng.choice(_PLAIN_SYSTEMS)))
    return chat


def _everyday_chat(rng: Random) -> list[Message]:
    """One to three exchanges; a system prompt for short answers holds for all of them."""
    chat: list[Message] = []
    is_short = rng.random() < 0.12
    if is_short:
        chat.append(Message("system", rng.choice(_SHORT_SYSTEMS)))
    elif rng.random() < 0.2:
        chat.append(Message("system", rng.choice(_PLAIN_SYSTEMS)))
    for _ in range(rng.choices((1, 2, 3), (8, 2, 1))[0]):
        question, full, short = draw_exchange(rng)
        chat.append(Message("user", question))
        chat.append(Message("assistant", short if is_short else full))
    return chat


def draw_chats(seed: int) -> Iterator[list[Message]]:
    """An endless run of chats; the same seed gives the same chats on every machine."""
    rng = Random(seed)
    while True:
        yield _pair_chat(rng) if rng.random() < PAIR_SHARE else _everyday_chat(rng)
