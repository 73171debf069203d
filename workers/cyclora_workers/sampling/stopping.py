"""When a sequence ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cyclora_core.samples import SamplingParams, StopReason

Detokenize = Callable[[Sequence[int]], str]

_TAIL_MARGIN_TOKENS = 8
"""Tokens decoded beyond the longest stop string: the first characters of a tail may be half a
character, or lack the space that some tokenizers drop at the beginning of a text."""


@dataclass(frozen=True, slots=True)
class StopRules:
    """What ends the sequences of one request; the last token or text stays part of them."""

    max_tokens: int
    token_ids: frozenset[int]
    strings: tuple[str, ...]
    num_tail_tokens: int

    @classmethod
    def of(cls, params: SamplingParams, eos_token_ids: Sequence[int], max_tokens: int) -> StopRules:
        """Rules of a request that may sample at most ``max_tokens``."""
        token_ids = frozenset(params.stop_token_ids)
        if params.stop_on_eos:
            token_ids |= frozenset(eos_token_ids)
        strings = tuple(params.stop_strings)
        # A token that shows in the text has at least one byte of it.
        longest_bytes = max((len(string.encode()) for string in strings), default=0)
        return cls(max_tokens, token_ids, strings, longest_bytes + _TAIL_MARGIN_TOKENS)


def stop_reason(
    tokens: Sequence[int], rules: StopRules, detokenize: Detokenize | None
) -> StopReason | None:
    """Why the sequence ends with its last token, or None when it goes on.

    Called after every token, so a stop string found in the decoded tail was completed by the last
    one; earlier text need not be decoded again.
    """
    if tokens[-1] in rules.token_ids:
        return StopReason.STOP
    if rules.strings:
        assert detokenize is not None, "requests with stop strings are refused without a tokenizer"
        tail = detokenize(tokens[-rules.num_tail_tokens :])
        if any(string in tail for string in rules.strings):
            return StopReason.STOP
    return StopReason.LENGTH if len(tokens) >= rules.max_tokens else None
