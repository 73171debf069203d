from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cyclora_core.samples import SamplingParams, StopReason
from cyclora_workers.sampling.stopping import StopRules, stop_reason

EOS = (2, 7)


def rules(max_tokens: int = 100, **params: Any) -> StopRules:
    return StopRules.of(SamplingParams(**params), EOS, max_tokens)


def spell(tokens: Sequence[int]) -> str:
    """Tokens are bytes of UTF-8; half a character shows as a replacement character."""
    return bytes(tokens).decode(errors="replace")


def ends_after(text: str, rules: StopRules) -> int | None:
    """Tokens until the sequence stops, feeding one byte at a time."""
    tokens: list[int] = []
    for byte in text.encode():
        tokens.append(byte)
        if stop_reason(tokens, rules, spell) is StopReason.STOP:
            return len(tokens)
    return None


@pytest.mark.parametrize("token", EOS)
def test_each_end_of_sequence_token_stops(token: int) -> None:
    assert stop_reason([5, token], rules(), None) is StopReason.STOP


def test_end_of_sequence_does_not_stop_when_it_is_switched_off() -> None:
    assert stop_reason([5, 2], rules(stop_on_eos=False), None) is None


def test_stop_token_ids_stop_beside_or_instead_of_end_of_sequence() -> None:
    only_ids = rules(stop_on_eos=False, stop_token_ids=[9])

    assert stop_reason([9], only_ids, None) is StopReason.STOP
    assert stop_reason([9, 2], only_ids, None) is None


def test_max_tokens_ends_with_length() -> None:
    assert stop_reason([5, 5], rules(max_tokens=3), None) is None
    assert stop_reason([5, 5, 5], rules(max_tokens=3), None) is StopReason.LENGTH


def test_a_stop_at_the_last_allowed_token_is_a_stop() -> None:
    assert stop_reason([5, 5, 2], rules(max_tokens=3), None) is StopReason.STOP


@pytest.mark.parametrize(
    ("text", "strings", "length"),
    [
        ("hello END of", ["END"], 9),
        ("hello", ["END"], None),
        ("ab\n\nUser: x", ["\n\nUser:"], 9),
        ("one two", ["two", "ne"], 3),
        ("grün und blau", ["ün"], 5),
        ("x" * 500 + "stop", ["stop"], 504),
        ("y" * 300 + "é" * 40 + ".", ["é" * 40 + "."], 381),
    ],
)
def test_a_stop_string_stops_at_the_token_that_completes_it(
    text: str, strings: list[str], length: int | None
) -> None:
    assert length == ends_after(text, rules(1000, stop_strings=strings))


def test_only_a_bounded_tail_is_decoded() -> None:
    decoded: list[int] = []

    def detokenize(tokens: Sequence[int]) -> str:
        decoded.append(len(tokens))
        return spell(tokens)

    stop_reason([97] * 5000, rules(10_000, stop_strings=["abc"]), detokenize)

    assert decoded == [11]


def test_text_is_not_decoded_without_stop_strings() -> None:
    def detokenize(tokens: Sequence[int]) -> str:
        raise AssertionError(f"decoded {len(tokens)} tokens")

    assert stop_reason([5], rules(), detokenize) is None
