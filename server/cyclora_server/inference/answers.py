"""Samples as the objects that OpenAI's clients read: whole, or in chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from cyclora_core.samples import SampleResult, StopReason
from cyclora_server.inference.prompts import Prompt
from cyclora_server.inference.text import Detokenizer, Piece, SequenceText, TextToken
from cyclora_server.inference.tokenizer import TextTokenizer
from cyclora_server.services import Json

_LEAST_LOGPROB = -9999.0
"""JSON has no infinity."""


def finish_reason(text: SequenceText, reason: StopReason) -> str:
    return "stop" if text.is_stopped or reason is StopReason.STOP else "length"


def usage(prompts: Sequence[Prompt], num_completion_tokens: int, num_cached_tokens: int) -> Json:
    """Tokens of the prompts, each counted once whatever ``n`` is, and all that was sampled."""
    num_prompt_tokens = sum(len(prompt.tokens) for prompt in prompts)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": num_cached_tokens},
    }


class Form(ABC):
    """What the two endpoints say differently."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, tokenizer: TextTokenizer, *, has_logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._has_logprobs = has_logprobs

    @abstractmethod
    def choice(self, index: int, piece: Piece, reason: str) -> Json:
        """A whole answer."""

    @abstractmethod
    def delta(self, index: int, piece: Piece, reason: str | None) -> Json:
        """A part of an answer; ``reason`` is set in its last one."""

    @abstractmethod
    def opening(self, index: int) -> Json | None:
        """What is sent before the first token, if anything."""

    def _text(self, token: int) -> str:
        return self._tokenizer.token_bytes(token).decode(errors="replace")


class ChatForm(Form):
    """``chat.completion`` and its chunks."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def choice(self, index: int, piece: Piece, reason: str) -> Json:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return self._choice(index, {"message": message}, piece.tokens, reason)

    def delta(self, index: int, piece: Piece, reason: str | None) -> Json:
        delta = {"content": piece.text} if piece.text else {}
        return self._choice(index, {"delta": delta}, piece.tokens, reason)

    def opening(self, index: int) -> Json:
        return self._choice(index, {"delta": {"role": "assistant", "content": ""}}, [], None)

    def _choice(
        self, index: int, content: Json, tokens: Sequence[TextToken], reason: str | None
    ) -> Json:
        logprobs = {"content": [self._token(each) for each in tokens], "refusal": None}
        return {
            "index": index,
            **content,
            "logprobs": logprobs if self._has_logprobs else None,
            "finish_reason": reason,
        }

    def _token(self, token: TextToken) -> Json:
        return {
            "token": self._text(token.token),
            "logprob": max(token.logprob, _LEAST_LOGPROB),
            "bytes": list(self._tokenizer.token_bytes(token.token)),
            "top_logprobs": [],
        }


class CompletionForm(Form):
    """``text_completion``, which is the name of its chunks too."""

    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def choice(self, index: int, piece: Piece, reason: str) -> Json:
        return self.delta(index, piece, reason)

    def delta(self, index: int, piece: Piece, reason: str | None) -> Json:
        return self._choice(index, piece.text, self._logprobs(piece.tokens), reason)

    def opening(self, index: int) -> None:
        return None

    def echo(
        self, index: int, prompt: Prompt, result: SampleResult, piece: Piece, why: str
    ) -> Json:
        """A whole answer behind its prompt, whose first token has no logprob."""
        logprobs = self._prompt_logprobs(prompt, result) if self._has_logprobs else None
        if logprobs is not None:
            shifted = [
                TextToken(each.token, each.logprob, each.start + len(prompt.text))
                for each in piece.tokens
            ]
            sampled = self._logprobs(shifted) or {}
            logprobs = {name: logprobs[name] + sampled[name] for name in logprobs}
        return self._choice(index, prompt.text + piece.text, logprobs, why)

    def _choice(self, index: int, text: str, logprobs: Json | None, reason: str | None) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[TextToken]) -> Json | None:
        if not self._has_logprobs:
            return None
        texts = [self._text(each.token) for each in tokens]
        values = [max(each.logprob, _LEAST_LOGPROB) for each in tokens]
        return {
            "tokens": texts,
            "token_logprobs": values,
            "top_logprobs": [{text: value} for text, value in zip(texts, values, strict=True)],
            "text_offset": [each.start for each in tokens],
        }

    def _prompt_logprobs(self, prompt: Prompt, result: SampleResult) -> Json:
        values = result.prompt_logprobs
        assert values is not None, "an echo with logprobs asks for those of the prompt"
        starts = _starts(self._tokenizer, prompt.tokens)
        tokens = [
            TextToken(token, float(value), start)
            for token, value, start in zip(prompt.tokens, values, starts, strict=True)
        ]
        (first, *rest) = tokens
        known = self._logprobs(rest) or {}
        return {
            "tokens": [self._text(first.token), *known["tokens"]],
            "token_logprobs": [None, *known["token_logprobs"]],
            "top_logprobs": [
                None,
                *(
                    self._alternatives(result, at) | own
                    for at, own in enumerate(known["top_logprobs"], 1)
                ),
            ],
            "text_offset": starts,
        }

    def _alternatives(self, result: SampleResult, at: int) -> Mapping[str, Any]:
        if result.topk_prompt_tokens is None or result.topk_prompt_logprobs is None:
            return {}
        pairs = zip(result.topk_prompt_tokens[at], result.topk_prompt_logprobs[at], strict=True)
        return {self._text(int(token)): max(float(lp), _LEAST_LOGPROB) for token, lp in pairs}


def _starts(tokenizer: TextTokenizer, tokens: Sequence[int]) -> list[int]:
    """Where in the text each token begins."""
    detokenizer, starts, start = Detokenizer(tokenizer), list[int](), 0
    for token in tokens:
        starts.append(start)
        start += len(detokenizer.push(token))
    return starts
