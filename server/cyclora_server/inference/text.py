"""The text of a sampled sequence as its tokens arrive, one sequence at a time.

What was handed out never changes: half a character waits for its other half, and what may turn out
to be the beginning of a stop string waits until it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cyclora_server.inference.tokenizer import TextTokenizer

_REPLACEMENT = "\ufffd"
_MAX_OPEN_TOKENS = 64
"""Tokens that wait for a character to be completed; more come only from a model that writes no
text, and each of them costs decoding all."""


class Detokenizer:
    """Decodes tokens one by one; the pieces together are the decoded whole.

    A token's text may depend on the tokens before it (a space that belongs to both), so it is what
    the decoded text grows by, seen from the last complete character on.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._num_read = 0
        self._read = ""

    def push(self, token: int) -> str:
        """The text that is complete with this token; empty for a hidden one."""
        if token in self._tokenizer.hidden:
            return ""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        is_open = len(text) <= len(self._read) or text.endswith(_REPLACEMENT)
        if is_open and len(self._tokens) - self._num_read < _MAX_OPEN_TOKENS:
            return ""
        piece = text[len(self._read) :]
        self._tokens = self._tokens[self._num_read :]
        self._num_read = len(self._tokens)
        self._read = self._tokenizer.decode(self._tokens)
        return piece

    def finish(self) -> str:
        """What is left: characters that were never completed."""
        return self._tokenizer.decode(self._tokens)[len(self._read) :]


@dataclass(frozen=True, slots=True)
class TextToken:
    """A token with its logprob, and where in the text it begins, in characters."""

    token: int
    logprob: float
    start: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text, and the tokens that begin in it."""

    text: str
    tokens: Sequence[TextToken]


class SequenceText:
    """One sequence: its text up to a stop string, in pieces that can be sent at once."""

    def __init__(self, tokenizer: TextTokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = stops
        self._held = ""
        self._num_sent = 0
        self._waiting: list[TextToken] = []
        self.num_tokens = 0
        self.is_stopped = False
        """Whether a stop string came; nothing behind it is text."""

    def add(self, token: int, logprob: float) -> Piece:
        """Take the next token; returns what may be sent with it."""
        self.num_tokens += 1
        if self.is_stopped:
            return Piece("", [])
        self._waiting.append(TextToken(token, logprob, self._num_sent + len(self._held)))
        self._held += self._detokenizer.push(token)
        return self._release(_num_open(self._held, self._stops))

    def finish(self) -> Piece:
        """All that was held back, when no more tokens come."""
        if self.is_stopped:
            return Piece("", [])
        self._held += self._detokenizer.finish()
        return self._release(0)

    def _release(self, num_open: int) -> Piece:
        places = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if places:
            self.is_stopped = True
        size = min(places) if places else len(self._held) - num_open
        text, self._held = self._held[:size], self._held[size:]
        self._num_sent += size
        sent = [each for each in self._waiting if each.start < self._num_sent]
        self._waiting = self._waiting[len(sent) :]
        return Piece(text, sent)


def _num_open(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of a text with which a stop string may begin."""
    longest = max((len(stop) for stop in stops), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        end = text[-size:]
        if any(len(stop) > size and stop.startswith(end) for stop in stops):
            return size
    return 0
