from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from cyclora_server.inference.text import Detokenizer, SequenceText
from cyclora_server.inference.tokenizer import TextTokenizer
from server.inference.builders import TURN_END, tokenizer, tokens_of


def sentencepiece() -> TextTokenizer:
    """Words that carry their space, bytes for what is not in the vocabulary, no byte alphabet."""
    pieces = ["<unk>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁Hello", "▁you", "r", "▁"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["</s>"])
    return TextTokenizer(made, None, [1])


def pieces(used: TextTokenizer, tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(used)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.finish()]


@given(st.text(max_size=40))
def test_the_pieces_of_a_text_are_the_text(text: str) -> None:
    tokens = tokens_of(text)

    found = pieces(tokenizer(), tokens)

    assert "".join(found) == tokenizer().decode(tokens)


@given(st.lists(st.integers(0, 2100), max_size=60))
def test_the_pieces_of_any_tokens_are_what_all_decode_to(tokens: list[int]) -> None:
    """Half characters, special tokens and tokens beyond the vocabulary included."""
    assert "".join(pieces(tokenizer(), tokens)) == tokenizer().decode(tokens)


@given(st.lists(st.sampled_from(["▁Hello", "▁you", "é", "😀", "\x00", "ß"]), max_size=20))
def test_the_pieces_of_sentencepiece_tokens_are_what_all_decode_to(words: list[str]) -> None:
    """Of whole characters: a byte that completes none would change those before it."""
    known = {"▁Hello": [258], "▁you": [259]}
    tokens = [
        token for word in words for token in known.get(word, [2 + byte for byte in word.encode()])
    ]
    used = sentencepiece()

    assert "".join(pieces(used, tokens)) == used.decode(tokens)


def test_a_character_comes_whole_with_its_last_token() -> None:
    found = pieces(tokenizer(), tokens_of("a😀b"))

    assert [piece for piece in found if piece] == ["a", "😀", "b"]
    assert len(tokens_of("a😀b")) > 3


def test_special_tokens_are_no_text() -> None:
    assert "".join(pieces(tokenizer(), [0, *tokens_of("Hi"), 1, TURN_END])) == "Hi"


def test_text_that_is_never_completed_does_not_wait_for_ever() -> None:
    """A token of one half of a character, again and again: each must not decode all before it."""
    half = next(t for t in range(2048) if tokenizer().token_bytes(t) == b"\xf0")

    found = pieces(tokenizer(), [half] * 1000)

    assert max(len(piece) for piece in found) <= 64
    assert "".join(found) == "\ufffd" * 1000


def streamed(text: str, stops: list[str]) -> tuple[list[str], SequenceText]:
    sequence = SequenceText(tokenizer(), stops)
    found = [sequence.add(token, -1.0).text for token in tokens_of(text)]
    return [*found, sequence.finish().text], sequence


@given(st.text("ab c\n", max_size=30), st.lists(st.text("ab c\n", min_size=1, max_size=4)))
def test_no_part_of_a_stop_string_is_sent(text: str, stops: list[str]) -> None:
    """The first one to be complete ends the text, as it ends the sample."""
    tokens = tokens_of(text)
    texts = [tokenizer().decode(tokens[:size]) for size in range(1, len(tokens) + 1)]
    stopped = next((each for each in texts if any(stop in each for stop in stops)), None)
    places = [stopped.find(stop) for stop in stops if stop in stopped] if stopped else []
    expected = stopped[: min(places)] if stopped else text

    found, sequence = streamed(text, stops)

    assert "".join(found) == expected
    assert sequence.is_stopped == bool(places)


def test_text_that_cannot_become_a_stop_string_is_sent_at_once() -> None:
    found, _ = streamed("one two", ["###"])

    assert "".join(found[:-1]) == "one two"
    assert found[-1] == ""


def test_what_looked_like_a_stop_string_is_sent_once_it_is_none() -> None:
    found, sequence = streamed("a##b", ["###"])

    assert "".join(found) == "a##b"
    assert not sequence.is_stopped


def test_every_token_of_the_text_is_told_with_the_piece_in_which_it_begins() -> None:
    sequence = SequenceText(tokenizer(), ["END"])
    tokens = tokens_of("Hi 😀 and END of it")
    found = [sequence.add(token, -float(at)) for at, token in enumerate(tokens)]
    found.append(sequence.finish())

    text = "".join(piece.text for piece in found)
    told = [token for piece in found for token in piece.tokens]
    assert text == "Hi 😀 and "
    assert [each.token for each in told] == tokens[: len(told)]
    assert [each.logprob for each in told] == [-float(at) for at in range(len(told))]
    assert all(each.start < len(text) for each in told)
    assert b"".join(tokenizer().token_bytes(t.token) for t in told).decode().startswith(text)


def test_the_end_of_the_turn_is_neither_text_nor_told() -> None:
    sequence = SequenceText(tokenizer(), [])
    told = [sequence.add(token, 0.0).tokens for token in [*tokens_of("Hi"), TURN_END]]

    assert sequence.finish().tokens == []
    assert [each.token for tokens in told for each in tokens] == tokens_of("Hi")
    assert sequence.num_tokens == len(tokens_of("Hi")) + 1


@pytest.mark.parametrize("text", ["Hello, world", "Größe 😀", " 12\n"])
def test_the_bytes_of_tokens_are_those_of_the_text(text: str) -> None:
    used = tokenizer()

    assert b"".join(used.token_bytes(token) for token in tokens_of(text)) == text.encode()


def test_bytes_of_sentencepiece_tokens() -> None:
    used = sentencepiece()

    assert used.token_bytes(258) == b" Hello"
    assert used.token_bytes(2 + 0xE2) == b"\xe2"
    assert used.token_bytes(1) == b"</s>"
    assert used.token_bytes(5000) == b""
